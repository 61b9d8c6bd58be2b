"""One request's way to an engine, down the ladder where it has to, and the record of it."""

import copy
import time
from dataclasses import replace

from chancellor.catalog import ModelSpec
from chancellor.engines.base import Delta
from chancellor.engines.host import in_thread
from chancellor.engines.ladder import Ladder, Rung, cause_of, label
from chancellor.engines.resident import Resident, key_of
from chancellor.engines.residents import Residents
from chancellor.errors import ChancellorError, EngineDiedError
from chancellor.fallbacks import Cause, Fallback, Step

__all__ = ["Descent"]


class Descent:
    """Finds an engine for a request, and notes each step that this takes."""

    def __init__(self, spec: ModelSpec, ladder: Ladder | None, residents: Residents) -> None:
        self._spec = spec
        self._ladder = ladder or Ladder()
        self._residents = residents
        self._failed: set[str] = set()
        self._died: EngineDiedError | None = None
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
            if self._died is None and not self._residents.known(self._spec):
                await self._begin()
            try:
                resident = await self._residents.enter(self._spec, elsewhere=elsewhere, again=self._died is not None)
            except ChancellorError as error:
                first = first or error
                cause = cause_of(error)
                rung = None if emitted or cause is None else await self._below(cause)
                if rung is None or cause is None:
                    raise self._explained(first) from (error if error is not first else first.__cause__)
                await self._note(rung.step, cause, rung.spec, error)
                self._spec, self._died = rung.spec, None
                continue
            if self._died is not None:
                try:
                    await self._note("restart", "died", self._spec, self._died)
                except BaseException:  # the caller has gone, and does not know yet that it has an engine
                    self._residents.leave(resident)
                    raise
                self._died = None
            return resident

    async def died(self, error: EngineDiedError) -> None:
        """Note that the engine died under the request."""
        await self._begin()
        self._died = error

    def noted(self, delta: Delta) -> Delta:
        """Return the delta with the entry that it is from, of which several may share an engine, and with the steps."""
        if delta.finish_reason is not None:
            return replace(delta, model=self._spec.name, fallbacks=tuple(self._steps))
        return replace(delta, model=self._spec.name) if self._steps else delta

    async def _below(self, cause: Cause) -> Rung | None:
        """Return the nearest way that has not failed yet."""

        def look() -> Rung | None:
            rungs = self._ladder.below(self._spec, cause)
            return next((one for one in rungs if key_of(one.spec) not in self._failed), None)

        self._failed.add(key_of(self._spec))
        return await in_thread(look)

    async def _begin(self) -> None:
        self._began, self._free = time.perf_counter(), await in_thread(self._residents.free_mib)

    async def _note(self, step: Step, cause: Cause, to: ModelSpec, error: ChancellorError) -> None:
        lost, before = (0.0, None) if not self._began else (time.perf_counter() - self._began, self._free)
        await self._begin()
        self._steps.append(
            {
                "step": step,
                "cause": cause,
                "from": label(self._spec),
                "to": label(to),
                "reason": error.message,
                "seconds_lost": round(lost, 3),
                "memory_before_mib": before,
                "memory_after_mib": self._free,
            }
        )

    def _explained(self, error: ChancellorError) -> ChancellorError:
        """Return the error, saying what else was tried."""
        error = copy.copy(error).with_traceback(error.__traceback__)  # others who waited for this start have it too
        if not self._steps:
            return error
        tried = "; ".join(f"{step['to']}: {step['step']}" for step in self._steps)
        error.hint = f"{error.hint} Tried besides, in vain: {tried}."
        error.args = (error.message, error.hint)
        return error
