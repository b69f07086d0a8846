"""Decode once: images and views by what they are made of, kept in memory-mapped shards.

The key of an image is its content (the SHA-256 of its file or files), which part is meant (frame,
kind, modality) and the code that decodes: every source file of `medloupe.imaging` and the versions
of the libraries below it. A view's key adds the transform. So nothing stored is ever stale: another
file, transform or decoder is another key, and old blobs leave when room is needed.

Hashing every file in every epoch would cost more than it saves. A file is hashed once, by the reader
where its `ImageRef` carries a hash, and the hash is remembered with the file's size, inode, mtime
and ctime. It is trusted while these four are the same, if the file was at least two seconds old when
it was hashed (git's rule against changes within one tick of the clock). ctime cannot be set back, so
a file that was replaced under an old mtime is seen. `always_hash=True` trusts nothing.
"""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import importlib.metadata
import math
import os
import re
import stat
import time
from collections.abc import Iterable, Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any, Final, Self

import numpy as np
from numpy.typing import NDArray

from medloupe.errors import ImageError
from medloupe.imaging.blobs import Blob, BlobLog
from medloupe.imaging.files import folder_files, sha256_file, sha256_folder, unreadable
from medloupe.imaging.read import NPY, NRRD, check_sha256, read_ref
from medloupe.imaging.views import Arrays, ViewTransform, is_plane
from medloupe.imaging.workers import SERIAL, SERIAL_BYTES, Progress, counted, in_workers
from medloupe.types import ImageRef, MedicalImage, VoiTable

# Everything whose version may change a decoded value.
_LIBRARIES: Final = (
    "numpy",
    "pillow",
    "pydicom",
    "pylibjpeg",
    "pylibjpeg-openjpeg",
    "pylibjpeg-libjpeg",
    "pyjpegls",
    "python-gdcm",
    "nibabel",
    "pynrrd",
    "SimpleITK",
)
_RACY_NS: Final = 2 * 10**9  # the coarsest file time stamps in use (FAT) tick every two seconds
_START: Final = 2**14  # bytes in which the header of an NRRD file names its voxels' file
_NRRD_FILE: Final = re.compile(rb"^data ?file: *([^\r\n]+)", re.IGNORECASE | re.MULTILINE)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class View:
    """A view before it is normalised, read-only, and the original's (width, height[, depth]).

    `ViewTransform.normalise` makes of it what a model sees, to the bit as `apply` does.
    """

    display: Arrays
    size: tuple[int, ...]

    @classmethod
    def of(cls, image: MedicalImage, transform: ViewTransform) -> Self:
        """The view of a decoded image."""
        size = image.size if is_plane(image) else (*image.size, len(image.array))
        return cls(display=_frozen(transform.display(image)), size=size)

    @property
    def leaves(self) -> list[NDArray[np.float32]]:
        """The arrays of the display, in reading order."""
        return _leaves(self.display)


