"""The forms by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from medloupe.errors import ConfigError, did_you_mean
from medloupe.evaluate.export.lmms_eval import write_lmms_eval
from medloupe.evaluate.export.vlmevalkit import write_vlmevalkit
from medloupe.types import EvalLog

FORMS: Final[Mapping[str, Callable[[EvalLog, Path, str], list[Path]]]] = {
    "lmms-eval": write_lmms_eval,
    "vlmevalkit": write_vlmevalkit,
}


def export_log(log: EvalLog, form: str, out: Path, *, model: str) -> list[Path]:
    """Write a log below `out` in a form; `model` names the model in it. Returns the files.

    Raises:
        ConfigError: an unknown form.
    """
    if form not in FORMS:
        raise ConfigError(f"unknown form {form!r}; {did_you_mean(form, FORMS)}", field="form")
    return FORMS[form](log, out, model)
