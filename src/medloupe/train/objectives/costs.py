"""What each image of a data set costs a model."""

from __future__ import annotations

from medloupe.models.vlm import VisionLanguageModel
from medloupe.processing import ImageSource, Processor
from medloupe.processing.packing import Cost
from medloupe.types import ImageRef, Views


class ImageCosts:
    """`packing.CostOf`. Of each kind of image one is read, since all units of a kind are alike; the size
    of others is asked for only where the number of their units follows from it."""

    def __init__(
        self, model: VisionLanguageModel, processor: Processor, images: ImageSource
    ) -> None:
        self.encoder, self.processor, self.images = model.encoder, processor, images
        self._known: dict[ImageRef, Cost] = {}
        self._voxels: dict[str, int] = {}

    def __call__(self, ref: ImageRef) -> Cost:
        if ref not in self._known:
            self._known[ref] = self._cost(ref)
        return self._known[ref]

    def _cost(self, ref: ImageRef) -> Cost:
        units = self._units(ref)
        tokens = self.processor.layouts.tokens(ref.kind, lambda: units)
        assert tokens is not None, "the processor lets no such image through"
        if ref.kind not in self._voxels:
            self._voxels[ref.kind] = _numbers(self.images.view(ref)) // units
        passes = units * self.encoder.for_kind(ref.kind).passes
        return Cost(image_tokens=tokens, passes=passes, voxels=units * self._voxels[ref.kind])

    def _units(self, ref: ImageRef) -> int:
        if not self.encoder.for_kind(ref.kind).cuts:
            return 1
        return self.images.transform.units(self.images.size_of(ref))


def _numbers(views: Views) -> int:
    return sum(map(_numbers, views)) if isinstance(views, tuple) else views.numel()
