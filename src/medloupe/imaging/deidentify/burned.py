"""What the header says about identifying text inside the pixels, which no attribute profile removes.

PS3.15 E.2 leaves burned-in text to the Clean Pixel Data Option. MedLoupe does not clean pixels: it
withholds what declares such text or is made of it, and flags what often has it.
"""

from __future__ import annotations

from typing import Final

from pydicom.dataset import Dataset

from medloupe.imaging.dicom.parse import text

_SR: Final = "1.2.840.10008.5.1.4.1.1.88."
_ENCAPSULATED: Final = "1.2.840.10008.5.1.4.1.1.104."
_CAPTURE: Final = "1.2.840.10008.5.1.4.1.1.7"
# Objects whose content is the identifying text, sound or list of files itself.
_REFUSED: Final = {
    "1.2.840.10008.1.3.10": "a DICOMDIR: it lists file names and patients; make a new one",
    "1.2.840.10008.5.1.4.1.1.66": "raw data, whose content nobody can check",
    "1.2.840.10008.5.1.4.1.1.9.4.1": "a recorded voice",
}
# Where scanners and consoles write names into the picture.
_WRITTEN_ON: Final = {
    "ES": "endoscopy",
    "GM": "general microscopy",
    "HC": "hard copy",
    "IVUS": "intravascular ultrasound",
    "OP": "ophthalmic photography",
    "OPT": "ophthalmic tomography",
    "OT": "other",
    "RF": "fluoroscopy",
    "SC": "secondary capture",
    "US": "ultrasound",
    "XA": "angiography",
    "XC": "photography",
}
_SCREENS: Final = ("SCREEN SAVE", "SCREEN_SAVE", "SCREENSHOT", "DOSE_INFO", "DOSE INFO", "SC")
_VIDEO: Final = "1.2.840.10008.1.2.4.10"  # MPEG-2, MPEG-4 and HEVC end in 100 to 108
_RENDERED: Final = ("CT", "MR", "PT")
_HEADS: Final = ("HEAD", "BRAIN", "SKULL", "FACE", "SINUS", "ORBIT", "NECK", "JAW")


def refusal(dataset: Dataset) -> str | None:
    """Why this kind of object is not de-identified at all; None where it can be."""
    kind = _class(dataset)
    if kind.startswith(_SR):
        return "a structured report: its content is text about the patient"
    if kind.startswith(_ENCAPSULATED) or "EncapsulatedDocument" in dataset:
        return "an encapsulated document (PDF, CDA, model): its content cannot be cleaned"
    return _REFUSED.get(kind)


def burned_in(dataset: Dataset) -> str | None:
    """Why the pixels must be expected to show text; None where nothing says so."""
    if (text(dataset, "BurnedInAnnotation") or "").upper() == "YES":
        return "Burned In Annotation is YES"
    kind = _class(dataset)
    if kind == _CAPTURE or kind.startswith(f"{_CAPTURE}."):
        return "a secondary capture: often a screen with names on it"
    values = {str(value).upper() for value in dataset.get("ImageType") or ()}
    if values.intersection(_SCREENS):
        return "the Image Type is that of a screen shot"
    return None


def warnings(dataset: Dataset) -> list[str]:
    """What a person should look at in the pixels of an image that is passed on."""
    found = []
    modality = (text(dataset, "Modality") or "").upper()
    if modality in _WRITTEN_ON and not text(dataset, "BurnedInAnnotation"):
        found.append(f"burned-in text is likely ({_WRITTEN_ON[modality]}) and not declared")
    if str(dataset.file_meta.get("TransferSyntaxUID", "")).startswith(_VIDEO):
        found.append("a video: its pictures, subtitles and sound were not looked at")
    if any(_overlay_in_pixels(dataset, group) for group in range(0x6000, 0x6020, 2)):
        found.append("an overlay lies in unused bits of the pixels and is still there")
    part = (text(dataset, "BodyPartExamined") or "").upper()
    if modality in _RENDERED and part in _HEADS:
        found.append("a head: the face may be recognisable in a 3D rendering")
    return found


def _overlay_in_pixels(dataset: Dataset, group: int) -> bool:
    """Whether an overlay has a bit position and no data of its own (PS3.5 8.1.2, retired)."""
    return (group, 0x0102) in dataset and (group, 0x3000) not in dataset


def _class(dataset: Dataset) -> str:
    """The SOP class, from the file meta information where the data set has none."""
    return str(dataset.get("SOPClassUID") or dataset.file_meta.get("MediaStorageSOPClassUID") or "")
