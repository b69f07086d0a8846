"""Files -> views: the one path on which pixels reach a model, in training, evaluation and serving.

A view is kept in memory while there is room, so an image is decoded once a process; with a
`DecodedStore` it is decoded once for all processes and runs, and memory holds maps of the store.
Files are taken not to change while one `ImageSource` lives.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from medloupe.imaging.read import read_ref
from medloupe.imaging.store import DecodedStore, View
from medloupe.imaging.transforms import ImageTransform
from medloupe.types import ImageRef


class ImageSource:
    """Reads the images below `root` (absolute uris as they are) and applies one transform.

    Args:
        root: folder of relative uris.
        transform: what makes a view.
        keep: views held in memory.
        store: where views are kept between processes and runs; None decodes in every process.
    """

    def __init__(
        self,
        root: Path,
        transform: ImageTransform,
        *,
        keep: int = 256,
        store: DecodedStore | None = None,
    ) -> None:
        self.root, self.transform, self.keep, self.store = root, transform, keep, store
        self._views: OrderedDict[str, View] = OrderedDict()
        self._sizes: dict[str, tuple[int, int]] = {}

    def size_of(self, ref: ImageRef) -> tuple[int, int]:
        """(width, height) in original pixels."""
        key = ref.to_json()
        if key not in self._sizes:
            self._look(ref)
        return self._sizes[key]

    def view(self, ref: ImageRef) -> torch.Tensor:
        """`[3, size, size]` float32, normalised: a copy, which may be changed.

        Raises:
            ImageError: the file cannot be read as an image.
        """
        return torch.from_numpy(self.transform.normalise(self._look(ref).display))

    def views(self, refs: Sequence[ImageRef]) -> torch.Tensor | None:
        """`[N, 3, size, size]`, or None without images."""
        if not refs:
            return None
        size = self.transform.size
        batch = np.empty((len(refs), 3, size, size), dtype=np.float32)
        for ref, slot in zip(refs, batch, strict=True):
            self.transform.normalise(self._look(ref).display, out=slot)
        return torch.from_numpy(batch)

    def _look(self, ref: ImageRef) -> View:
        key = ref.to_json()
        if key in self._views:
            self._views.move_to_end(key)
            return self._views[key]
        view = self._make(ref)
        self._sizes[key], self._views[key] = view.size, view
        if len(self._views) > self.keep:
            self._views.popitem(last=False)
        return view

    def _make(self, ref: ImageRef) -> View:
        if self.store is not None:
            return self.store.view(ref, self.root, self.transform)
        return View.of(read_ref(ref, self.root), self.transform)
