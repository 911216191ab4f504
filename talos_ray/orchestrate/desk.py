"""The desk of a merge search, where its trials get candidates: an actor. Its process loads this file, so nothing here imports Tune."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from talos_ray.orchestrate.cluster import WARM


class Desk:
    """Hands candidates to trials. One that was with a lost trial goes to its successor, or back to the others."""

    def __init__(self) -> None:
        self.waiting: list[dict] = []
        self.with_trial: dict[str, dict] = {}
        self.gone: set[str] = set()
        self.closed = False
        self.news = asyncio.Condition()

    async def put(self, orders: Sequence[dict]) -> None:
        self.waiting += [] if self.closed else orders
        await self._tell()

    async def close(self) -> None:
        """Nothing is handed out any more."""
        self.closed = True
        self.waiting.clear()
        await self._tell()

    async def lost(self, trial: str) -> None:
        """The trial will not come back."""
        self.gone.add(trial)
        if (order := self.with_trial.pop(trial, None)) is not None:
            await self.put([order])

    async def next(self, trial: str, finished: int | None) -> tuple[dict | None, float]:
        """Waits for an order; None once there will be none. Also the seconds waited. `finished`: number of the one before."""
        started = time.perf_counter()
        if finished is not None and self.with_trial.get(trial, {}).get("number") == finished:
            del self.with_trial[trial]
        async with self.news:
            await self.news.wait_for(
                lambda: trial in self.with_trial or self.waiting or self.closed or trial in self.gone
            )
            if self.waiting and trial not in self.with_trial and trial not in self.gone:
                self.with_trial[trial] = self.waiting.pop(0)
        return self.with_trial.get(trial), time.perf_counter() - started

    async def _tell(self) -> None:
        async with self.news:
            self.news.notify_all()


class Waiting:
    """An actor whose calls wait for their answers."""

    def __init__(self, actor) -> None:
        self._actor = actor

    def __getattr__(self, name: str) -> Callable:
        return lambda *args, **kwargs: ray.get(getattr(self._actor, name).remote(*args, **kwargs))


def open_desk():
    """A desk for one search. Its process takes seconds to start, so it is opened before there is work for it."""
    # On the driver's own node: only with the driver may it be lost.
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return ray.remote(num_cpus=0, **WARM)(Desk).options(scheduling_strategy=here).remote()
