"""The grids: what the four papers compare, at a size that two CPU cores finish in hours."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from medloupe.reproduce.grid import Grid
from medloupe.reproduce.grids import hia, litegpt, llama3_med, medm_vl

GRIDS: Final[Mapping[str, Callable[[], Grid]]] = {
    "encoders": litegpt.encoders,
    "scales": llama3_med.scales,
    "volumes": medm_vl.volumes,
    "layers": medm_vl.layers,
    "encoder_training": medm_vl.encoder_training,
    "language_training": medm_vl.language_training,
    "stages": medm_vl.stages,
    "volume_start": medm_vl.volume_start,
    "identifiers": litegpt.identifiers,
    "hia": hia.hia,
    "hia_parts": hia.hia_parts,
    "hia_queries": hia.hia_queries,
    "hia_layers": hia.hia_layers,
    "hia_resolution": hia.hia_resolution,
}
