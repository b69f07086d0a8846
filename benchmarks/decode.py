"""Reading images and preparing a data set, against pydicom, nibabel and Pillow doing it plainly.

    python benchmarks/decode.py              # needs the extra `starter` (nilearn's MNI template)

CT slices of 512 x 512 in JPEG-LS (pydicom's CT slice enlarged, with noise of its own in each) and
.nii.gz volumes (the MNI152 T1 template at 1 mm as it is shipped, and a CT of the same size made from
it). Before anything is timed all ways must agree in every value. Rounds alternate between the ways,
the median counts, and ratios are what to compare: times are those of a machine that others may use.

- `read`: values in memory, nothing kept. Ours hashes nothing here and checks Hounsfield units.
- `first epoch`: model input [3, 224, 224] of every image: read, transformed, and for MedLoupe hashed
  and written to an empty `DecodedStore`, in one process or, as `medloupe train` does it, by
  `DecodedStore.fill` in several, whose start counts. The plain way transforms by the same code.
- `cached epoch`: the same from the full store. Plain ways have no cache: what they are compared by is
  `read`, which does less. `all values` copies every decoded value instead.
- `conversion`: from a folder and a CSV to rows and images that can be trained on. Plain: read, window,
  save as PNG, write JSON lines. Ours: `prepare folder`, and with `views` a filled store as well.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import platform
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from importlib.metadata import version
from importlib.util import find_spec
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pydicom
from PIL import Image
from pydicom.data import get_testdata_file
from pydicom.pixels import apply_modality_lut, apply_voi_lut, pixel_array
from pydicom.uid import JPEGLSLossless, generate_uid

from medloupe.data.datasets.folder import FolderConfig
from medloupe.imaging.read import read_image
from medloupe.imaging.store import DecodedStore
from medloupe.imaging.transforms import ImageTransform
from medloupe.types import ImageRef, MedicalImage

Way = Callable[[], Any]
Reader = Callable[[Path], np.ndarray]
MNI = "datasets/data/mni_icbm152_t1_tal_nlin_sym_09a_converted.nii.gz"
TRANSFORM = ImageTransform()
BATCH = 8
# (centre, width) of the CT volumes: the file does not say
PLAIN_WINDOW = {"units": "stored", "window": (40.0, 400.0)}


def main() -> None:
    """Make the files, compare the values, measure and print."""
    wanted = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    wanted.add_argument("--slices", type=int, default=400)
    wanted.add_argument("--volumes", type=int, default=20, help="of each of the two kinds")
    wanted.add_argument("--rounds", type=int, default=5)
    wanted.add_argument("--workers", type=int, default=2)
    wanted.add_argument("--only", choices=("dicom", "nifti", "conversion"), default=None)
    args = wanted.parse_args()
    machine()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if args.only in (None, "dicom", "conversion"):
            slices = make_slices(folder / "dicom", args.slices)
        if args.only in (None, "dicom"):
            dicom(slices, folder, args)
        if args.only in (None, "nifti"):
            nifti(make_volumes(folder / "nifti", args.volumes), folder, args)
        if args.only in (None, "conversion"):
            conversion(slices, folder, args)


def machine() -> None:
    """Say where and with what this was measured."""
    info = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    names = {line.partition(": ")[2] for line in info.splitlines() if line.startswith("model name")}
    packages = ("pydicom", "pyjpegls", "nibabel", "numpy", "isal", "pillow")
    print(
        f"{', '.join(names) or platform.processor()}, {os.cpu_count()} cores, {platform.system()}"
    )
    print(
        f"Python {platform.python_version()}, " + ", ".join(f"{p} {version(p)}" for p in packages)
    )
    load = f"{os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else "unknown"
    print(f"load average at the start: {load}\n")


def dicom(files: Sequence[Path], folder: Path, args: argparse.Namespace) -> None:
    """CT slices in JPEG-LS."""
    refs = [ImageRef(uri=str(path)) for path in files]
    chosen = plugin_of(files[0])
    for path in files[:3]:
        assert np.array_equal(read_image(path).array[0], plain_slice(path))
        assert np.array_equal(plain_slice(path), plain_slice(path, "pyjpegls"))
    readers: dict[str, Reader] = {
        f"pydicom as installed ({chosen})": plain_slice,
        "pydicom told to use pyjpegls": plain_slice_pyjpegls,
        "MedLoupe": our_slice,
    }
    ways = alone(readers, files)
    title = f"{len(files)} CT slices, JPEG-LS, {size_of(files)}"
    measure(f"read: {title}", ways, args.rounds)
    in_workers(title, files, readers, args)
    epochs(title, refs, folder, ways, plain_slice_image, args)


def nifti(files: Sequence[Path], folder: Path, args: argparse.Namespace) -> None:
    """Volumes in .nii.gz."""
    refs = [ImageRef(uri=str(path), kind="volume") for path in files]
    for path in files:
        ours = read_image(path, kind="volume").array
        assert np.array_equal(ours, plain_volume(path).T[:, ::-1, ::-1])
    readers: dict[str, Reader] = {
        "nibabel get_fdata()": plain_fdata,
        "nibabel dataobj, as float32": plain_volume,
        "nibabel dataobj, as stored": plain_stored,
        "MedLoupe": our_volume,
    }
    ways = alone(readers, files)
    title = f"{len(files)} volumes of 197 x 233 x 189, .nii.gz, {size_of(files)}"
    measure(f"read: {title}", ways, args.rounds)
    in_workers(title, files, readers, args)
    epochs(title, refs, folder, ways, plain_volume_image, args)


def epochs(
    title: str,
    refs: Sequence[ImageRef],
    folder: Path,
    read: dict[str, Way],
    plain_image: Callable[[Path], MedicalImage],
    args: argparse.Namespace,
) -> None:
    """The first epoch, and those after it."""
    time.sleep(2.1)  # a hash is remembered of files that are two seconds old, as data sets are
    full = DecodedStore(folder / "full")
    for ref in refs:
        full.image(ref, folder)
        expected = TRANSFORM.apply(read_image(Path(ref.uri), kind=ref.kind))
        assert np.array_equal(
            TRANSFORM.normalise(full.view(ref, folder, TRANSFORM).display), expected
        )

    def plain_epoch() -> None:
        batch = np.empty((BATCH, 3, TRANSFORM.size, TRANSFORM.size), np.float32)
        for index, ref in enumerate(refs):
            batch[index % BATCH] = TRANSFORM.apply(plain_image(Path(ref.uri)))

    from medloupe.processing import ImageSource  # brings torch, which no worker process needs

    def epoch(store: DecodedStore) -> None:
        """In batches, as training takes them."""
        images = ImageSource(folder, TRANSFORM, keep_bytes=0, store=store)
        for start in range(0, len(refs), BATCH):
            images.inputs(refs[start : start + BATCH])

    def values() -> None:
        """Every decoded value copied out of the map, as a collator would."""
        for ref in refs:
            full.image(ref, folder).array.copy()

    def fill() -> None:
        DecodedStore(fresh(folder / "empty")).fill(refs, folder, TRANSFORM, workers=args.workers)

    ways: dict[str, Way] = {
        "plain": plain_epoch,
        "MedLoupe": lambda: epoch(DecodedStore(fresh(folder / "empty"))),
        f"MedLoupe, {args.workers} processes and their start": fill,
    }
    measure(f"first epoch: {title}", ways, args.rounds)
    plain = {f"read, {name}": way for name, way in read.items() if name != "MedLoupe"}
    ours: dict[str, Way] = {
        "MedLoupe, model input": lambda: epoch(full),
        "MedLoupe, all values": values,
    }
    measure(f"cached epoch: {title}", {**plain, **ours}, args.rounds)
    print(f"  store: {full.blobs.bytes_used() / 2**20:.0f} MB, decoded images and views\n")


def alone(readers: dict[str, Reader], files: Sequence[Path]) -> dict[str, Way]:
    """Every reader in this process, all arrays kept."""
    return {
        name: lambda read=read: [read(path) for path in files] for name, read in readers.items()
    }


def in_workers(
    title: str, files: Sequence[Path], readers: dict[str, Reader], args: argparse.Namespace
) -> None:
    """Every reader in several processes, which are started before, beside the plain ones in one."""
    with ProcessPoolExecutor(args.workers, mp_context=get_context("spawn")) as pool:
        parts = [files[start :: args.workers] for start in range(args.workers)]
        shared: dict[str, Way] = {
            name: lambda read=read: list(pool.map(read_part, [read] * len(parts), parts))
            for name, read in readers.items()
        }
        ways: dict[str, Way] = {
            f"{name}, 1 process": lambda read=read: read_part(read, files)
            for name, read in readers.items()
            if name != "MedLoupe"
        }
        ways |= {f"{name}, {args.workers} processes": way for name, way in shared.items()}
        measure(f"read in {args.workers} processes: {title}", ways, args.rounds)


def read_part(read: Reader, files: Sequence[Path]) -> float:
    """Read and let go; only a number goes back."""
    return sum(float(read(path).flat[0]) for path in files)


def conversion(files: Sequence[Path], folder: Path, args: argparse.Namespace) -> None:
    """A folder of DICOM files and a table, made ready for training."""
    source = files[0].parent
    with (source / "labels.csv").open("w", newline="") as stream:
        table = csv.writer(stream)
        table.writerow(["image", "patient_id", "label"])
        for number, path in enumerate(files):
            table.writerow([path.name, f"p{number}", ("normal", "nodule")[number % 2]])
    config = FolderConfig(licence="CC0-1.0")

    def plain() -> None:
        out = fresh(folder / "plain")
        with (out / "rows.jsonl").open("w") as rows:
            for number, path in enumerate(files):
                dataset = pydicom.dcmread(path)
                shown = apply_voi_lut(apply_modality_lut(dataset.pixel_array, dataset), dataset)
                low, high = shown.min(), shown.max()
                grey = ((shown - low) / max(high - low, 1) * 255).astype(np.uint8)
                Image.fromarray(grey).save(out / f"{path.stem}.png")
                rows.write(json.dumps({"image": f"{path.stem}.png", "label": number % 2}) + "\n")

    def ours(views: bool) -> None:
        out = fresh(folder / "ours")
        dataset = config.prepare(out / "set", root=source, progress=lambda *_: None)
        if views:
            store = DecodedStore(out / "store")
            for row in dataset.conversations:
                for ref in row.images:
                    store.view(ref, out / "set", TRANSFORM)

    ways: dict[str, Way] = {
        "plain, to PNG": plain,
        "MedLoupe, rows and hashed files": lambda: ours(False),
        "MedLoupe, and a store of views": lambda: ours(True),
    }
    measure(f"conversion: {len(files)} CT slices, JPEG-LS, {size_of(files)}", ways, args.rounds)


def measure(title: str, ways: dict[str, Way], rounds: int) -> dict[str, float]:
    """Median seconds of each way, after one run that does not count; prints ratios to the last."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(rounds + 1):
        for name, way in ways.items():
            begun = time.perf_counter()
            way()
            if number:
                seconds[name].append(time.perf_counter() - begun)
    middle = {name: statistics.median(times) for name, times in seconds.items()}
    print(title)
    ours = [name for name in ways if name.startswith("MedLoupe")]
    for name, times in seconds.items():
        ratios = ", ".join(f"{middle[name] / middle[our]:.2f}x" for our in ours if our != name)
        spread = f"{1000 * min(times):.0f} to {1000 * max(times):.0f}"
        print(f"  {name:62} {1000 * middle[name]:8.1f} ms ({spread})  {ratios}")
    print()
    return middle


