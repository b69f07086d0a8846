"""Features of frozen encoders on disk, shared by processes and runs.

A key holds what the features are made of: the views (so the image and its transform, whatever decoded
it), the encoder's config and every one of its tensors, the precision it computes in, and torch's version.
So nothing stored is ever stale. Between machines and numbers of threads, bits may differ as those of any
encoder do.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, Literal

import numpy as np
import torch

import medloupe
from medloupe.imaging.blobs import Blob, BlobLog
from medloupe.models.vlm import VisionLanguageModel, encoder_hash, on_device
from medloupe.types import ImageInput, ImageLayout, Views

# What a frozen encoder computes in: bfloat16 under autocast, or its weights' own precision.
Precision = Literal["bf16", "fp32"]

# numpy has no bfloat16: bits travel as integers.
_BITS: Final = {
    torch.float32: (torch.int32, np.int32),
    torch.bfloat16: (torch.int16, np.int16),
    torch.float16: (torch.int16, np.int16),
}


def frozen_features(
    model: VisionLanguageModel, image: ImageInput, precision: Precision
) -> ImageInput:
    """The image with the features that the encoder makes of it alone, on the CPU."""
    device, bf16 = model.device, precision == "bf16"
    with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, enabled=bf16):
        (encoded,) = model.encode([on_device(image, device)])
    return on_device(encoded, torch.device("cpu"))


class FeatureStore:
    """Features `[T, C]` with their grids below `folder`, in at most `limit_bytes`; see `BlobLog`.

    Raises:
        ConfigError: the folder cannot be made or written.
    """

    def __init__(self, folder: Path, limit_bytes: int = 8 * 2**30) -> None:
        self.folder, self.blobs = folder, BlobLog(folder, limit_bytes)

    def of(self, model: VisionLanguageModel, precision: Precision) -> KnownFeatures:
        """Those of the model's encoder as it is now; ask again once it has changed."""
        made_by = [
            medloupe.__version__,
            torch.__version__,
            json.dumps(model.config.encoder, sort_keys=True),
            encoder_hash(model.encoder),
            precision,
        ]
        return KnownFeatures(self.blobs, model, precision, json.dumps(made_by).encode())


@dataclass(frozen=True)
class KnownFeatures:
    """The features that one encoder makes."""

    blobs: BlobLog
    model: VisionLanguageModel
    precision: Precision
    made_by: bytes

    def of(self, image: ImageInput) -> ImageInput:
        """The image with what is stored for its views, else with what the encoder makes of them now."""
        assert image.views is not None, "an image that is not encoded has views"
        digest = hashlib.sha256(self.made_by)
        digest.update(image.kind.encode())
        _feed(digest, image.views)
        blob = self.blobs.get(digest.digest())
        if blob is not None:
            return _stored(image, blob)
        made = frozen_features(self.model, image, self.precision)
        self._keep(digest.digest(), made)
        return made

    def _keep(self, key: bytes, made: ImageInput) -> None:
        assert made.features is not None, "an encoded image has features"
        assert made.grid is not None, "features stand on a grid"
        features_TC = made.features.cpu().contiguous()
        meta = {
            "dtype": str(features_TC.dtype).removeprefix("torch."),
            "shape": list(features_TC.shape),
            "grid": made.grid.to_dict(),
        }
        bits = features_TC.view(_BITS[features_TC.dtype][0]).numpy().tobytes()
        self.blobs.put(key, meta, memoryview(bits))


def _feed(digest: hashlib._Hash, views: Views) -> None:
    """Every tensor with its shape, in reading order."""
    if isinstance(views, tuple):
        digest.update(f"({len(views)}".encode())
        for view in views:
            _feed(digest, view)
        return
    digest.update(str(tuple(views.shape)).encode())
    digest.update(views.detach().cpu().contiguous().numpy().data)


def _stored(image: ImageInput, blob: Blob) -> ImageInput:
    dtype = getattr(torch, blob.meta["dtype"])
    # a copy: the map is read-only, and torch has no read-only tensors
    bits = np.frombuffer(blob.payload, dtype=_BITS[dtype][1]).copy()
    features_TC = torch.from_numpy(bits).view(dtype).view(blob.meta["shape"])
    grid = ImageLayout.parse(blob.meta["grid"])
    return replace(image, views=None, features=features_TC, grid=grid)
