"""Files -> views: the one path on which pixels reach a model, in training, evaluation and serving.

A view is kept in memory while there is room, so an image is decoded once a process; with a
`DecodedStore` it is decoded once for all processes and runs, and memory holds maps of the store.
Files are taken not to change while one `ImageSource` lives.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path

import torch

from medloupe.imaging.composed import DetailedTransform
from medloupe.imaging.flips import HorizontalFlip
from medloupe.imaging.read import read_ref
from medloupe.imaging.store import DecodedStore, View
from medloupe.imaging.views import Arrays, ViewTransform
from medloupe.types import ImageInput, ImageRef, Views


class ImageSource:
    """Reads the images below `root` (absolute uris as they are) and applies one transform.

    Args:
        root: folder of relative uris.
        transform: what makes a view.
        keep_bytes: of views held in memory; the newest one always is.
        store: where views are kept between processes and runs; None decodes in every process.
    """

    def __init__(
        self,
        root: Path,
        transform: ViewTransform,
        *,
        keep_bytes: int = 2**28,
        store: DecodedStore | None = None,
    ) -> None:
        self.root, self.transform, self.store = root, transform, store
        self.keep_bytes, self._bytes = keep_bytes, 0
        self._views: OrderedDict[str, View] = OrderedDict()
        self._sizes: dict[str, tuple[int, ...]] = {}

    def size_of(self, ref: ImageRef) -> tuple[int, ...]:
        """(width, height) in original pixels, of a volume (width, height, depth)."""
        key = ref.to_json()
        if key not in self._sizes:
            self._look(ref)
        return self._sizes[key]

    def mirrors(self, ref: ImageRef) -> bool:
        """Do its columns run between the patient's sides, as far as the file says? Reads it again.

        Raises:
            ImageError: as `view`.
        """
        return HorizontalFlip().allows(read_ref(ref, self.root))

    def view(self, ref: ImageRef) -> Views:
        """The normalised views: a copy, which may be changed.

        Raises:
            ImageError: the file cannot be read as an image.
        """
        display = self._look(ref).display
        if not isinstance(self.transform, DetailedTransform):
            return _tensors(self.transform.normalise(display))
        return _tensors(self.transform.base.normalise(display[0]))

    def detail(self, ref: ImageRef) -> Views | None:
        """The normalised views of an adapter's encoder, where the transform makes some.

        Raises:
            ImageError: as `view`.
        """
        if not isinstance(self.transform, DetailedTransform):
            return None
        return _tensors(self.transform.detail.normalise(self._look(ref).display[1]))

    def inputs(self, refs: Sequence[ImageRef]) -> list[ImageInput]:
        """The images as a model takes them.

        Raises:
            ImageError: as `view`.
        """
        return [
            ImageInput(kind=ref.kind, views=self.view(ref), detail=self.detail(ref)) for ref in refs
        ]

    def _look(self, ref: ImageRef) -> View:
        key = ref.to_json()
        if key in self._views:
            self._views.move_to_end(key)
            return self._views[key]
        view = self._make(ref)
        self._sizes[key], self._views[key] = view.size, view
        self._bytes += _size(view)
        while self._bytes > self.keep_bytes and len(self._views) > 1:
            self._bytes -= _size(self._views.popitem(last=False)[1])
        return view

    def _make(self, ref: ImageRef) -> View:
        if self.store is not None:
            return self.store.view(ref, self.root, self.transform)
        return View.of(read_ref(ref, self.root), self.transform)


def _size(view: View) -> int:
    return sum(leaf.nbytes for leaf in view.leaves)


def _tensors(arrays: Arrays) -> Views:
    if isinstance(arrays, tuple):
        return tuple(_tensors(part) for part in arrays)
    return torch.from_numpy(arrays)
