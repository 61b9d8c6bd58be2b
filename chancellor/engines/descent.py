"""One request's way to an engine, down the ladder where it has to, and the record of it."""

import copy
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Final

from chancellor import progress
from chancellor.catalog import ModelSpec
from chancellor.engines.base import Delta
from chancellor.engines.host import in_thread
from chancellor.engines.ladder import Ladder, Rung, cause_of, label
from chancellor.engines.resident import Resident, SmallerCache, key_of
from chancellor.engines.residents import Residents
from chancellor.errors import ChancellorError, EngineDiedError, PromptTooLongError
from chancellor.fallbacks import Cause, Fallback, Step

__all__ = ["Descent"]

_GIB: Final = 2**30


class Descent:
    """Finds an engine for a request, and notes each step that this takes."""

    def __init__(self, spec: ModelSpec, ladder: Ladder | None, residents: Residents) -> None:
        self._asked = self._spec = spec
        self._ladder = ladder or Ladder()
        self._residents = residents
        self._failed: set[str] = set()
        self._died: EngineDiedError | None = None
        self._shortage: str | None = None
        self._cut: str | None = None
        self._spared = False
        self._began = 0.0
        self._free: float | None = None
        self._steps: list[Fallback] = []

    async def enter(self, *, emitted: bool) -> Resident:
        """Return an engine that answers.

        Args:
            emitted: whether the caller has a part of the answer: then model and scheme stay what they are.

        Raises:
            ChancellorError: there is none; the error is that of the first way that was tried.
        """
        first: ChancellorError | None = None
        while True:
            elsewhere = not emitted and self._ladder.leads_on(self._spec)
            if self._died is None and not self._residents.usable(self._spec):
                await self._begin()
            try:
                again = emitted or self._died is not None
                resident = await self._residents.enter(self._spec, elsewhere=elsewhere, again=again)
            except ChancellorError as error:
                first = first or error
                cause = cause_of(error)
                rung = None if cause is None else await self._below(cause, emitted=emitted)
                if rung is None or cause is None:
                    raise self.explained(first) from (error if error is not first else first.__cause__)
                await self._take(rung, cause, error)
                continue
            if self._spared:
                resident.spared.add(self)
            if self._died is not None:
                try:
                    await self._note_restart(self._died)
                except BaseException:  # the caller has gone, and does not know yet that it has an engine
                    self.leave(resident)
                    raise
                self._died = None
            if resident.smaller is not None:
                self._note_smaller(resident.smaller)
            return resident

    def leave(self, resident: Resident) -> None:
        """Give up an engine that `enter` has returned."""
        resident.spared.discard(self)
        self._residents.leave(resident)

    async def died(self, error: EngineDiedError, resident: Resident | None = None) -> None:
        """Note that the engine died under the request, or was ended with it to make room."""
        await self._begin()
        self._died = error
        self._cut = None if resident is None else resident.cut
        self._spared = self._spared or self._cut is not None
        dead = resident if self._cut is None else None
        self._shortage = None if dead is None else await in_thread(dead.shortage)

    async def outgrown(self, error: PromptTooLongError) -> bool:
        """Go on from a way that has less context than what was asked for; return whether there is one that has more."""
        asked, least = self._asked.context_window, self._spec.context_window
        same = self._spec.name == self._asked.name
        if same and (asked is None or least is None or least >= asked):  # the request is at fault
            return False
        rung = await self._next(self._ladder.larger)
        if rung is not None:
            await self._take(rung, "memory", error)
        return rung is not None

    def noted(self, delta: Delta) -> Delta:
        """Return the delta with the entry that it is from, of which several may share an engine, and with the steps."""
        if delta.finish_reason is not None:
            return replace(delta, model=self._spec.name, fallbacks=tuple(self._steps))
        return replace(delta, model=self._spec.name) if self._steps else delta

    async def _below(self, cause: Cause, *, emitted: bool) -> Rung | None:
        """Return the nearest way down that has not failed yet."""

        def ways(spec: ModelSpec) -> Iterator[Rung]:
            for rung in self._ladder.below(spec, cause):
                if not emitted or rung.step == "shorter_context":  # with the same model and scheme
                    yield rung

        return await self._next(ways)

    async def _next(self, ways: Callable[[ModelSpec], Iterator[Rung]]) -> Rung | None:
        def look() -> Rung | None:
            return next((one for one in ways(self._spec) if key_of(one.spec) not in self._failed), None)

        self._failed.add(key_of(self._spec))
        return await in_thread(look)

    async def _take(self, rung: Rung, cause: Cause, error: ChancellorError) -> None:
        await self._note(rung.step, cause, rung.spec, error.message)
        if (name := rung.spec.name) != self._spec.name:
            why = f"{name} answers instead: {error.message}"
            progress.report("start", self._spec.name, why, substitute=name)
        self._spec, self._died = rung.spec, None

    async def _begin(self) -> None:
        self._began, self._free = time.perf_counter(), await in_thread(self._residents.free_mib)

    async def _note_restart(self, error: EngineDiedError) -> None:
        if self._cut is not None:
            await self._note("restart", "swap", self._spec, self._cut)
        elif self._shortage is None:
            await self._note("restart", "died", self._spec, error.message)
        else:
            await self._note("restart", "memory", self._spec, f"{error.message} {self._shortage}")

    def _note_smaller(self, cache: SmallerCache) -> None:
        wanted, granted = (f"{label(self._spec)}, KV cache {size / _GIB:.2f} GiB" for size in cache)
        if any(step["to"] == granted for step in self._steps):  # before its engine died
            return
        self._steps.append(
            {
                "step": "smaller_cache",
                "cause": "memory",
                "from": wanted,
                "to": granted,
                "reason": "The budget has no more memory left for its KV cache.",
                "seconds_lost": 0.0,
                "memory_before_mib": None,
                "memory_after_mib": None,
            }
        )

    async def _note(self, step: Step, cause: Cause, to: ModelSpec, reason: str) -> None:
        lost, before = (0.0, None) if not self._began else (time.perf_counter() - self._began, self._free)
        await self._begin()
        self._steps.append(
            {
                "step": step,
                "cause": cause,
                "from": label(self._spec),
                "to": label(to),
                "reason": reason,
                "seconds_lost": round(lost, 3),
                "memory_before_mib": before,
                "memory_after_mib": self._free,
            }
        )

    def explained(self, error: ChancellorError) -> ChancellorError:
        """Return the error, saying what else was tried."""
        error = copy.copy(error).with_traceback(error.__traceback__)  # others who waited for this start have it too
        if not self._steps:
            return error
        tried = "; ".join(f"{step['to']}: {step['step']}" for step in self._steps)
        error.hint = f"{error.hint} Tried besides, in vain: {tried}."
        error.args = (error.message, error.hint)
        return error
