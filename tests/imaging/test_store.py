"""Decode once: the same values as without a store, and never those of anything else."""

from __future__ import annotations

import dataclasses
import json
import os
import pickle
import time
from pathlib import Path

import nibabel
import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom import Dataset
from pydicom.data import get_testdata_file

from medloupe.config import Config
from medloupe.errors import ImageError
from medloupe.imaging import store as store_module
from medloupe.imaging.read import read_ref, sha256_file, sha256_path
from medloupe.imaging.store import DecodedStore
from medloupe.imaging.transforms import ImageTransform, Window
from medloupe.imaging.workers import SERIAL
from medloupe.types import ImageRef, MedicalImage, VoiTable

SMALL = ImageTransform(size=32)


def dicom(name: str, **fields) -> ImageRef:
    path = get_testdata_file(name, download=False)
    assert path is not None
    return ImageRef(uri=path, **fields)


def picture(folder: Path, seed: int, name: str = "a.png") -> ImageRef:
    """A PNG of noise; all are of one size on disk."""
    pixels = np.random.default_rng(seed).integers(0, 256, (40, 30), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / name, compress_level=0)
    return ImageRef(uri=name)


def same(stored: MedicalImage, plain: MedicalImage) -> bool:
    """Every field equal, to the bit; a field that this does not know fails."""
    for field in dataclasses.fields(MedicalImage):
        one, other = getattr(stored, field.name), getattr(plain, field.name)
        if isinstance(one, VoiTable) and isinstance(other, VoiTable):
            assert one.first == other.first
            one, other = one.shown, other.shown
        if isinstance(one, np.ndarray) and isinstance(other, np.ndarray):
            if (one.dtype, one.shape) != (other.dtype, other.shape):
                return False
            one, other = one.tobytes(), other.tobytes()
        if one != other:
            return False
    return True


@pytest.fixture
def volume(tmp_path) -> ImageRef:
    voxels = np.random.default_rng(0).normal(size=(5, 6, 7)).astype(np.float32)
    voxels[0, 0, 0] = np.nan
    oblique = np.array([[1, 0.1, 0, 3], [-0.1, 2, 0, 4], [0, 0, 1 / 3, 5], [0, 0, 0, 1]])
    nibabel.save(nibabel.Nifti1Image(voxels, oblique), tmp_path / "v.nii.gz")
    return ImageRef(uri=str(tmp_path / "v.nii.gz"), kind="volume", modality="CT")


@pytest.mark.parametrize(
    "ref",
    [
        dicom("CT_small.dcm"),
        dicom("examples_palette.dcm"),
        dicom("rtdose.dcm", frame=4),
        dicom("rtdose.dcm", kind="volume"),
    ],
    ids=["CT", "palette", "frame", "frames"],
)
def test_values_are_those_without_a_store(tmp_path, ref):
    plain = read_ref(ref, Path())
    for _ in range(2):  # the second store is another run
        store = DecodedStore(tmp_path)
        for _ in range(2):
            assert same(store.image(ref, Path()), plain)
            view = store.view(ref, Path(), SMALL)
            assert np.array_equal(SMALL.normalise(view.display), SMALL.apply(plain))
            depth = (len(plain.array),) if ref.kind == "volume" else ()
            assert view.size == (*plain.size, *depth)


def test_a_voi_table(tmp_path):
    whole = pydicom.dcmread(get_testdata_file("CT_small.dcm", download=False))
    table = Dataset()
    table.LUTDescriptor = [4096, 0, 16]
    table.LUTData = (np.arange(4096) * 7 % 4096).astype(np.uint16).tobytes()
    table["LUTData"].VR = "OW"
    table["LUTDescriptor"].VR = "US"
    whole.VOILUTSequence = [table]
    whole.save_as(tmp_path / "a.dcm")
    ref = ImageRef(uri="a.dcm")
    plain = read_ref(ref, tmp_path)
    assert plain.voi_table is not None
    DecodedStore(tmp_path / "s").image(ref, tmp_path)
    store = DecodedStore(tmp_path / "s")
    assert same(store.image(ref, tmp_path), plain)
    assert np.array_equal(store.view(ref, tmp_path, SMALL).display, SMALL.display(plain))


