"""How requests arrive: so many in flight (closed loop), or at random at a mean rate (open loop)."""

import asyncio
import random
import time
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any

from chancellor.bench.workload import Conversation, Workload
from chancellor.errors import WorkloadError

__all__ = ["Load", "closed_loop", "open_loop"]

Converse = Callable[[int, Conversation, float], Coroutine[Any, Any, None]]
"""Runs one conversation: its number, itself, and when it was due on time.perf_counter's clock."""


@dataclass(frozen=True, slots=True)
class Load:
    """A workload and how it arrives: give one of `concurrency` and `rate`."""

    workload: Workload
    concurrency: int | None = None
    """Closed loop: this many conversations are in flight; the next one starts when one is over."""
    rate: float | None = None
    """Open loop: conversations start at this mean rate a second, whether or not the others are done."""
    requests: int | None = None
    """Number of requests; None is two conversations for each in flight, or 20 seconds' worth, and at least 6."""
    max_s: float | None = None
    """No conversation starts later than this after the first."""

    def __post_init__(self) -> None:
        if (self.concurrency is None) == (self.rate is None):
            raise WorkloadError("A load has either a concurrency or a rate.", hint="Give exactly one of them.")
        if self.concurrency is not None and self.concurrency < 1:
            raise WorkloadError(f"The concurrency is {self.concurrency}.", hint="Give 1 or more.")
        if self.rate is not None and not 0 < self.rate < float("inf"):
            raise WorkloadError(f"The rate is {self.rate}.", hint="Give a number of requests a second above 0.")
        if self.requests is not None and self.requests < 1:
            raise WorkloadError(f"The number of requests is {self.requests}.", hint="Give 1 or more.")
        if self.max_s is not None and not self.max_s > 0:
            raise WorkloadError(f"The time limit is {self.max_s} s.", hint="Give more than 0.")
        if self.concurrency is not None and -(-self.count // self.workload.turns) < self.concurrency:
            raise WorkloadError(
                f"{self.requests} requests cannot keep {self.concurrency} conversations in flight.",
                hint=f"Give at least {self.concurrency * self.workload.turns}.",
            )

    @property
    def count(self) -> int:
        """How many requests are sent."""
        if self.requests is not None:
            return self.requests
        started = 2 * self.concurrency if self.concurrency is not None else round(20 * (self.rate or 0))
        return max(6, started * self.workload.turns)

    @property
    def label(self) -> str:
        """The load in words; two runs with the same label did the same."""
        unit = "requests" if self.workload.turns == 1 else "conversations"
        how = f"concurrency {self.concurrency}" if self.concurrency is not None else f"{self.rate:g} {unit}/s"
        return f"{self.workload.name} at {how}"

    async def run(self, conversations: Sequence[Conversation], converse: Converse, seed: str) -> None:
        """Run the conversations to their end."""
        if self.concurrency is not None:
            await closed_loop(conversations, converse, self.concurrency, self.max_s)
        else:
            await open_loop(conversations, converse, self.rate or 1.0, seed, self.max_s)


async def closed_loop(
    conversations: Sequence[Conversation], converse: Converse, concurrency: int, max_s: float | None = None
) -> None:
    """Keep `concurrency` conversations in flight."""
    waiting = iter(enumerate(conversations))
    began = time.perf_counter()

    async def worker() -> None:
        for number, conversation in waiting:
            now = time.perf_counter()
            if max_s is not None and now - began > max_s:
                return
            await converse(number, conversation, now)

    async with asyncio.TaskGroup() as group:
        for _ in range(min(concurrency, len(conversations))):
            group.create_task(worker())


async def open_loop(
    conversations: Sequence[Conversation], converse: Converse, rate: float, seed: str, max_s: float | None = None
) -> None:
    """Start conversations as a Poisson process: the gaps between arrivals are exponential with mean 1 / rate.

    A request that starts late, because this process was busy, is still timed from when it was due: waiting that the
    load generator causes would otherwise vanish from the latencies (coordinated omission).
    """
    rng = random.Random(f"{seed}/arrivals")
    began = due = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        for number, conversation in enumerate(conversations):
            if max_s is not None and due - began > max_s:
                return
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            group.create_task(converse(number, conversation, due))
            due += rng.expovariate(rate)
