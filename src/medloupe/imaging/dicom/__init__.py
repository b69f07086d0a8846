"""DICOM through pydicom: modality values, geometry and how they are shown; never display values.

`image` reads one file, `series` a folder of files; both decode through `decoding`. Clauses are those
of DICOM 2024. This module loads no pydicom, so that telling a DICOM file from others stays cheap.
"""

from __future__ import annotations

from typing import Final

SIGNATURE_BYTES: Final = 132
# A DICOM data set without preamble starts with group 0002 or 0008, in either byte order.
_BARE: Final = (b"\x02\0", b"\x08\0", b"\0\x08")


def looks_like_dicom(start: bytes) -> bool:
    """Whether a file that begins with these `SIGNATURE_BYTES` is DICOM (PS3.10 7.1)."""
    return start[128:132] == b"DICM" or start.startswith(_BARE)
