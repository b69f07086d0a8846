"""One door for published checkpoints: what a folder or hub id holds is told by its config alone."""

from __future__ import annotations

from collections.abc import Collection

from medloupe.errors import CheckpointError
from medloupe.models.encoders.checkpoints import checkpoint_file, read_json
from medloupe.models.weights.llava import is_llava, load_llava
from medloupe.models.weights.medm_vl import is_medm_vl, load_medm_vl
from medloupe.models.weights.original import is_original, load_original
from medloupe.models.weights.published import Parts, Published
from medloupe.models.weights.tinyllava import is_tinyllava, load_tinyllava

# In this order: the original LLaVA shares a model_type with transformers'.
READERS = (
    (is_original, load_original),
    (is_llava, load_llava),
    (is_tinyllava, load_tinyllava),
    (is_medm_vl, load_medm_vl),
)
NO_PARTS = Parts()


def load_published(
    source: str, parts: Parts = NO_PARTS, *, allow: Collection[str] = ()
) -> Published:
    """A checkpoint of another project as our model, with its tokenizer, prompt and transform.

    Args:
        source: a folder or a hub id: transformers' LLaVA, the original LLaVA's naming, TinyLLaVA
            Factory's (one folder, or one for each part), MedM-VL's.
        allow: prefixes of tensor names that may fit nothing.

    Raises:
        CheckpointError: it cannot be read, is of no known kind, or a tensor fits nothing, is missing, or
            has another shape.
        ConfigError: a part or choice that has no equal here.
    """
    config = read_json(checkpoint_file(source, ("config.json",)))
    for fits, load in READERS:
        if fits(config):
            return load(source, config, parts, allow=allow)
    raise CheckpointError(
        f"a checkpoint of the kind {config.get('model_type')!r} is not known",
        file=source,
        remedy="Known are LLaVA (transformers' and the original naming), TinyLLaVA and MedM-VL",
    )