def test_a_volume_with_an_oblique_affine_and_nan(tmp_path, volume):
    plain = read_ref(volume, Path())
    DecodedStore(tmp_path / "s").image(volume, Path())
    stored = DecodedStore(tmp_path / "s").image(volume, Path())
    assert same(stored, plain)
    assert stored.units == "HU"


def test_arrays_are_read_only_maps(tmp_path, volume):
    store = DecodedStore(tmp_path / "s")
    for _ in range(2):
        assert not store.image(volume, Path()).array.flags.writeable
        assert not store.view(volume, Path(), SMALL).display.flags.writeable
    first, second = (store.image(volume, Path()).array for _ in range(2))
    assert np.shares_memory(first, second)


def test_a_series_is_its_files(tmp_path):
    """Renaming a slice changes nothing; exchanging or adding one does."""
    folder = tmp_path / "series"
    whole = pydicom.dcmread(get_testdata_file("CT_small.dcm", download=False))
    folder.mkdir()

    def write(number: int, name: str, shift: int = 0) -> None:
        whole.SOPInstanceUID = whole.file_meta.MediaStorageSOPInstanceUID = f"1.2.3.{number}"
        whole.ImagePositionPatient = [0, 0, 5 * number]
        whole.InstanceNumber = number
        whole.PixelData = (whole.pixel_array + shift).tobytes()
        whole.save_as(folder / name)

    for number in range(3):
        write(number, f"{number}.dcm")
    ref = ImageRef(uri="series", kind="volume")
    store = DecodedStore(tmp_path / "s")
    assert same(store.image(ref, tmp_path), read_ref(ref, tmp_path))
    used = store.blobs.bytes_used()
    (folder / "0.dcm").rename(folder / "z.dcm")
    assert same(store.image(ref, tmp_path), read_ref(ref, tmp_path))
    assert store.blobs.bytes_used() - used < 5000  # no pixels
    write(1, "1.dcm", shift=3)
    assert same(store.image(ref, tmp_path), read_ref(ref, tmp_path))
    write(3, "3.dcm")
    assert store.image(ref, tmp_path).array.shape[0] == 4
    digest = sha256_path(folder)
    claimed = ref.model_copy(update={"sha256": digest})
    assert same(store.image(claimed, tmp_path), read_ref(claimed, tmp_path))
    write(3, "3.dcm", shift=1)
    for _ in range(2):  # the second time its pixels are stored
        with pytest.raises(ImageError, match="SHA-256"):
            store.image(claimed, tmp_path)
        assert same(store.image(ref, tmp_path), read_ref(ref, tmp_path))


def test_frames_kinds_and_modalities_are_kept_apart(tmp_path, volume):
    store = DecodedStore(tmp_path / "s")
    refs = [
        volume,
        volume.model_copy(update={"modality": "MR"}),
        *(volume.model_copy(update={"kind": "image", "frame": k}) for k in range(7)),
    ]
    for _ in range(2):
        assert all(same(store.image(ref, Path()), read_ref(ref, Path())) for ref in refs)


class Upside(Config):
    """Has the JSON form of `Downside`."""

    size: int = 4

    def display(self, image: MedicalImage) -> np.ndarray:
        return np.full((3, self.size, image.size[1]), 1, dtype=np.float32)


class Downside(Upside):
    def display(self, image: MedicalImage) -> np.ndarray:
        return -super().display(image)


def test_transforms_never_mix(tmp_path):
    ref, plain = dicom("CT_small.dcm"), read_ref(dicom("CT_small.dcm"), Path())
    transforms = [
        SMALL,
        SMALL.model_copy(update={"window": Window(mode="lung")}),
        SMALL.model_copy(update={"fit": "crop"}),
        SMALL.model_copy(update={"std": (0.5, 0.5, 0.5)}),
        Upside(),
        Downside(),
    ]
    for _ in range(2):
        store = DecodedStore(tmp_path)
        for transform in transforms:
            view = store.view(ref, Path(), transform)
            assert np.array_equal(view.display, transform.display(plain))


