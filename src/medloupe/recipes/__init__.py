"""Recipes: functions that return a full `RunConfig`, the only place where choices meet.

Adding one is one file here and one line in `RECIPES`. Nothing is imported before it is named.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from medloupe.errors import ConfigError, did_you_mean

if TYPE_CHECKING:
    from medloupe.recipes.config import RunConfig

RECIPES = {
    "starter": "medloupe.recipes.starter:starter",
    "starter_tiny": "medloupe.recipes.starter:starter_tiny",
    "vqa_rad_starter": "medloupe.recipes.vqa_rad:vqa_rad_starter",
    "hia": "medloupe.recipes.hia:hia",
    "hia_tiny": "medloupe.recipes.hia:hia_tiny",
    "llama3_med": "medloupe.recipes.llama3_med:llama3_med",
    "llama3_med_tiny": "medloupe.recipes.llama3_med:llama3_med_tiny",
    "llava_med_mistral": "medloupe.recipes.llava_med:llava_med_mistral",
    "llava_med_mistral_tiny": "medloupe.recipes.llava_med:llava_med_mistral_tiny",
    "litegpt": "medloupe.recipes.litegpt:litegpt",
    "litegpt_biomedclip": "medloupe.recipes.litegpt:litegpt_biomedclip",
    "litegpt_pubmedclip": "medloupe.recipes.litegpt:litegpt_pubmedclip",
    "litegpt_tiny": "medloupe.recipes.litegpt:litegpt_tiny",
    "litegpt_biomedclip_tiny": "medloupe.recipes.litegpt:litegpt_biomedclip_tiny",
    "litegpt_pubmedclip_tiny": "medloupe.recipes.litegpt:litegpt_pubmedclip_tiny",
    "medm_vl_2d": "medloupe.recipes.medm_vl:medm_vl_2d",
    "medm_vl_ct_chest": "medloupe.recipes.medm_vl:medm_vl_ct_chest",
    "medm_vl_ct_chest_3d": "medloupe.recipes.medm_vl:medm_vl_ct_chest_3d",
    "medm_vl_ct_chest_avg": "medloupe.recipes.medm_vl:medm_vl_ct_chest_avg",
    "medm_vl_ct_chest_attn": "medloupe.recipes.medm_vl:medm_vl_ct_chest_attn",
    "medm_vl_2d_tiny": "medloupe.recipes.medm_vl:medm_vl_2d_tiny",
    "medm_vl_ct_chest_tiny": "medloupe.recipes.medm_vl:medm_vl_ct_chest_tiny",
    "medm_vl_ct_chest_3d_tiny": "medloupe.recipes.medm_vl:medm_vl_ct_chest_3d_tiny",
    "medm_vl_ct_chest_avg_tiny": "medloupe.recipes.medm_vl:medm_vl_ct_chest_avg_tiny",
    "medm_vl_ct_chest_attn_tiny": "medloupe.recipes.medm_vl:medm_vl_ct_chest_attn_tiny",
}


def recipe(name: str) -> RunConfig:
    """The recipe of that name.

    Raises:
        ConfigError: there is none.
    """
    if name not in RECIPES:
        raise ConfigError(f"unknown recipe {name!r}; {did_you_mean(name, RECIPES)}")
    module, _, function = RECIPES[name].partition(":")
    made: RunConfig = getattr(importlib.import_module(module), function)()
    return made


def load_run(source: str, overrides: Sequence[str] = ()) -> RunConfig:
    """A recipe by name, or a run from a YAML or JSON file, with `a.b=value` overrides.

    Raises:
        ConfigError: neither, or a field that does not exist or does not fit.
    """
    path = Path(source)
    if path.suffix in (".yaml", ".yml", ".json") or path.is_file():
        from medloupe.recipes.config import RunConfig

        config = RunConfig.from_yaml(path)
    else:
        config = recipe(source)
    return config.with_overrides(overrides) if overrides else config