class DecodedStore:
    """Decoded images and views below `folder`, in at most `limit_bytes`; see `BlobLog`.

    Values are bit-equal to those without a store. Many processes may share the folder, and a store
    may be sent to workers by fork or by pickle.

    Args:
        folder: made where absent; nothing else should live in it. It can be deleted at any time.
        limit_bytes: of all shards together.
        always_hash: hash a file on every use, instead of trusting its time stamps.

    Raises:
        ConfigError: the folder cannot be made or written.
    """

    def __init__(
        self, folder: Path, limit_bytes: int = 16 * 2**30, *, always_hash: bool = False
    ) -> None:
        self.blobs, self.always_hash = BlobLog(folder, limit_bytes), always_hash

    def view(self, ref: ImageRef, root: Path, transform: ViewTransform) -> View:
        """The view of what `ref` points at below `root`.

        Raises:
            ImageError: as `read_ref` and the transform; or the file changed while it was read.
        """
        return self._kept_view(ref, root, transform)[0]

    def _kept_view(self, ref: ImageRef, root: Path, transform: ViewTransform) -> tuple[View, bool]:
        """The view, and whether it is kept from now on."""
        content = self._content(ref, root)
        found = self._get_view(ref, content, transform)
        if found is not None:
            return found, True
        whole = self._get(_image_key(ref, content), content)
        image = self._decode(ref, root, content) if whole is None else _image(whole, ref)
        view = View.of(image, transform)
        whole_view = b"".join(leaf.tobytes() for leaf in view.leaves)
        tree, _ = _tree(view.display, 0)
        key = _view_key(ref, content, transform)
        kept = self.blobs.put(key, {"size": view.size, "tree": tree}, memoryview(whole_view))
        return view, kept

    def image(self, ref: ImageRef, root: Path) -> MedicalImage:
        """`read_ref(ref, root)`; the array is read-only, and a map of the store where it is kept.

        Raises:
            ImageError: as `read_ref`; or the file changed while it was read.
        """
        content = self._content(ref, root)
        key = _image_key(ref, content)
        blob = self._get(key, content)
        if blob is not None:
            return _image(blob, ref)
        image = self._decode(ref, root, content)
        array: NDArray[Any] = np.ascontiguousarray(image.array)
        array.flags.writeable = False
        self.blobs.put(key, _described(image), array.data)
        return dataclasses.replace(image, array=array)

    def fill(
        self,
        refs: Iterable[ImageRef],
        root: Path,
        transform: ViewTransform,
        *,
        workers: int | None = None,
        progress: Progress | None = None,
    ) -> None:
        """Make the views that are not here yet in `workers` processes (default: one per core, at most 8),
        so that an epoch finds them; where the store is full, the rest is left to whoever wants it.

        Raises:
            ImageError: as `view`, or a worker died; views that were made by then are kept.
        """
        distinct = {ref.to_json(): ref for ref in refs}.values()
        wanted = [ref for ref in distinct if not self._holds(ref, root, transform)]
        died = ImageError(
            "a worker process died while reading images",
            remedy="Run with one worker to see which image it is, or free memory",
            file=str(root),
        )
        work = partial(_make_view, self, root, transform)
        volumes = [root / ref.uri for ref in wanted if ref.kind == "volume"]
        if volumes:
            few, chunk = 0 if _bytes(volumes) > SERIAL_BYTES else len(wanted), 1
        else:
            few, chunk = SERIAL, 16
        made = in_workers(work, wanted, workers, died=died, serial=few, chunksize=chunk)
        for kept in counted(made, "read images", len(wanted), progress):
            if not kept:
                made.close()
                return

    def _holds(self, ref: ImageRef, root: Path, transform: ViewTransform) -> bool:
        """Whether the view is here, as far as that is known without reading a file."""
        first = _File.of(root / ref.uri)
        files = map(_File.of, folder_files(first.path)) if first.folder else [first]
        if any(self._known(file) is None for file in files):
            return False
        return self._get_view(ref, self._content(ref, root), transform) is not None

    def _get_view(self, ref: ImageRef, content: _Content, transform: ViewTransform) -> View | None:
        blob = self._get(_view_key(ref, content, transform), content)
        if blob is None:
            return None
        return View(display=_nested(blob.meta["tree"], blob), size=tuple(blob.meta["size"]))

    def _get(self, key: bytes, content: _Content) -> Blob | None:
        """A blob of this content; a hash that was only claimed is compared before it is used."""
        blob = self.blobs.get(key)
        if blob is not None and content.claimed:
            found = self._hash(content.file, ())
            check_sha256(found, content.sha256, str(content.file.path))
        return blob

    def _decode(self, ref: ImageRef, root: Path, content: _Content) -> MedicalImage:
        """Read the file, and make sure that what was decoded is what was hashed."""
        image = read_ref(ref, root)
        if content.claimed:  # the reader has compared it
            self._remember(content.file, content.sha256, ())
        elif self._content(ref, root).sha256 != content.sha256:
            raise ImageError(
                "the file changed while it was read",
                remedy="Wait until it is written, and begin again",
                file=str(root / ref.uri),
            )
        return image

    def _content(self, ref: ImageRef, root: Path) -> _Content:
        """What the files of a reference hold.

        Raises:
            ImageError: a file is missing or cannot be read, or has not the SHA-256 of the ref.
        """
        path = root / ref.uri
        first = _File.of(path)
        if first.folder:
            files = [_File.of(part) for part in folder_files(path)]
            whole = sha256_folder(self._known_or_hash(file) for file in files)
            if ref.sha256:
                check_sha256(whole, ref.sha256, str(path))
            return _Content(file=first, sha256=whole)
        known = self._known(first)
        others = known["others"] if known is not None else None
        if others is None:
            others = _companions(path)
        if ref.sha256 and known is None and not others and not self.always_hash:
            return _Content(file=first, sha256=ref.sha256.lower(), claimed=True)
        sha256 = self._hash(first, others) if known is None else known["sha256"]
        if ref.sha256:
            check_sha256(sha256, ref.sha256, str(path))
        if others:
            parts = [_File.of(path.parent / other, optional=True) for other in others]
            sha256 = sha256_folder([sha256, *map(self._known_or_hash, parts)])
        return _Content(file=first, sha256=sha256)

    def _known(self, file: _File) -> dict[str, Any] | None:
        """What is remembered of a file that has not changed since it was hashed."""
        if self.always_hash:
            return None
        blob = self.blobs.get(file.key)
        return None if blob is None else blob.meta

    def _known_or_hash(self, file: _File) -> str:
        if file.stamp is None:
            return "absent"
        known = self._known(file)
        return self._hash(file, None) if known is None else str(known["sha256"])

    def _hash(self, file: _File, others: Sequence[str] | None) -> str:
        """Hash a file; `others` are its companions, None where nobody looked for them."""
        digest = sha256_file(file.path)
        self._remember(file, digest, others)
        return digest

    def _remember(self, file: _File, digest: str, others: Sequence[str] | None) -> None:
        """Keep the hash if nothing can have changed within one tick of the clock."""
        if file.settled and _File.of(file.path) == file:
            self.blobs.put(file.key, {"sha256": digest, "others": others}, memoryview(b""))


