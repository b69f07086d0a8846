"""A folder of DICOM files: what belongs together, in which order, and everything that is wrong."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import numpy as np
import pydicom
import pytest
from by_path import loaded

from medloupe.data.adopt import adopt_rows
from medloupe.data.check import check_dataset
from medloupe.data.dataset import DatasetCard, write_dataset
from medloupe.errors import DataError, ImageError
from medloupe.imaging.dicom.arrange import SeriesPolicy
from medloupe.imaging.dicom.series import find_series, read_series, scan_series
from medloupe.imaging.read import read_image, read_ref, sha256_path
from medloupe.types import Conversation, ImageRef, Message, Record, Text

files = loaded(Path(__file__).with_name("dicom_files.py"))

AXIAL, CORONAL = [1, 0, 0, 0, 1, 0], [1, 0, 0, 0, 0, -1]


def slice_at(
    folder: Path, position: list[float], value: int, *, series: str = "1.2.3", **elements: object
) -> Path:
    """One slice of 2 rows and 3 columns of `value`, whose name and Instance Number mean nothing."""
    folder.mkdir(exist_ok=True, parents=True)
    number = len(list(folder.iterdir()))
    name = f"{random.Random(value * 31 + number).randrange(10**6):06}.dcm"
    base = {
        "Modality": "MR",
        "SeriesInstanceUID": series,
        "StudyInstanceUID": "1.2",
        "FrameOfReferenceUID": "1.9",
        "ImagePositionPatient": position,
        "ImageOrientationPatient": AXIAL,
        "PixelSpacing": [2, 0.5],
        "SliceThickness": 9,
        "InstanceNumber": 1000 - value,
    }
    pixels = np.full((2, 3), value, np.uint16)
    return files.write(folder, pixels, name=name, **base | elements)


def stack(folder: Path, places: list[float], **elements: object) -> Path:
    """Axial slices at these heights; the slice at height z holds 10 z."""
    for z in places:
        slice_at(folder, [-10, -20, z], int(10 * z), **elements)
    return folder


def values(array: np.ndarray) -> list[float]:
    return array[:, 0, 0].tolist()


def test_slices_are_sorted_by_place_and_by_nothing_else(tmp_path):
    folder = stack(tmp_path / "s", [5, 0, 10, 2.5, 7.5])
    image, report = read_series(folder)
    assert values(image.array) == [0, 25, 50, 75, 100]
    assert image.array.shape == (5, 2, 3)
    assert image.affine is not None
    # LPS to RAS: columns 0.5 mm to the left, rows 2 mm to the back, slices 2.5 mm up
    assert image.affine.tolist() == [[-0.5, 0, 0, 10], [0, -2, 0, 20], [0, 0, 2.5, 0], [0, 0, 0, 1]]
    assert image.spacing == (2.5, 2, 0.5)
    assert report.positions == (0, 2.5, 5, 7.5, 10)
    assert report.step == 2.5
    assert report.findings == ()
    by_place = {pydicom.dcmread(f).ImagePositionPatient[2]: str(f) for f in folder.iterdir()}
    assert report.files == tuple(by_place[z] for z in report.positions)
    assert image.source is not None
    assert (image.source.uri, image.source.series) == (str(folder), "1.2.3")


def test_sagittal_slices_are_sorted_along_their_own_normal(tmp_path):
    # columns run to the back (P), rows down (I): the normal points to the patient's right (LPS -x)
    for x in (3, -1, 1):
        slice_at(tmp_path, [x, 0, 0], x + 10, ImageOrientationPatient=[0, 1, 0, 0, 0, -1])
    image, report = read_series(tmp_path)
    assert values(image.array) == [13, 11, 9]
    assert report.positions == (-3, -1, 1)
    assert image.affine is not None
    assert image.affine[:3, 2].tolist() == [2, 0, 0]  # to the right: RAS +x
    assert image.affine[:3, 3].tolist() == [-3, 0, 0]


def test_read_image_and_read_ref_take_a_folder(tmp_path):
    folder = stack(tmp_path / "s", [4, 0, 2])
    assert values(read_image(folder, kind="volume").array) == [0, 20, 40]
    third = read_image(folder, frame=2)
    assert third.array.shape == (1, 2, 3)
    assert third.array[0, 0, 0] == 40
    assert third.affine is not None
    assert third.affine[2, 3] == 4
    with pytest.raises(ImageError, match="holds 3 slices, and one is asked for"):
        read_image(folder)
    with pytest.raises(ImageError, match="no frame 3"):
        read_image(folder, frame=3)
    ref = ImageRef(uri="s", kind="volume", sha256=sha256_path(folder), series="1.2.3")
    image = read_ref(ref, tmp_path)
    assert image.source == ref
    stack(folder, [6])
    with pytest.raises(ImageError, match="SHA-256"):
        read_ref(ref, tmp_path)


def test_several_series_in_one_folder_need_a_choice(tmp_path):
    stack(tmp_path / "a", [0, 1], series="1.2.3", SeriesDescription="T1")
    stack(tmp_path / "b" / "c", [0, 1, 2], series="1.2.4")
    (tmp_path / "notes.txt").write_text("hello")
    (tmp_path / ".DS_Store").write_bytes(b"x")
    shutil.copy(files.real("rtplan.dcm"), tmp_path / "plan.dcm")
    first, second = find_series(tmp_path)
    assert (first.uid, first.frames, first.description, first.size) == ("1.2.3", 2, "T1", (3, 2))
    assert (second.uid, len(second.files), second.modality) == ("1.2.4", 3, "MR")
    others = {path.name: why for path, why in scan_series(tmp_path).others}
    assert others == {"notes.txt": "not DICOM", "plan.dcm": "DICOM without image (RTPLAN)"}
    with pytest.raises(ImageError, match=r"holds 2 series: 1\.2\.3 \(MR T1, 2 files.*series="):
        read_series(tmp_path)
    with pytest.raises(ImageError, match=r"no series '1\.2\.5'"):
        read_image(tmp_path, kind="volume", series="1.2.5")
    image, report = read_series(tmp_path, series="1.2.4")
    assert values(image.array) == [0, 10, 20]
    assert [Path(file).name for file, _ in report.skipped] == ["notes.txt", "plan.dcm"]
    assert read_image(tmp_path, kind="volume", series="1.2.3").array.shape[0] == 2


def test_a_gap_is_an_error_and_never_a_regular_grid(tmp_path):
    folder = stack(tmp_path / "s", [0, 1, 2, 4, 5])
    below = next(f for f in folder.iterdir() if pydicom.dcmread(f).ImagePositionPatient[2] == 2)
    with pytest.raises(ImageError, match=r"usual step is 1\.00 mm.*longer \(2\.00 mm\)") as caught:
        read_series(folder)
    assert below.name in str(caught.value)
    image, report = read_series(folder, policy=SeriesPolicy(gaps="note"))
    assert image.affine is None
    assert values(image.array) == [0, 10, 20, 40, 50]
    assert report.of("gaps")[0].files == (below.name,)
    assert "slices are missing" in image.attributes["series_gaps"]


def test_uneven_steps_are_noted_and_leave_no_affine(tmp_path):
    image, report = read_series(stack(tmp_path / "s", [0, 1, 2.3, 3]))
    assert image.affine is None
    assert "unevenly spaced" in report.of("uneven")[0].message
    with pytest.raises(ImageError, match="unevenly"):
        read_series(tmp_path / "s", policy=SeriesPolicy(uneven="error"))
    # positions written with one decimal are still a grid
    rounded, report = read_series(stack(tmp_path / "t", [0, 1.3, 2.5, 3.8, 5.0]))
    assert report.findings == ()
    assert rounded.affine is not None
    assert rounded.affine[2, 2] == pytest.approx(1.25, abs=0.01)


def test_a_tilted_gantry_shears_the_affine(tmp_path):
    for k in range(4):  # each slice 1 mm up and 0.5 mm to the back
        slice_at(tmp_path, [0, 0.5 * k, k], k)
    image, report = read_series(tmp_path)
    assert image.affine is not None
    assert np.allclose(image.affine[:3, 2], [0, -0.5, 1])
    assert "26.6 degrees" in report.of("tilt")[0].message  # atan(0.5)


def test_copies_are_dropped_and_named(tmp_path):
    folder = stack(tmp_path / "s", [0, 1, 2])
    slice_at(folder, [-10, -20, 1], 10)
    image, report = read_series(folder)
    assert values(image.array) == [0, 10, 20]
    assert len(report.of("duplicates")[0].files) == 1
    with pytest.raises(ImageError, match="1 images repeat another"):
        read_series(folder, policy=SeriesPolicy(duplicates="error"))


def test_different_images_of_one_place_that_nothing_tells_apart(tmp_path):
    folder = stack(tmp_path / "s", [0, 1, 2])
    extra = slice_at(folder, [-10, -20, 1], 99)
    with pytest.raises(ImageError, match="no element tells them apart") as caught:
        read_series(folder)
    assert extra.name in str(caught.value)


def test_echoes_need_a_choice(tmp_path):
    for echo, offset in (("4.92", 1), ("2.46", 0), ("10.1", 2)):
        for z in (2, 0, 1):
            slice_at(tmp_path, [0, 0, z], 10 * z + offset, EchoTime=echo)
    message = (
        r"each of the 3 places holds 3 images, which differ in EchoTime \(2\.46, 4\.92, 10\.1\)"
    )
    with pytest.raises(ImageError, match=message + r".*frame=0 to frame=2"):
        read_series(tmp_path)
    for repeat in range(3):
        image, _ = read_series(tmp_path, repeat=repeat)
        assert values(image.array) == [repeat, 10 + repeat, 20 + repeat]
    assert values(read_image(tmp_path, kind="volume", frame=1).array) == [1, 11, 21]
    with pytest.raises(ImageError, match="there is no repeat 3"):
        read_series(tmp_path, repeat=3)


def test_time_points_and_a_missing_one(tmp_path):
    for minute in (1, 2):
        for z in (0, 1):
            slice_at(
                tmp_path, [0, 0, z], 10 * z + minute, AcquisitionTime=f"1{z}{minute}000.000000"
            )
    image, _ = read_series(tmp_path, repeat=1)
    assert values(image.array) == [2, 12]
    slice_at(tmp_path, [0, 0, 2], 21, AcquisitionTime="121000.000000")
    with pytest.raises(ImageError, match=r"up to 2 images.*AcquisitionTime.*but 1 of 3 hold fewer"):
        read_series(tmp_path, repeat=0)


def test_localizers_are_left_out_and_named(tmp_path):
    folder = stack(tmp_path / "s", [0, 1, 2])
    scout = slice_at(
        folder,
        [0, 0, 0],
        7,
        ImageOrientationPatient=CORONAL,
        ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"],
    )
    image, report = read_series(folder)
    assert image.array.shape[0] == 3
    assert report.of("localizers")[0].files == (scout.name,)


@pytest.mark.parametrize(
    ("kind", "elements", "message"),
    [
        ("orientations", {"ImageOrientationPatient": CORONAL}, "2 orientations or pixel spacings"),
        ("orientations", {"PixelSpacing": [3, 3]}, "2 orientations or pixel spacings"),
        ("references", {"FrameOfReferenceUID": "1.8"}, "2 frames of reference"),
        ("positions", {"ImagePositionPatient": None}, "1 of 4 images say neither where"),
        ("sizes", {"Rows": 1, "data": b"\0" * 6}, r"2 image sizes.*3 x 2 in 3, 3 x 1 in 1"),
    ],
)
def test_a_stranger_among_the_slices_is_named(tmp_path, kind, elements, message):
    folder = stack(tmp_path / "s", [0, 1, 2])
    stranger = slice_at(folder, [-10, -20, 3], 30, **elements)
    with pytest.raises(ImageError, match=message) as caught:
        read_series(folder)
    assert stranger.name in str(caught.value)
    assert f'SeriesPolicy({kind}="note")' in str(caught.value)
    image, report = read_series(folder, policy=SeriesPolicy(**{kind: "note"}))
    assert values(image.array) == [0, 10, 20]
    assert report.of(kind)[0].files == (stranger.name,)


def test_files_without_any_place_are_not_sorted_by_name(tmp_path):
    stack(tmp_path / "s", [0, 1], ImagePositionPatient=None)
    with pytest.raises(
        ImageError, match=r"none of the 2 images says where it lies.*names do not count"
    ):
        read_series(tmp_path / "s")


def test_broken_files_of_a_series(tmp_path):
    folder = stack(tmp_path / "s", [0, 1, 2, 3])
    cut = sorted(folder.iterdir())[0]
    whole = cut.read_bytes()
    cut.write_bytes(whole[:-4])  # the pixels are short
    with pytest.raises(ImageError, match="broken or truncated") as caught:
        read_series(folder)
    assert caught.value.fault.file == str(cut)
    rows = whole.index(b"\x28\x00\x10\x00US")
    cut.write_bytes(whole[:rows])  # cut off before Rows
    with pytest.raises(ImageError, match="CT Image without Rows") as caught:
        read_series(folder)
    assert caught.value.fault.file == str(cut)
    with pytest.raises(ImageError, match="no DICOM image here"):
        read_series([cut])
    with pytest.raises(ImageError, match="no such folder"):
        find_series(tmp_path / "nowhere")


def test_rescale_differs_between_slices(tmp_path):
    # PET: each slice has its own slope (PS3.3 C.8.9.1)
    for k in range(3):
        slice_at(tmp_path, [0, 0, k], 10, Modality="PT", RescaleSlope=k + 1, RescaleIntercept=0)
    image, _ = read_series(tmp_path)
    assert values(image.array) == [10, 20, 30]


def test_slices_in_different_units_are_refused(tmp_path):
    for k in range(2):
        slice_at(tmp_path, [0, 0, k], 10, RescaleSlope=1, RescaleType=("HU", "US")[k])
    with pytest.raises(ImageError, match=r"different units: HU \(.*, stored \("):
        read_series(tmp_path)


def test_enhanced_files_are_part_of_a_series_frame_by_frame(tmp_path):
    def enhanced(name: str, places: list[float]) -> None:
        frames = [
            files.item(PlanePositionSequence=files.sequence(ImagePositionPatient=[0, 0, z]))
            for z in places
        ]
        shared = files.item(
            PixelMeasuresSequence=files.sequence(PixelSpacing=[1, 1], SliceThickness=1),
            PlaneOrientationSequence=files.sequence(ImageOrientationPatient=AXIAL),
        )
        pixels = (np.array(places) * 10).astype(np.uint16)[:, None, None] * np.ones((1, 2, 2), "u2")
        files.write(
            tmp_path,
            pixels.astype(np.uint16),
            name=name,
            SeriesInstanceUID="1.2.3",
            SharedFunctionalGroupsSequence=[shared],
            PerFrameFunctionalGroupsSequence=frames,
        )

    enhanced("a.dcm", [3, 1])
    enhanced("b.dcm", [0, 2])
    image, report = read_series(tmp_path)
    assert values(image.array) == [0, 10, 20, 30]
    assert [Path(file).name for file in report.files] == [
        "b.dcm frame 0",
        "a.dcm frame 1",
        "b.dcm frame 1",
        "a.dcm frame 0",
    ]


def test_the_hash_of_a_folder_is_that_of_its_content(tmp_path):
    folder = stack(tmp_path / "s", [0, 1])
    before = sha256_path(folder)
    one = sorted(folder.iterdir())[0]
    one.rename(folder / "renamed.dcm")
    (folder / ".DS_Store").write_bytes(b"x")
    assert sha256_path(folder) == before
    assert sha256_path(shutil.copytree(folder, tmp_path / "copy")) == before
    data = bytearray((folder / "renamed.dcm").read_bytes())
    data[-1] ^= 1
    (folder / "renamed.dcm").write_bytes(data)
    assert sha256_path(folder) != before


def question(uri: str, **fields: object) -> Conversation:
    ref = ImageRef(uri=uri, kind="volume", series="1.2.3", **fields)  # type: ignore[arg-type]
    return Conversation(
        id="q",
        patient_id="p",
        split="train",
        messages=(
            Message(role="user", content=(ref, Text(text="What?"))),
            Message(role="assistant", content=(Text(text="A head."),)),
        ),
    )


def test_a_series_is_a_row_of_a_data_set(tmp_path):
    source = tmp_path / "source"
    stack(source / "study" / "s", [2, 0, 1])
    out = tmp_path / "out"
    record = Record(id="r", patient_id="p", images=(ImageRef(uri="study/s", kind="volume"),))
    rows, records = adopt_rows(
        [question("study/s")],
        [record],
        source=source,
        out=out,
        images="copy",
        progress=lambda *_: None,
        folder="images",
    )
    write_dataset(out, DatasetCard(name="mine", languages=("en",)), rows, records)
    ref = rows[0].images[0]
    assert ref.uri == "images/study/s"
    assert ref.sha256 == sha256_path(source / "study" / "s")
    assert values(read_ref(ref, out).array) == [0, 10, 20]
    assert check_dataset(out).faults == ()
    # again: nothing is copied twice; after a change it is what the source holds
    stack(source / "study" / "s", [3])
    again, _ = adopt_rows(
        [question("study/s")],
        [],
        source=source,
        out=out,
        images="copy",
        progress=lambda *_: None,
        folder="images",
    )
    assert read_ref(again[0].images[0], out).array.shape[0] == 4
    assert [str(f.rule)[:20] for f in check_dataset(out).faults] == ["the file is not the "] * 2
    with pytest.raises(DataError, match="not the one the row means"):
        adopt_rows(
            [question("study/s", sha256="0" * 64)],
            [],
            source=source,
            out=tmp_path / "other",
            images="reference",
            progress=lambda *_: None,
        )


def test_check_names_a_faulty_series(tmp_path):
    stack(tmp_path / "s", [0, 1, 3, 4])
    write_dataset(tmp_path, DatasetCard(name="mine"), [question("s")])
    (fault,) = check_dataset(tmp_path).faults
    assert "slices are missing" in fault.rule
    assert fault.row == "q"


def test_the_real_series_is_what_itk_makes_of_it(shared_data):
    itk = pytest.importorskip("SimpleITK")
    folder = shared_data / "studyforrest_t1" / "dicom_series"
    image, report = read_series(folder)
    assert len(report.files) == 24
    reader = itk.ImageSeriesReader()
    reader.SetFileNames(itk.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder)))
    theirs = reader.Execute()
    assert np.array_equal(image.array, itk.GetArrayFromImage(theirs).astype(np.float32))
    direction = np.array(theirs.GetDirection()).reshape(3, 3)
    affine = np.eye(4)
    affine[:3, :3] = direction * np.array(theirs.GetSpacing())
    affine[:3, 3] = theirs.GetOrigin()
    affine[:2] *= -1  # LPS to RAS
    assert image.affine is not None
    assert np.allclose(image.affine, affine, atol=1e-4)


def test_the_real_series_is_the_same_head_as_its_nifti(shared_data, tmp_path):
    """24 slices of 2/3 mm, of 384, are 12 of the NIfTI, which was halved along all axes.

    That NIfTI's header turns the head by half a turn about its long axis (the DICOM series and the
    face in the picture agree against it), so rows and columns are compared reversed.
    """
    folder = shared_data / "studyforrest_t1" / "dicom_series"
    shuffled = tmp_path / "s"
    shuffled.mkdir()
    for number, file in enumerate(sorted(folder.iterdir(), key=lambda f: f.name[::-1])):
        shutil.copy(file, shuffled / f"{number:03}.dcm")
    array = read_image(shuffled, kind="volume").array
    head = read_image(shared_data / "studyforrest_t1" / "t1_half.nii.gz", kind="volume").array
    halved = array.reshape(12, 2, 192, 2, 137, 2).mean(axis=(1, 3, 5))[:, ::-1, ::-1]
    twelve = head[90:102]  # Instance Numbers 181 to 204

    def likeness(one: np.ndarray) -> float:
        return float(np.corrcoef(one.ravel(), twelve.ravel())[0, 1])

    assert likeness(halved) > 0.999
    off = (halved - twelve)[twelve < head.max()]  # the NIfTI holds integers, the brightest cut off
    assert off.min() >= 0
    assert off.max() < 1
    for turned in (halved[::-1], halved[:, ::-1], halved[:, :, ::-1]):
        assert likeness(turned) < 0.995


@pytest.mark.parametrize(
    ("keyword", "one", "other"),
    [("PatientID", "ANNA-1", "BEN-2"), ("StudyInstanceUID", "1.2", "1.7")],
)
def test_slices_of_two_patients_are_never_one_volume(tmp_path, keyword, one, other):
    folder = stack(tmp_path / "s", [0, 1], **{keyword: one})
    stack(folder, [2, 3], **{keyword: other})
    slice_at(folder, [-10, -20, 4], 40, PatientID="")  # an empty one speaks against nobody
    names = {
        pydicom.dcmread(f).get(keyword): f.name for f in sorted(folder.iterdir(), reverse=True)
    }
    with pytest.raises(ImageError, match=rf"{keyword} differs") as caught:
        read_image(folder, kind="volume")
    assert names[one] in str(caught.value)
    assert names[other] in str(caught.value)
    assert "ANNA" not in str(caught.value)
    with pytest.raises(ImageError, match=rf"{keyword} differs"):
        read_image(folder, frame=0)
    image, report = read_series(folder, policy=SeriesPolicy(patients="note"))
    assert len(image.array) == 5
    assert [len(finding.files) for finding in report.of("patients")] == [2]


def test_remedies_also_say_what_to_write_in_a_table(tmp_path):
    folder = stack(tmp_path / "s", [0, 1, 2])
    stack(folder, [0, 1, 2], series="1.2.4")
    with pytest.raises(ImageError, match="in a table, the column series"):
        read_image(folder, kind="volume")
    gap = stack(tmp_path / "gap", [0, 1, 2, 3, 7])
    with pytest.raises(ImageError, match="name single files of it in the table"):
        read_image(gap, kind="volume")
    echoes = stack(tmp_path / "echoes", [0, 1], EchoTime="10")
    for z in (0, 1):
        slice_at(echoes, [-10, -20, z], 99, EchoTime="20")
    with pytest.raises(ImageError, match="in a table: the columns volume and frame"):
        read_image(echoes, kind="volume")
