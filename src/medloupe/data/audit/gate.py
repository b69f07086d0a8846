"""The audit as a gate before training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from medloupe.config import Config
from medloupe.data.audit.findings import AuditConfig, AuditReport
from medloupe.data.audit.run import AuditSet, audit
from medloupe.data.dataset import Progress
from medloupe.errors import LeakError


class GateConfig(Config):
    """What training refuses. Patients, identical files and identical pixels on two sides are refused
    unless `allow_leak` is set or the card of the data set states a leak; either way it is told.
    Patient ids and DICOM headers that hint at one patient on two sides are a warning.
    Near duplicates are `near`: a warning, refused as well, or not looked for."""

    allow_leak: bool = False
    near: Literal["warn", "refuse", "off"] = "warn"


@dataclass(frozen=True)
class Passed:
    """What the gate let through: `leak` in words ("" for none), goes into the manifest; `warnings`
    are whole sentences."""

    leak: str = ""
    warnings: tuple[str, ...] = ()


def gate(
    sets: Sequence[AuditSet],
    config: GateConfig,
    *,
    stated: str = "",
    workers: int | None = None,
    progress: Progress | None = None,
) -> Passed:
    """Audit what is about to be trained on; `stated` is the leak that the card admits.

    Raises:
        LeakError: a leak that nobody allowed.
    """
    level: Literal["near", "pixels"] = "pixels" if config.near == "off" else "near"
    found = audit(sets, AuditConfig(images=level), workers=workers, progress=progress)
    hard = [f for f in found.leaks if f.kind in ("patient", "file", "pixels")]
    soft = [f for f in found.leaks if f.kind == "near"]
    refused = hard + (soft if config.near == "refuse" else [])
    if refused and not (config.allow_leak or stated):
        first, more = refused[0], len(refused) - 1
        raise LeakError(
            str(first) + (f" ({more:,} more leaks)" if more else ""),
            remedy="Run 'medloupe audit' for all of them and split by patient, or allow it by name "
            "(--set audit.allow_leak=true); the run then says so",
            row=first.places[-1].row,
        )
    hints = [f for f in found.leaks if f.kind in ("header", "similar patient id")]
    return Passed(leak=_words(found, hard + soft + hints), warnings=_warnings(hard, soft, hints))


def _words(report: AuditReport, found: Sequence[object]) -> str:
    return f"{report.statement()} on two sides" if found else ""


def _warnings(
    hard: Sequence[object], soft: Sequence[object], hints: Sequence[object]
) -> tuple[str, ...]:
    lines = []
    if hard:
        lines.append(f"warning: {len(hard):,} leaks are allowed by name: {hard[0]}")
    if soft:
        lines.append(f"warning: {len(soft):,} near-duplicate images on two sides: {soft[0]}")
    if hints:
        lines.append(f"warning: {len(hints):,} patients may be on two sides: {hints[0]}")
    return tuple(lines)
