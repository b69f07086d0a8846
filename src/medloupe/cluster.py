"""A Ray cluster: the one that runs already, the one at an address, or one that is started here."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from medloupe.endpoints import is_local
from medloupe.errors import ConfigError, MedLoupeError, import_extra


def import_ray() -> Any:
    """The module ray.

    Raises:
        MissingExtraError: it is not installed.
    """
    return import_extra("ray", extra="ray")


def cluster_address(address: str | None) -> str | None:
    """`address`, else what `RAY_ADDRESS` names."""
    return address or os.environ.get("RAY_ADDRESS")


def join_cluster(ray: Any, workers: int | None, address: str | None) -> bool:
    """Join the cluster that is named, or start one here with `workers` CPUs (default: all).

    False where this process was in one already; else it is the caller's to end: `ray.shutdown()`.
    """
    if ray.is_initialized():
        return False
    named = cluster_address(address)
    own = {} if named else {"num_cpus": workers or os.cpu_count(), "include_dashboard": False}
    ray.init(address=named, log_to_driver=False, logging_level="ERROR", **own)
    return True


@contextmanager
def on_cluster(ray: Any, workers: int | None, address: str | None) -> Iterator[None]:
    """As `join_cluster`, for as long as the block takes."""
    ours = join_cluster(ray, workers, address)
    try:
        yield
    finally:
        if ours:
            ray.shutdown()


def workers_on(ray: Any, workers: int | None) -> int:
    """As many as are asked for, else one for each CPU of the cluster.

    Raises:
        ConfigError: it has fewer CPUs: the last workers would be waited for without end.
    """
    cpus = max(1, int(ray.cluster_resources().get("CPU", 1)))
    number = workers or cpus
    if number > cpus:
        raise ConfigError(
            f"{number} workers were asked for, and the cluster has {cpus} CPUs",
            remedy=f"Pass --workers {cpus} or fewer",
        )
    return number


def stays_here(address: str | None) -> bool:
    """Whether the cluster at `address` (or `RAY_ADDRESS`) is on this machine or network: where it is not,
    whatever its actors are sent has left."""
    named = cluster_address(address) or "auto"
    return named in ("auto", "local") or is_local(f"http://{named.rpartition('://')[2]}")


def explained(error: Exception, what: str, *, remedy: str = "") -> MedLoupeError:
    """What went wrong in a worker, without its traceback; `what` begins the sentence where it was no
    user's mistake."""
    for found in (error.__cause__, error):
        if isinstance(found, MedLoupeError):
            return found
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return ConfigError(f"{what}: {lines[-1]}", remedy=remedy)