def _make_view(store: DecodedStore, root: Path, transform: ViewTransform, ref: ImageRef) -> bool:
    return store._kept_view(ref, root, transform)[1]


def _bytes(paths: Iterable[Path]) -> int:
    files = (file for path in paths for file in (folder_files(path) if path.is_dir() else [path]))
    return sum(file.stat().st_size for file in files)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _File:
    """A file and what the file system says of it, taken before it is read."""

    path: Path
    stamp: tuple[int, ...] | None  # size, inode, mtime, ctime; None where there is no file
    folder: bool = False
    settled: bool = dataclasses.field(default=True, compare=False)

    @classmethod
    def of(cls, path: Path, *, optional: bool = False) -> Self:
        """
        Raises:
            ImageError: there is no such file, and it is not optional.
        """
        now = time.time_ns()
        try:
            known = path.stat()
        except OSError as error:
            if optional:
                return cls(path=path, stamp=None)
            raise unreadable(path, error) from None
        times = (known.st_mtime_ns, known.st_ctime_ns)
        return cls(
            path=path,
            stamp=(known.st_size, known.st_ino, *times),
            folder=stat.S_ISDIR(known.st_mode),
            settled=max(times) + _RACY_NS <= now,
        )

    @property
    def key(self) -> bytes:
        return _key("file", str(self.path.absolute()), repr(self.stamp))


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Content:
    """What an image is made of: its file or folder, and one hash for all that is in it.

    `claimed`: the hash is what the reference says; the file has not been hashed yet.
    """

    file: _File
    sha256: str
    claimed: bool = False


def _companions(path: Path) -> list[str]:
    """Files beside `path` that decide what is read, whether they exist or not.

    An NPY file may have a sidecar, an NRRD header its voxels beside it.
    """
    try:
        with path.open("rb") as stream:
            start = stream.read(8)
            if start.startswith(NRRD):
                start += stream.read(_START)
    except OSError as error:
        raise unreadable(path, error) from None
    if start.startswith(NPY):
        return [path.with_suffix(".json").name]
    if start.startswith(NRRD):
        named = _NRRD_FILE.search(start.partition(b"\n\n")[0])
        return [os.fsdecode(named[1]).strip()] if named else []
    return []


def _key(*parts: str) -> bytes:
    """32 bytes that no other list of parts has."""
    return hashlib.sha256("\0".join((_code(), *parts)).encode()).digest()