def test_other_code_reads_again(tmp_path, monkeypatch):
    ref = dicom("CT_small.dcm")
    store = DecodedStore(tmp_path)
    store.image(ref, Path())
    used = store.blobs.bytes_used()
    monkeypatch.setattr(store_module, "_code", lambda: "pydicom 99")
    store.image(ref, Path())
    assert store.blobs.bytes_used() >= 2 * used


@pytest.mark.parametrize("always_hash", [False, True])
def test_a_changed_file_is_never_served_stale(tmp_path, always_hash):
    """The same path, size and mtime, other pixels."""
    store = DecodedStore(tmp_path / "s", always_hash=always_hash)
    ref = picture(tmp_path, 0)
    stat = (tmp_path / "a.png").stat()
    for seed in (0, 1, 2, 0):
        picture(tmp_path, seed, "new.png")
        (tmp_path / "new.png").replace(tmp_path / "a.png")
        os.utime(tmp_path / "a.png", ns=(stat.st_mtime_ns, stat.st_mtime_ns))
        assert (tmp_path / "a.png").stat().st_size == stat.st_size
        assert same(store.image(ref, tmp_path), read_ref(ref, tmp_path))
        plain = SMALL.display(read_ref(ref, tmp_path))
        assert np.array_equal(store.view(ref, tmp_path, SMALL).display, plain)


def test_what_is_remembered_of_a_file(tmp_path, monkeypatch):
    """Trusted at once (no two seconds), a change still shows: by inode, by ctime, by the ref."""
    monkeypatch.setattr(store_module, "_RACY_NS", 0)
    store = DecodedStore(tmp_path / "s")
    ref, path = picture(tmp_path, 0), tmp_path / "a.png"
    digest, before = sha256_file(path), path.stat()
    store.image(ref, tmp_path)
    picture(tmp_path, 1, "new.png")
    os.utime(tmp_path / "new.png", ns=(before.st_mtime_ns, before.st_mtime_ns))
    (tmp_path / "new.png").replace(path)
    assert same(store.image(ref, tmp_path), read_ref(ref, tmp_path))
    before = path.stat()
    while path.stat().st_ctime_ns == before.st_ctime_ns:  # until the clock ticks
        picture(tmp_path, 2)
        os.utime(path, ns=(before.st_mtime_ns, before.st_mtime_ns))
    after = path.stat()
    assert (after.st_ino, after.st_size, after.st_mtime_ns) == (
        before.st_ino,
        before.st_size,
        before.st_mtime_ns,
    )
    assert same(store.image(ref, tmp_path), read_ref(ref, tmp_path))
    with pytest.raises(ImageError, match="SHA-256"):
        store.image(ref.model_copy(update={"sha256": digest}), tmp_path)


def test_a_file_that_changes_between_hash_and_read(tmp_path, monkeypatch):
    """Its pixels are not kept under the hash of those that were there before."""
    store = DecodedStore(tmp_path / "s")
    ref = picture(tmp_path, 0)

    def late(ref: ImageRef, root: Path) -> MedicalImage:
        picture(tmp_path, 1)
        return read_ref(ref, root)

    monkeypatch.setattr(store_module, "read_ref", late)
    with pytest.raises(ImageError, match="changed while it was read") as caught:
        store.image(ref, tmp_path)
    assert caught.value.fault.file == str(tmp_path / "a.png")
    monkeypatch.undo()
    picture(tmp_path, 0)
    assert same(store.image(ref, tmp_path), read_ref(ref, tmp_path))


def test_equal_files_are_one_blob(tmp_path):
    (tmp_path / "b").mkdir()
    first, second = picture(tmp_path, 0), picture(tmp_path, 0, "b/c.png")
    store = DecodedStore(tmp_path / "s")
    store.image(first, tmp_path)
    used = store.blobs.bytes_used()
    stored = store.image(second, tmp_path)
    assert stored.source == second
    assert store.blobs.bytes_used() - used < 1000  # no pixels


