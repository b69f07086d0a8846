"""How the file wants its grey values shown (PS3.3 C.11.2): a table, or a window and its function.

Nothing is applied here; `windows` shows. Where a file has both, the table is taken, as pydicom and
most viewers do: devices that send one (mammography) mean it.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from pydicom.dataset import Dataset

from medloupe.imaging.dicom.parse import first, text
from medloupe.imaging.dicom.tables import table_of
from medloupe.imaging.windows import SIGMOID
from medloupe.types import VoiTable


@dataclass(frozen=True, kw_only=True)
class Voi:
    """What a frame says about its display; `attributes` are those of `MedicalImage`."""

    window: tuple[float, float] | None = None
    table: VoiTable | None = None
    attributes: dict[str, str] = field(default_factory=dict)


def voi_of(voi: Dataset, *, signed: bool, little: bool, name: str) -> Voi:
    """The first table of VOI LUT Sequence and the first window of the data set `voi`.

    LINEAR_EXACT (PS3.3 C.11.2.1.3.2) runs from c - w/2 to c + w/2, which is LINEAR of
    (c + 0.5, w + 1). `signed` says whether the values shown may be negative.

    Raises:
        ImageError: a table that does not fit its descriptor.
    """
    table = None
    if voi.get("VOILUTSequence"):
        found = table_of(voi.VOILUTSequence[0], signed=signed, little=little, name=name)
        brightest = (1 << found.bits) - 1
        shown = found.entries.astype(np.float32) * np.float32(255 / brightest)
        table = VoiTable(first=found.first, shown=shown)
    centre, width = first(voi, "WindowCenter"), first(voi, "WindowWidth")
    if centre is None or width is None:
        return Voi(table=table)
    function = text(voi, "VOILUTFunction") or "LINEAR"
    narrowest = 1.0 if function == "LINEAR" else 0.0  # PS3.3 C.11.2.1.2.1, C.11.2.1.3
    if not np.isfinite([centre, width]).all() or width < narrowest or width == 0:
        said = {"voi": f"window width {width:g} is not valid, not applied"}
        return Voi(table=table, attributes=said)
    if function == "LINEAR_EXACT":
        return Voi(window=(centre + 0.5, width + 1), table=table)
    attributes = {SIGMOID: "true"} if function == "SIGMOID" else {}
    return Voi(window=(centre, width), table=table, attributes=attributes)
