"""Files -> views: the one path on which pixels reach a model, in training, evaluation and serving.

Views are kept as bytes would be: an image is decoded once a process, within a size limit.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path

import torch

from medloupe.imaging.read import read_ref
from medloupe.imaging.transforms import ImageTransform
from medloupe.types import ImageInput, ImageRef


class ImageSource:
    """Reads the images below `root` (absolute uris as they are) and applies one transform."""

    def __init__(self, root: Path, transform: ImageTransform, *, keep: int = 256) -> None:
        self.root, self.transform, self.keep = root, transform, keep
        self._views: OrderedDict[str, torch.Tensor] = OrderedDict()
        self._sizes: dict[str, tuple[int, int]] = {}

    def size_of(self, ref: ImageRef) -> tuple[int, int]:
        """(width, height) in original pixels."""
        key = ref.to_json()
        if key not in self._sizes:
            self.view(ref)
        return self._sizes[key]

    def view(self, ref: ImageRef) -> torch.Tensor:
        """`[3, size, size]` float32, normalised.

        Raises:
            ImageError: the file cannot be read as an image.
        """
        key = ref.to_json()
        if key in self._views:
            self._views.move_to_end(key)
            return self._views[key]
        image = read_ref(ref, self.root)
        view = torch.from_numpy(self.transform.apply(image))
        self._sizes[key], self._views[key] = image.size, view
        if len(self._views) > self.keep:
            self._views.popitem(last=False)
        return view

    def inputs(self, refs: Sequence[ImageRef]) -> list[ImageInput]:
        """The images as a model takes them."""
        return [ImageInput(kind=ref.kind, views=self.view(ref)) for ref in refs]
