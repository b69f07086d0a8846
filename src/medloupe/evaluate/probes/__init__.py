"""Probes: the same questions asked again with something changed, to see what an answer depends on."""

from medloupe.evaluate.probes.base import Asked, Look, Probe

__all__ = ["Asked", "Look", "Probe", "default_probes"]


def default_probes() -> tuple[Probe, ...]:
    """All of them; each asks only the rows to which it applies."""
    return tuple(Probe.parse(name) for name in Probe.table)
