"""A comparison as Markdown: what was run, what it scored, and what that says to the paper's claims."""

from __future__ import annotations

from collections.abc import Mapping

from medloupe.evaluate.statistics import Estimate
from medloupe.reproduce.compare import Answer, Comparison

PerRun = Mapping[tuple[str, int], str]


def markdown(
    comparison: Comparison, reports: PerRun, seconds: Mapping[tuple[str, int], float]
) -> str:
    """`reports` and `seconds` by row label and seed; reports are paths relative to the page."""
    grid = comparison.grid
    parts = [
        f"# {grid.title}",
        f"Grid `{grid.name}`, version {grid.version}, answers {grid.answers}. "
        f"{_seeds(comparison)}; 95 % intervals over patients and seeds, both resampled.",
        *_smaller(comparison),
        "\n".join(_table(comparison)),
        "## What the paper says",
        "\n".join(_claims(comparison)) or "Nothing that can be compared.",
        summary(comparison),
        *_different(comparison),
        "## Runs",
        "\n".join(_runs(comparison, reports, seconds)),
        "How all of it was made: [manifest.json](manifest.json).",
    ]
    return "\n\n".join(parts) + "\n"


def shown(found: Estimate, *, signed: bool = False) -> str:
    """ "61.2 (55.0 to 67.1)", in percent."""
    if found.estimate is None:
        return "-"
    sign = "+" if signed else ""
    text = f"{100 * found.estimate:{sign}.1f}"
    if found.low is None or found.high is None:
        return text
    return f"{text} ({100 * found.low:{sign}.1f} to {100 * found.high:{sign}.1f})"


def summary(comparison: Comparison) -> str:
    """One line: how often the direction is the paper's."""
    verdicts = [answer.verdict for answer in comparison.answers]
    asked = len(verdicts) - verdicts.count("not measured")
    return (
        f"Direction as in the paper: {verdicts.count('agrees')} of {asked}; the opposite: "
        f"{verdicts.count('differs')}; undecided: {verdicts.count('undecided')}."
    )


def claimed(answer: Answer) -> str:
    """ "A above B", as the paper has it."""
    relation = "above" if answer.claim.says == "more" else "no better than"
    return f"{answer.claim.first} {relation} {answer.claim.second}"


def claim_rows(comparison: Comparison) -> list[tuple[str, str, str, str, str]]:
    """Of each claim: what it says, the paper's numbers, the measure, the difference here, the verdict."""
    return [
        (
            claimed(answer),
            answer.claim.paper,
            answer.measure,
            shown(answer.difference, signed=True),
            answer.verdict,
        )
        for answer in comparison.answers
    ]


def score_cells(comparison: Comparison, label: str) -> list[str]:
    """What a row scored in each measure."""
    cells = [comparison.cell(label, measure.label) for measure in comparison.grid.measures]
    return [shown(cell.estimate) if cell else "-" for cell in cells]


def majority_cells(comparison: Comparison) -> list[str]:
    """What the most frequent training answers score in each measure."""
    known = comparison.majority
    return [
        f"{100 * known[measure.label]:.1f}" if measure.label in known else "-"
        for measure in comparison.grid.measures
    ]


def _seeds(comparison: Comparison) -> str:
    count = len(comparison.seeds)
    return f"{count} seeds" if count > 1 else "One seed, so intervals are over patients alone"


def _smaller(comparison: Comparison) -> list[str]:
    if not comparison.grid.smaller:
        return []
    lines = [f"- {line}" for line in comparison.grid.smaller]
    return ["Not the paper's setting:\n\n" + "\n".join(lines)]


def _table(comparison: Comparison) -> list[str]:
    measures = [measure.label for measure in comparison.grid.measures]
    lines = [f"| row | {' | '.join(measures)} |", "|---" * (len(measures) + 1) + "|"]
    for row in comparison.grid.rows:
        lines.append(f"| {row.label} | {' | '.join(score_cells(comparison, row.label))} |")
    majority = " | ".join(majority_cells(comparison))
    return [*lines, f"| *most frequent training answer* | {majority} |"]


def _claims(comparison: Comparison) -> list[str]:
    if not comparison.answers:
        return []
    lines = ["| claim | paper | measure | here | verdict |", "|---|---|---|---|---|"]
    return lines + [f"| {' | '.join(row)} |" for row in claim_rows(comparison)]


def _different(comparison: Comparison) -> list[str]:
    """Every claim that is not met, with what was known beforehand, or that nothing explains it."""
    unmet = [a for a in comparison.answers if a.verdict in ("differs", "undecided")]
    if not unmet:
        return []
    lines = []
    for answer in unmet:
        why = answer.claim.because or "Unexplained."
        state = "the opposite" if answer.verdict == "differs" else "no clear direction"
        lines.append(
            f"- {claimed(answer)} ({answer.measure}): {state}, "
            f"{shown(answer.difference, signed=True)} points. {why}"
        )
    return ["## Where it does not come out", "\n".join(lines)]


def _runs(
    comparison: Comparison, reports: PerRun, seconds: Mapping[tuple[str, int], float]
) -> list[str]:
    lines = ["| row | seed | seconds | report |", "|---|---|---|---|"]
    for row in comparison.grid.rows:
        for seed in comparison.seeds:
            place = row.label, seed
            link = f"[report]({reports[place]})"
            lines.append(f"| {row.label} | {seed} | {seconds[place]:.0f} | {link} |")
    return lines
