"""A target of the benchmark that does as it is told."""

import asyncio
from typing import Any

from chancellor import errors
from chancellor.bench import Load, Questions
from chancellor.bench.targets.base import Ask, Reply, Stopwatch, Target


class Scripted(Target):
    """Answers after a while, fails where it is told to, and writes down what it was asked."""

    def __init__(self, name: str, journal: list[str], *, delay_s: float = 0.001, fail_every: int = 0) -> None:
        self.name, self.journal, self.delay_s, self.fail_every = name, journal, delay_s, fail_every
        self.asked: list[Ask] = []
        self.in_flight = self.peak = 0

    @property
    def detail(self) -> str:
        return "scripted"

    async def start(self) -> None:
        self.journal.append(f"start {self.name}")

    async def send(self, ask: Ask, stopwatch: Stopwatch) -> Reply:
        self.journal.append(self.name)
        self.asked.append(ask)
        if self.fail_every and len(self.asked) % self.fail_every == 0:
            raise errors.GenerationError("It did not want to.")
        self.in_flight += 1
        self.peak = max(self.peak, self.in_flight)
        try:
            for _ in range(ask.max_tokens if ask.stream else 0):
                await asyncio.sleep(self.delay_s)
                stopwatch.piece()
            if not ask.stream:
                await asyncio.sleep(self.delay_s)
        finally:
            self.in_flight -= 1
        return Reply("answer", 5, ask.max_tokens, 0, 0.5, 0.25)

    async def close(self) -> None:
        self.journal.append(f"close {self.name}")


def questions(**how: Any) -> Load:
    return Load(Questions(["one?", "two?"], max_tokens=3), **how)
