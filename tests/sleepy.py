"""Engines that sleep as they are told, on a GPU that is not there."""

import asyncio
from collections.abc import AsyncIterator
from typing import ClassVar

from chancellor.catalog import ModelSpec
from chancellor.engines import Delta, EnginePool, GenerationRequest
from chancellor.engines.resident import Resident, key_of
from chancellor.engines.room import Room
from chancellor.errors import EngineDiedError
from chancellor.memory import Device, Estimate
from tests.entries import GIB
from tests.faulty import FaultyEngine

FIXED = 10
"""GiB that an engine takes besides its KV cache: 8 of weights, 1 of a step, 1 of the process."""
WANTS = 8
"""GiB of its KV cache."""
EXPECTED = 1.5
"""GiB that a sleeper is thought to leave on the device."""
C = ModelSpec(name="c", source="fake/c", trinity=97.0, parameters=500)


class Sleepy(FaultyEngine):
    """Fails in its sleep as it is told; takes memory of one device for all of its kind."""

    used: ClassVar[dict[int, float]] = {}
    """GiB by engine."""
    log: ClassVar[list[str]] = []
    faults: ClassVar[set[str]] = set()
    rest: ClassVar[float] = 1.5
    slow_s: ClassVar[float] = 0.0
    """How long falling asleep, and waking, take."""
    held: ClassVar[str] = ""
    """Which of these, as the log has it, takes until this is another."""
    able: ClassVar[bool] = True
    wrong: ClassVar[list[str]] = []
    """What must not be asked of an engine, but was: whoever asks takes the error for a fault of the engine."""
    asleep = False
    closed = False

    @classmethod
    def fresh(cls) -> None:
        FaultyEngine.reset()
        cls.used.clear()
        cls.log.clear()
        cls.faults.clear()
        cls.wrong.clear()
        cls.rest, cls.slow_s, cls.held, cls.able = 1.5, 0.0, "", True

    @property
    def can_sleep(self) -> bool:
        return self.able

    async def start(self) -> None:
        await super().start()
        self.used[id(self)] = self.whole
        self._check(sum(self.used.values()) <= Hall.size, "started without room")

    @property
    def whole(self) -> float:
        return FIXED + (self.spec.engine.kv_cache_gib or 0)

    async def generate(self, request: GenerationRequest) -> AsyncIterator[Delta]:
        self._check(not self.asleep, "asked in its sleep")
        if request.prompt is None:
            async for delta in super().generate(request):
                yield delta
            return
        self._check(not self._answering, "probed while busy")
        again = f"sleep {self.spec.name}" in self.log
        yield Delta("", (7, 8) if again and "answer" in self.faults else (7, 7), finish_reason="length")

    def _check(self, allowed: bool, what: str) -> None:
        if not allowed:
            self.wrong.append(f"{self.spec.name}: {what}")
            raise AssertionError(self.wrong[-1])

    async def _do(self, what: str) -> None:
        self.log.append(f"{what} {self.spec.name}")
        await asyncio.sleep(self.slow_s)
        while Sleepy.held == f"{what} {self.spec.name}":  # noqa: ASYNC110 - it is set in another thread
            await asyncio.sleep(0.005)
        if f"{what} fails" in self.faults:
            raise RuntimeError("No.")
        if f"{what} dies" in self.faults:
            self.kill()
        if {f"{what} hangs", f"{what} dies"} & self.faults:
            await asyncio.Event().wait()  # as a call of vLLM's whose process is gone

    async def sleep(self) -> None:
        self._check(not self.asleep and not self._answering, "put to sleep twice, or while busy")
        await self._do("sleep")
        if "sleep keeps" not in self.faults:
            self.used[id(self)] = self.rest
        self.asleep = True

    async def wake(self) -> None:
        self._check(self.asleep, "woken while awake")
        await self._do("wake")
        self.used[id(self)] = self.whole
        self._check(sum(self.used.values()) <= Hall.size, "woken without room")
        self.asleep = False

    def kill(self) -> None:
        if self.healthy():
            self.log.append(f"kill {self.spec.name}")
        super().kill()
        self.used.pop(id(self), None)

    async def close(self) -> None:
        if not self.closed:
            self.closed = True
            self.log.append(f"close {self.spec.name}")
            FaultyEngine.kill(self)
            self.used.pop(id(self), None)


class Hall(Room):
    """A GPU with so many GiB."""

    size: ClassVar[float] = 0.0

    def __init__(self, size: float) -> None:
        Hall.size = size
        self.others = 0.0
        """GiB that others hold."""

    def expected(self, spec: ModelSpec) -> Estimate:
        parts = {"weights": 8, "kv_cache": WANTS, "kv_cache_least": 1, "activations": 1, "graphs": 0, "overhead": 1}
        return Estimate(("cuda:0",), **{name: size * GIB for name, size in parts.items()})

    def _read(self) -> list[Device]:
        used = sum(Sleepy.used.values())
        if used > self.size:
            raise AssertionError("Out of memory.")
        size = int(self.size * GIB)
        return [Device("cuda:0", size, int((self.size - used - self.others) * GIB), size)]

    def took(self, *_: object) -> None:
        return None


def resident(pool: EnginePool, spec: ModelSpec) -> Resident:
    return pool._residents._all[key_of(spec)]


async def dead_engine(pool: EnginePool, spec: ModelSpec) -> None:
    """Kill it as somebody else would."""

    async def kill() -> None:
        engine = resident(pool, spec).engine
        if engine is None:
            raise EngineDiedError("There is none.")
        engine.kill()

    await pool.arun(kill())