def plain_slice(path: Path, plugin: str = "") -> np.ndarray:
    """Modality values as pydicom's documentation gives them."""
    dataset = pydicom.dcmread(path)
    if plugin:
        return apply_modality_lut(pixel_array(dataset, decoding_plugin=plugin), dataset)
    return apply_modality_lut(dataset.pixel_array, dataset)


def plain_slice_pyjpegls(path: Path) -> np.ndarray:
    return plain_slice(path, "pyjpegls")


def our_slice(path: Path) -> np.ndarray:
    return read_image(path).array


def our_volume(path: Path) -> np.ndarray:
    return read_image(path, kind="volume").array


def plain_fdata(path: Path) -> np.ndarray:
    return canonical(path).get_fdata()


def plain_stored(path: Path) -> np.ndarray:
    return np.asanyarray(canonical(path).dataobj)


def plain_slice_image(path: Path) -> MedicalImage:
    array = plain_slice(path).astype(np.float32)[None]
    return MedicalImage(array=array, **PLAIN_WINDOW)  # type: ignore[arg-type]


def canonical(path: Path) -> Any:
    return nibabel.as_closest_canonical(nibabel.load(path))


def plain_volume(path: Path) -> np.ndarray:
    return np.asarray(canonical(path).dataobj, dtype=np.float32)


