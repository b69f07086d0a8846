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