def test_an_old_file_is_hashed_once(tmp_path, monkeypatch):
    ref = dicom("CT_small.dcm")  # installed long before this test
    hashed: list[Path] = []

    def watched(path: Path) -> str:
        hashed.append(path)
        return sha256_file(path)

    monkeypatch.setattr(store_module, "sha256_file", watched)
    for _ in range(3):
        DecodedStore(tmp_path).view(ref, Path(), SMALL)
    assert hashed == [Path(ref.uri)]
    monkeypatch.setattr(store_module, "_RACY_NS", 10**19)  # now it is too new to be trusted
    for _ in range(2):
        DecodedStore(tmp_path / "new").view(ref, Path(), SMALL)
    assert len(hashed) > 2
    monkeypatch.undo()
    hashed.clear()
    monkeypatch.setattr(store_module, "sha256_file", watched)
    DecodedStore(tmp_path, always_hash=True).view(ref, Path(), SMALL)
    assert len(hashed) == 1
    claimed = ref.model_copy(update={"sha256": sha256_file(Path(ref.uri))})
    DecodedStore(tmp_path / "other").view(claimed, Path(), SMALL)  # the reader compares it
    DecodedStore(tmp_path / "other").view(claimed, Path(), SMALL)
    assert len(hashed) == 1


def test_a_claimed_hash_is_compared_with_the_file(tmp_path):
    """The file is exchanged after its pixels were stored: an error, as without a store."""
    store = DecodedStore(tmp_path / "s")
    ref = picture(tmp_path, 0).model_copy(update={"sha256": sha256_file(tmp_path / "a.png")})
    good = store.image(ref, tmp_path)
    picture(tmp_path, 1)
    for again in (store, DecodedStore(tmp_path / "s")):
        with pytest.raises(ImageError, match="SHA-256") as caught:
            again.image(ref, tmp_path)
        assert caught.value.fault.file == str(tmp_path / "a.png")
        with pytest.raises(ImageError, match="SHA-256"):
            again.view(ref, tmp_path, SMALL)
    other = picture(tmp_path, 1)
    assert not np.array_equal(store.image(other, tmp_path).array, good.array)
    with pytest.raises(ImageError, match="SHA-256"):  # the other content is stored as well now
        store.image(ref, tmp_path)


def test_a_missing_and_a_broken_file(tmp_path):
    store = DecodedStore(tmp_path / "s")
    (tmp_path / "b.png").write_bytes(b"\x89PNG\r\n\x1a\n and no more")
    for name in ("none.png", "b.png"):
        for _ in range(2):
            with pytest.raises(ImageError) as caught:
                store.view(ImageRef(uri=name), tmp_path, SMALL)
            assert caught.value.fault.file == str(tmp_path / name)


def test_a_sidecar_belongs_to_the_content(tmp_path):
    np.save(tmp_path / "a.npy", np.zeros((2, 3, 4), np.float32))
    store = DecodedStore(tmp_path / "s")
    ref = ImageRef(uri="a.npy", kind="volume")
    assert store.image(ref, tmp_path).spacing is None
    for length in (2.0, 3.0):
        fields = {"spacing": [length, 1.0, 1.0]}
        (tmp_path / "a.json").write_text(json.dumps(fields))
        assert same(store.image(ref, tmp_path), read_ref(ref, tmp_path))


def test_detached_voxels_belong_to_the_content(tmp_path):
    header = (
        "NRRD0004\ntype: uint8\ndimension: 3\nsizes: 2 3 4\nencoding: raw\ndata file: v.raw\n\n"
    )
    (tmp_path / "a.nhdr").write_text(header)
    store = DecodedStore(tmp_path / "s")
    ref = ImageRef(uri="a.nhdr", kind="volume")
    for value in (1, 2):
        (tmp_path / "v.raw").write_bytes(bytes([value] * 24))
        assert np.unique(store.image(ref, tmp_path).array).tolist() == [value]


