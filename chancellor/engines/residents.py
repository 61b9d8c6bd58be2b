"""The engines that run: started one after another within the memory budget, and stopped to make room."""

import asyncio
import contextvars
from collections import Counter
from collections.abc import Callable
from typing import Literal

from chancellor.catalog import ModelSpec
from chancellor.engines.base import Engine
from chancellor.engines.endings import Endings
from chancellor.engines.gate import Gate
from chancellor.engines.resident import Resident, key_of
from chancellor.engines.room import Room
from chancellor.engines.sleepers import WAKE_S, Sleepers
from chancellor.engines.starts import Starts
from chancellor.engines.swap import Swap
from chancellor.engines.watch import Watch
from chancellor.errors import ChancellorError, EngineDiedError, OutOfMemoryError

__all__ = ["EngineState", "Residents"]

EngineState = Literal["ready", "starting", "stopping", "stopped", "asleep", "waking"]


class Residents:
    """Engines by entry. Used on the host's loop only."""

    def __init__(self, factory: Callable[[ModelSpec], Engine], room: Room | None = None) -> None:
        self._room = room
        self._all: dict[str, Resident] = {}
        self._gate = Gate()
        self._queued: Counter[str] = Counter()
        self._endings = Endings(self._drop)
        sleepers = Sleepers(self._all, room, self._endings.ending)
        self._swap = Swap(self._all, room, self._endings.end, sleepers)
        self._starts = Starts(factory, room, self._gate, self._swap)
        self._watch = Watch(self._all, self._bury)

    @property
    def closing(self) -> bool:
        """Whether all engines are being closed, for good."""
        return self._endings.closing

    def ready(self) -> list[Resident]:
        """Return those that can answer."""
        return [resident for resident in self._all.values() if resident.usable]

    def usable(self, spec: ModelSpec) -> bool:
        """Return whether the model's engine can answer now."""
        resident = self._all.get(key_of(spec))
        return resident is not None and resident.usable

    def known(self, spec: ModelSpec) -> bool:
        """Return whether the model's engine runs, or starts."""
        return key_of(spec) in self._all

    async def enter(self, spec: ModelSpec, *, elsewhere: bool = False, again: bool = False) -> Resident:
        """Return the model's engine, started where needed, with one user more: see `leave`.

        Args:
            spec: the entry.
            elsewhere: whether the caller can do something else if a start has failed only lately.
            again: whether the request was let in before, and its engine died: it is not sent away now.

        Raises:
            EngineBusyError: too many wait for it already.
            ChancellorError: whatever keeps it from starting.
        """
        key = key_of(spec)
        if not again:
            resident = self._all.get(key)
            self._gate.admit(spec, self._queued[key] + (resident.users if resident is not None else 0))
        self._queued[key] += 1
        try:
            resident = await self._get(spec, key, elsewhere=elsewhere)
        finally:
            self._queued[key] -= 1
        resident.enter()
        return resident

    def leave(self, resident: Resident) -> None:
        """Give up an engine that `enter` has returned."""
        resident.leave()
        self._gate.ended(resident.spec, resident.key)

    async def get(self, spec: ModelSpec) -> Resident:
        """Return the model's engine, started where needed."""
        return await self._get(spec, key_of(spec), elsewhere=False)

    async def stop(self, spec: ModelSpec) -> None:
        """Close the model's engine, if it runs."""
        if (resident := self._all.get(key_of(spec))) is not None:
            await self._endings.end(resident)

    async def close(self, patience_s: float | None = None) -> None:
        """Close all engines, for good. Requests that are still running end with an EngineDiedError.

        Args:
            patience_s: how long to wait for a start that does not end although it is interrupted; None has no limit.
        """
        self._endings.close(patience_s)
        for resident in self._all.values():
            if resident.waiting:
                resident.leaving = True  # which ends a download, too
                resident.task.cancel()
            if resident.moving is not None:
                resident.moving.cancel()
        while self._all:
            # One by one: a close that is interrupted (Ctrl-C) can be taken up again.
            await self._endings.end(next(iter(self._all.values())))
        self._watch.end()

    def start_s(self, spec: ModelSpec) -> float | None:
        """Return the seconds until the model can answer, as far as that is known. May be called from any thread."""
        key = key_of(spec)
        resident = self._all.get(key)
        if resident is not None and resident.asleep and not resident.leaving:
            return resident.wake_s or WAKE_S
        return 0.0 if resident is not None and resident.usable else self._starts.took.get(key)

    def state(self, spec: ModelSpec) -> EngineState:
        """Return what the model's engine is about. May be called from any thread."""
        resident = self._all.get(key_of(spec))
        if resident is None:
            return "stopped"
        # In this order, for other threads look while it changes: it sleeps before it leaves no more.
        leaving, asleep = resident.leaving, resident.asleep
        if asleep and not leaving:
            return "waking" if resident.moving is not None else "asleep"
        return "ready" if resident.usable else "stopping" if leaving else "starting"

    def asleep(self) -> dict[str, bool]:
        """Return which of the engines that run sleep, by the name of their model. May be called from any thread."""
        return {one.spec.name: one.asleep for one in tuple(self._all.values()) if one.engine is not None}

    def swaps(self) -> dict[str, int]:
        """Return how often engines were put to sleep, woken, and stopped to make room."""
        return dict(self._swap.count)

    def free_mib(self) -> float | None:
        """Return what the fullest device has free, in MiB. Reads files: not for a loop."""
        return self._room.free_mib() if self._room is not None else None

    async def _get(self, spec: ModelSpec, key: str, *, elsewhere: bool) -> Resident:
        while True:
            if self.closing:
                raise EngineDiedError("The engines are being closed.")
            resident = self._all.get(key)
            if resident is None:
                self._gate.check(key, elsewhere=elsewhere)
                resident = self._begin(spec, key)
            elif resident.leaving:
                await resident.gone.wait()
                continue
            elif resident.dead:
                self._bury(resident)
                continue
            elif resident.asleep:
                await asyncio.wait({self._swap.wake(resident)})  # which goes on when a caller has gone
                continue
            try:
                # Shielded: the others who wait for this engine must not suffer when one of them is cancelled.
                await asyncio.shield(resident.task)
            except asyncio.CancelledError:
                this = asyncio.current_task()
                if not resident.task.cancelled() or this is None or this.cancelling():
                    raise
                await resident.gone.wait()  # not the caller was cancelled, but the start
            if self._all.get(key) is resident and resident.usable:
                return resident

    def _begin(self, spec: ModelSpec, key: str) -> Resident:
        resident = Resident(spec, key)
        self._all[key] = resident
        # In a context of its own: the engine outlives the run, and the trace, that asked for it first.
        resident.task = asyncio.create_task(self._starts.start(resident), context=contextvars.Context())
        resident.task.add_done_callback(lambda task: self._forget_failure(resident, task))
        self._watch.begin()
        return resident

    def _bury(self, resident: Resident) -> None:
        """Note a death, and begin to close the engine."""
        if not resident.asleep:  # one that dies in its sleep has harmed nobody
            self._gate.breaker(resident.key).died(_death(resident))
        self._endings.ending(resident)

    def _forget_failure(self, resident: Resident, task: "asyncio.Task[Engine]") -> None:
        if task.cancelled() or task.exception() is not None:
            self._drop(resident)

    def _drop(self, resident: Resident) -> None:
        if self._all.get(resident.key) is resident:
            del self._all[resident.key]
        resident.gone.set()


def _death(resident: Resident) -> ChancellorError:
    name, shortage = resident.spec.name, resident.shortage()
    if shortage is None:
        return EngineDiedError(f"The engine of {name!r} keeps dying.")
    return OutOfMemoryError(f"The engine of {name!r} keeps running out of memory: {shortage}.")
