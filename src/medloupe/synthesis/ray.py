"""Teachers on a Ray cluster: actors hold them, one question a call.

The driver keeps journal, budget, pace and retries, so that a run means the same on one machine and on
many, and each may finish what the other began. Keys never travel: an actor reads the variable on its own
machine.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

from medloupe.cluster import explained, import_ray, join_cluster, workers_on
from medloupe.errors import MedLoupeError
from medloupe.synthesis.teachers.base import Answer, Failure, Teacher, TeacherConfig
from medloupe.synthesis.types import ChatMessage


class _Holder:
    """Lives in an actor: the open teachers of one worker."""

    def __init__(self, configs: Sequence[TeacherConfig]) -> None:
        self._teachers = {config.called: config.open() for config in configs}

    async def ask(
        self, teacher: str, messages: list[ChatMessage], schema: dict[str, Any] | None
    ) -> Answer | Failure:
        return await self._teachers[teacher].ask(messages, schema)

    async def ready(self) -> bool:
        return True

    async def close(self) -> None:
        for teacher in self._teachers.values():
            await teacher.close()


class _Cluster:
    """The actors of a run, and how many questions each has in hand."""

    def __init__(self, ray: Any, actors: list[Any], *, ours: bool) -> None:
        self.ray, self._actors, self._ours = ray, actors, ours
        self._busy = [0] * len(actors)
        self._users = 0

    async def ask(
        self, teacher: str, messages: Sequence[ChatMessage], schema: Mapping[str, Any] | None
    ) -> Answer | Failure:
        """Ask through the actor with the fewest questions."""
        number = min(range(len(self._actors)), key=self._busy.__getitem__)
        self._busy[number] += 1
        try:
            plain = dict(schema) if schema is not None else None
            said: Answer | Failure = await self._actors[number].ask.remote(
                teacher, list(messages), plain
            )
            return said
        except self.ray.exceptions.RayActorError as error:
            first = str(error).splitlines()[0]
            return Failure(scope="retry", reason=f"a worker died: {first}", paid=True)
        finally:
            self._busy[number] -= 1

    def join(self) -> None:
        self._users += 1

    async def leave(self) -> None:
        """The last one out ends the actors, and the cluster if it was started here."""
        self._users -= 1
        if self._users:
            return
        closing = (actor.close.remote() for actor in self._actors)
        await asyncio.gather(*closing, return_exceptions=True)  # one may be dead
        for actor in self._actors:
            self.ray.kill(actor)
        if self._ours:
            self.ray.shutdown()


class _RayTeacher(Teacher):
    def __init__(self, cluster: _Cluster, name: str) -> None:
        self._cluster, self._name = cluster, name
        cluster.join()

    async def ask(
        self, messages: Sequence[ChatMessage], schema: Mapping[str, Any] | None
    ) -> Answer | Failure:
        return await self._cluster.ask(self._name, messages, schema)

    async def close(self) -> None:
        await self._cluster.leave()


def open_on_ray(
    configs: Sequence[TeacherConfig], *, workers: int | None, address: str | None
) -> dict[str, Teacher]:
    """The teachers, each held by `workers` actors (default: one for each CPU of the cluster).

    The cluster is the one that runs already, the one at `address` (or `RAY_ADDRESS`), else a local one.

    Raises:
        MissingExtraError: Ray is not installed.
        ConfigError: more workers than CPUs, or a teacher cannot be opened on one: a key that is not set
            there, for one.
    """
    ray = import_ray()
    ours = join_cluster(ray, workers, address)
    try:
        actors = _actors(ray, configs, workers)
    except (MedLoupeError, ray.exceptions.RayError) as error:
        if ours:
            ray.shutdown()
        raise explained(error, "a worker cannot open the teachers") from None
    cluster = _Cluster(ray, actors, ours=ours)
    return {config.called: _RayTeacher(cluster, config.called) for config in configs}


def _actors(ray: Any, configs: Sequence[TeacherConfig], workers: int | None) -> list[Any]:
    """`workers` actors with open teachers."""
    number = workers_on(ray, workers)
    at_once = sum(config.concurrency for config in configs) + 1
    holder = ray.remote(num_cpus=1, max_restarts=-1)(_Holder)
    actors = [holder.options(max_concurrency=at_once).remote(configs) for _ in range(number)]
    ray.get([actor.ready.remote() for actor in actors])
    return actors
