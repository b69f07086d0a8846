"""Whose image a DICOM file is, as its header says: read without pixels, for comparing many files."""

from __future__ import annotations

from pathlib import Path

import pydicom

from medloupe.imaging.dicom import SIGNATURE_BYTES, looks_like_dicom
from medloupe.imaging.dicom.parse import BROKEN, text
from medloupe.imaging.files import folder_files

# Names that no DICOM file bears; they need not be opened.
_OTHERS = (
    *(".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp"),
    *(".nii", ".gz", ".nrrd", ".nhdr", ".npy"),
)
# What de-identification leaves in the place of a Patient ID; it is nobody's.
_NOBODY = frozenset(
    (
        *("anonymous", "anonymized", "anonymised", "anon", "deidentified", "de-identified"),
        *("unknown", "none", "removed", "patient", "patientid", "id", "0"),
    )
)


def patient_and_series(path: Path) -> tuple[str | None, str | None]:
    """Patient ID (0010,0020) and Series Instance UID (0020,000E) of a file, or of the first file of a
    series folder; None where there is none or it says nothing. Never raises for what is in a file."""
    if path.is_dir():
        files = folder_files(path)
        return patient_and_series(files[0]) if files else (None, None)
    if path.name.lower().endswith(_OTHERS):
        return None, None
    try:
        with path.open("rb") as stream:
            if not looks_like_dicom(stream.read(SIGNATURE_BYTES)):
                return None, None
        header = pydicom.dcmread(
            path,
            stop_before_pixels=True,
            force=True,
            specific_tags=["SpecificCharacterSet", "PatientID", "SeriesInstanceUID"],
        )
        patient, series = text(header, "PatientID"), text(header, "SeriesInstanceUID")
    except BROKEN:
        return None, None
    if patient is not None and (not patient.strip() or patient.strip().casefold() in _NOBODY):
        patient = None
    return patient and patient.strip(), series or None
