"""What a user can get wrong, by kind.

Every error carries a `Fault`: where it is (file, row, field), which rule it breaks and what to do.
`check` collects faults without raising; everything else raises the error that carries one.
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Fault:
    """One thing wrong with an input: where it stands, the rule it breaks, the remedy."""

    rule: str
    remedy: str = ""
    file: str | None = None
    row: str | None = None
    field: str | None = None

    def __str__(self) -> str:
        places = (("file", self.file), ("row", self.row), ("field", self.field))
        where = ", ".join(f"{name} {value!r}" for name, value in places if value is not None)
        text = f"{where}: {self.rule}" if where else self.rule
        return f"{text}. {self.remedy}" if self.remedy else text


class MedLoupeError(ValueError):
    """Base of everything a user can get wrong; the command line prints it and exits with 2."""

    def __init__(
        self,
        rule: str,
        *,
        remedy: str = "",
        file: str | None = None,
        row: str | None = None,
        field: str | None = None,
    ) -> None:
        self.fault = Fault(rule=rule, remedy=remedy, file=file, row=row, field=field)
        super().__init__(str(self.fault))

    @classmethod
    def of(cls, fault: Fault) -> MedLoupeError:
        """The error that carries an existing fault."""
        return cls(
            fault.rule, remedy=fault.remedy, file=fault.file, row=fault.row, field=fault.field
        )

    def at(
        self, *, file: str | None = None, row: str | None = None, field: str | None = None
    ) -> MedLoupeError:
        """The same error with a place filled in where it had none (a reader knows no row id)."""
        fault = self.fault
        return type(self)(
            fault.rule,
            remedy=fault.remedy,
            file=fault.file or file,
            row=fault.row or row,
            field=fault.field or field,
        )


class ConfigError(MedLoupeError):
    """A configuration value, field or component name that does not exist or does not fit."""


class DataError(MedLoupeError):
    """A row or a data set that breaks a rule of the native form."""


class LeakError(DataError):
    """The same patient or image on both sides of a split."""


class ImageError(MedLoupeError):
    """An image file that cannot be read as what it claims to be."""


class PromptError(MedLoupeError):
    """A conversation that cannot be rendered for the model (too long, control tokens, images)."""


class CheckpointError(MedLoupeError):
    """A checkpoint that is missing, incomplete, or does not fit the model."""


class TrainingError(MedLoupeError):
    """Training cannot go on: non-finite loss or gradient, nothing trainable, no rows."""


class MissingExtraError(MedLoupeError):
    """A package of an optional extra is not installed; the message names the pip line."""

    @classmethod
    def naming(cls, package: str, *, extra: str, line: str | None = None) -> MissingExtraError:
        """The error for `package`, which the extra `extra` (or the pip line `line`) installs."""
        command = line or f'pip install "medloupe[{extra}]"'
        return cls(f"{package} is not installed", remedy=f"Install it with: {command}")


def import_extra(
    module: str, *, extra: str, package: str | None = None, line: str | None = None
) -> Any:
    """A module of the optional extra `extra`; `package` is what brings it (default: its first name), `line`
    a pip line in the extra's place.

    Raises:
        MissingExtraError: it cannot be imported.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        named = package or module.partition(".")[0]
        raise MissingExtraError.naming(named, extra=extra, line=line) from error


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """`; did you mean 'mlp'?` for a near name, else a list of the known ones."""
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.55)
    if near:
        return "did you mean " + " or ".join(repr(n) for n in near) + "?"
    return "known: " + ", ".join(names) if names else "none are known"
