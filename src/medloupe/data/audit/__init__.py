"""The leak audit: what stands on both sides of a split, or in a benchmark and in the data trained on."""

from medloupe.data.audit.findings import AuditConfig, AuditReport, Finding, Place
from medloupe.data.audit.gate import GateConfig, Passed, gate
from medloupe.data.audit.run import AuditSet, audit, read_set

__all__ = [
    "AuditConfig",
    "AuditReport",
    "AuditSet",
    "Finding",
    "GateConfig",
    "Passed",
    "Place",
    "audit",
    "gate",
    "read_set",
]