def test_what_does_not_fit_is_still_right(tmp_path):
    refs = [picture(tmp_path, seed, f"{seed}.png") for seed in range(30)]
    store = DecodedStore(tmp_path / "s", limit_bytes=50_000)
    for _ in range(2):
        for ref in refs:
            plain = SMALL.display(read_ref(ref, tmp_path))
            assert np.array_equal(store.view(ref, tmp_path, SMALL).display, plain)
        assert 20_000 < store.blobs.bytes_used() <= 50_000


def test_a_store_is_sent_to_workers(tmp_path):
    ref = picture(tmp_path, 0)
    store = DecodedStore(tmp_path / "s", always_hash=True)
    plain = store.view(ref, tmp_path, SMALL)
    sent = pickle.loads(pickle.dumps(store))
    assert np.array_equal(sent.view(ref, tmp_path, SMALL).display, plain.display)
    assert sent.always_hash


def test_processes_fill_a_store(tmp_path):
    refs = [picture(tmp_path, seed, f"{seed}.png") for seed in range(SERIAL + 2)]
    store, seen = DecodedStore(tmp_path / "s"), []
    time.sleep(2.1)  # hashes of files that young are not remembered

    def progress(what, done, total):
        seen.append((done, total))

    store.fill([*refs, refs[0]], tmp_path, SMALL, workers=2, progress=progress)
    assert seen == [(done, len(refs)) for done in range(1, len(refs) + 1)]
    used = store.blobs.bytes_used()
    for ref in refs:
        plain = SMALL.display(read_ref(ref, tmp_path))
        assert np.array_equal(store.view(ref, tmp_path, SMALL).display, plain)
    assert store.blobs.bytes_used() == used  # no view was made again
    seen.clear()
    (tmp_path / "5.png").write_bytes((tmp_path / "6.png").read_bytes())
    other = picture(tmp_path, 99, "99.png")
    store.fill([*refs, other], tmp_path, SMALL, workers=2, progress=progress)
    assert seen == [(1, 2), (2, 2)]  # the changed one and the new one
    assert np.array_equal(
        store.view(refs[5], tmp_path, SMALL).display, SMALL.display(read_ref(refs[6], tmp_path))
    )
    (tmp_path / "5.png").write_bytes(b"no image")
    with pytest.raises(ImageError) as caught:
        store.fill(refs, tmp_path, SMALL, workers=2)
    assert caught.value.fault.file == str(tmp_path / "5.png")


@pytest.mark.parametrize("limit", [0, 1 << 20])
def test_volumes_go_to_workers_where_there_are_many_bytes_of_them(tmp_path, monkeypatch, limit):
    refs = [ImageRef(uri=f"{seed}.npy", kind="volume") for seed in range(3)]
    for seed, ref in enumerate(refs):
        np.save(tmp_path / ref.uri, np.random.default_rng(seed).random((2, 8, 8), np.float32))
        (tmp_path / f"{seed}.json").write_text(json.dumps({"spacing": [1, 1, 1], "units": "HU"}))
    parallel = []

    def in_workers(work, jobs, workers, *, died, serial, chunksize):
        parallel.append(len(jobs) > serial)
        return map(work, jobs)

    monkeypatch.setattr(store_module, "in_workers", in_workers)
    monkeypatch.setattr(store_module, "SERIAL_BYTES", limit)
    store = DecodedStore(tmp_path / "s")
    store.fill(refs, tmp_path, SMALL, workers=2)
    assert parallel == [limit == 0]


def test_a_store_that_is_full_is_filled_no_further(tmp_path):
    refs = [picture(tmp_path, seed, f"{seed}.png") for seed in range(40)]
    one = SMALL.display(read_ref(refs[0], tmp_path)).nbytes
    store, done = DecodedStore(tmp_path / "s", limit_bytes=10 * one), []
    store.fill(refs, tmp_path, SMALL, progress=lambda _, number, __: done.append(number))
    assert 4 < len(done) < 15
    again = []
    later = DecodedStore(tmp_path / "s", limit_bytes=10 * one)
    later.fill(refs, tmp_path, SMALL, progress=lambda _, number, __: again.append(number))
    assert len(again) <= len(done)