def plain_volume_image(path: Path) -> MedicalImage:
    array = plain_volume(path).T[:, ::-1, ::-1]
    return MedicalImage(array=array, **PLAIN_WINDOW)  # type: ignore[arg-type]


def plugin_of(path: Path) -> str:
    """The decoder that pydicom takes of itself: the first that it names."""
    from pydicom.pixels import get_decoder

    return get_decoder(pydicom.dcmread(path).file_meta.TransferSyntaxUID).available_plugins[0]


def make_slices(folder: Path, count: int) -> list[Path]:
    """Slices of 512 x 512, each with other noise of 12 HU."""
    folder.mkdir()
    original = pydicom.dcmread(get_testdata_file("CT_small.dcm", download=False))
    small = Image.fromarray(original.pixel_array.astype(np.float32))
    large = np.asarray(small.resize((512, 512), Image.Resampling.BICUBIC))
    noise = np.random.default_rng(0)
    files = []
    for number in range(count):
        dataset = pydicom.dcmread(get_testdata_file("CT_small.dcm", download=False))
        pixels = np.rint(large + noise.normal(0, 12, large.shape)).clip(0, 4095).astype(np.int16)
        dataset.Rows = dataset.Columns = 512
        dataset.PixelSpacing = [0.166, 0.166]
        dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = generate_uid()
        dataset.PixelData = pixels.tobytes()
        dataset.compress(JPEGLSLossless, encoding_plugin="pyjpegls", generate_instance_uid=False)
        files.append(folder / f"{number:03}.dcm")
        dataset.save_as(files[-1])
    return files


def make_volumes(folder: Path, count: int) -> list[Path]:
    """The template as it is shipped, and CTs of its shape: air at -1000, noise of 8."""
    folder.mkdir()
    found = find_spec("nilearn")  # not imported: every worker process would wait for it
    assert found is not None
    assert found.origin is not None, "the extra `starter` brings nilearn"
    template = Path(found.origin).parent / MNI
    image = nibabel.load(template)
    head = np.asarray(image.dataobj).astype(np.float32)
    noise = np.random.default_rng(0)
    files = []
    for number in range(count):
        files.append(folder / f"t1-{number}.nii.gz")
        shutil.copy(template, files[-1])
        ct = np.where(head > 0, head / head.max() * 1500 - 200, -1000)
        ct = np.rint(ct + noise.normal(0, 8, head.shape)).astype(np.int16)
        files.append(folder / f"ct-{number}.nii.gz")
        nibabel.save(nibabel.Nifti1Image(ct, image.affine), files[-1])
    return files


def fresh(folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    return folder


def size_of(files: Sequence[Path]) -> str:
    return f"{sum(path.stat().st_size for path in files) / 2**20:.0f} MB"


if __name__ == "__main__":
    main()