def _image_key(ref: ImageRef, content: _Content) -> bytes:
    return _key("image", content.sha256, _part(ref))


def _view_key(ref: ImageRef, content: _Content, transform: ViewTransform) -> bytes:
    made_by = f"{type(transform).__module__}:{type(transform).__qualname__}"
    return _key("view", content.sha256, _part(ref), made_by, transform.to_json())


def _part(ref: ImageRef) -> str:
    """Everything in a reference that decides what is read, but where it is."""
    return ref.model_copy(update={"uri": "-", "sha256": None}).to_json()


@cache
def _code() -> str:
    """What decodes: the source of this room and the versions of the libraries below it."""
    folder = Path(__file__).parent
    digest = hashlib.sha256()
    for file in sorted(folder.rglob("*.py")):
        digest.update(file.read_bytes())
    for library in _LIBRARIES:
        digest.update(f"{library} {_version(library)}\n".encode())
    return digest.hexdigest()


def _version(library: str) -> str:
    try:
        return importlib.metadata.version(library)
    except importlib.metadata.PackageNotFoundError:
        return "absent"


def _frozen(arrays: Arrays) -> Arrays:
    """Read-only float32 arrays."""
    if isinstance(arrays, tuple):
        return tuple(_frozen(part) for part in arrays)
    array = np.ascontiguousarray(arrays, dtype=np.float32)
    array.flags.writeable = False
    return array


def _leaves(arrays: Arrays) -> list[NDArray[np.float32]]:
    if isinstance(arrays, tuple):
        return [leaf for part in arrays for leaf in _leaves(part)]
    return [arrays]


def _tree(arrays: Arrays, start: int) -> tuple[Any, int]:
    """The nesting as plain data, each array as its first byte and its shape; and the byte after."""
    if not isinstance(arrays, tuple):
        return {"start": start, "shape": arrays.shape}, start + arrays.nbytes
    parts = []
    for part in arrays:
        described, start = _tree(part, start)
        parts.append(described)
    return parts, start


def _nested(tree: Any, blob: Blob) -> Arrays:
    """Read-only arrays on the shard's own pages."""
    if isinstance(tree, list):
        return tuple(_nested(part, blob) for part in tree)
    shape, start = tree["shape"], tree["start"]
    count = math.prod(shape)
    return np.frombuffer(blob.payload, np.float32, count=count, offset=start).reshape(shape)


def _layout(array: NDArray[Any]) -> dict[str, Any]:
    return {"dtype": array.dtype.str, "shape": array.shape}


def _array(blob: Blob) -> NDArray[Any]:
    """A read-only array on the shard's own pages."""
    return np.frombuffer(blob.payload, dtype=blob.meta["dtype"]).reshape(blob.meta["shape"])


def _described(image: MedicalImage) -> dict[str, Any]:
    """Everything but the pixels and the source. JSON keeps every bit of a finite float."""
    return {
        **_layout(image.array),
        "units": image.units,
        "affine": None if image.affine is None else image.affine.tolist(),
        "spacing": image.spacing,
        "window": image.window,
        "voi_table": _packed(image.voi_table),
        "attributes": image.attributes,
    }


def _packed(table: VoiTable | None) -> dict[str, Any] | None:
    if table is None:
        return None
    shown = base64.b64encode(table.shown.tobytes()).decode()
    return {"first": table.first, "shown": shown}


def _unpacked(packed: Mapping[str, Any] | None) -> VoiTable | None:
    if packed is None:
        return None
    shown = np.frombuffer(base64.b64decode(packed["shown"]), dtype=np.float32)
    return VoiTable(first=packed["first"], shown=shown)


def _image(blob: Blob, ref: ImageRef) -> MedicalImage:
    meta: Mapping[str, Any] = blob.meta
    affine, spacing, window = meta["affine"], meta["spacing"], meta["window"]
    return MedicalImage(
        array=_array(blob),
        units=meta["units"],
        affine=None if affine is None else np.array(affine, dtype=np.float64),
        spacing=None if spacing is None else tuple(spacing),
        window=None if window is None else tuple(window),
        voi_table=_unpacked(meta["voi_table"]),
        source=ref,
        attributes=dict(meta["attributes"]),
    )
