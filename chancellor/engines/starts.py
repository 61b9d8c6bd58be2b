"""How engines start: one after another, within the memory budget."""

import logging
import time
from collections.abc import Callable
from typing import Final

from chancellor import progress
from chancellor.catalog import ModelSpec
from chancellor.engines.base import Engine
from chancellor.engines.gate import Gate
from chancellor.engines.host import in_thread
from chancellor.engines.logs import log_file
from chancellor.engines.postmortem import PostMortem
from chancellor.engines.resident import Resident
from chancellor.engines.room import Room
from chancellor.engines.swap import Swap
from chancellor.errors import ChancellorError, EngineStartError, OutOfMemoryError
from chancellor.memory import Estimate

__all__ = ["Starts"]

logger = logging.getLogger(__name__)
_SERVER_PAUSE_S: Final = 10.0
"""How long a server that did not answer is left alone: to ask it costs nothing."""
_NO_ROOM_PAUSE_S: Final = 10.0, 30.0
"""How long a model that did not fit is left alone: it costs little to look, but a turn to wait for."""


class Starts:
    """Starts engines, and notes with the gate what became of it."""

    def __init__(self, factory: Callable[[ModelSpec], Engine], room: Room | None, gate: Gate, swap: Swap) -> None:
        self._factory = factory
        self._room = room
        self._gate = gate
        self._swap = swap
        self.took: dict[str, float] = {}
        """Seconds from an engine's turn until it was ready, by key."""

    async def start(self, resident: Resident) -> Engine:
        """Start the engine.

        Raises:
            ChancellorError: whatever keeps it from starting.
        """
        resident.began = time.perf_counter()
        try:
            return await self._start(resident)
        except ChancellorError as error:
            self._note(resident, failed := _explained(resident, error))
            raise failed from (error.__cause__ if failed is error else error)
        finally:
            resident.starting = None
            resident.waiting = False

    async def _start(self, resident: Resident) -> Engine:
        spec, room = resident.spec, self._room
        # Before its turn: a checkpoint that is not here yet is downloaded first.
        need = None if room is None else await in_thread(lambda: _expected(room, resident))
        resident.need = need
        async with self._swap.turn(resident, need) as adapted:
            resident.waiting = False
            resident.began = time.perf_counter()
            engine = resident.starting = self._factory(adapted)
            await engine.start()
            resident.engine, resident.start_s = engine, time.perf_counter() - resident.began
            self.took[resident.key] = time.perf_counter() - resident.turn
            self._gate.breaker(resident.key).started()
            await self._measure(resident, adapted, need)
            progress.report("ready", spec.name, f"ready after {resident.start_s:.1f} s")
            return engine

    def _note(self, resident: Resident, error: ChancellorError) -> None:
        if resident.leaving:  # somebody has interrupted it
            return
        seconds, breaker = time.perf_counter() - resident.began, self._gate.breaker(resident.key)
        if resident.spec.engine.kind == "openai":
            breaker.failed(error, seconds, longest_s=_SERVER_PAUSE_S)
        elif resident.waiting and isinstance(error, OutOfMemoryError):
            least, most = _NO_ROOM_PAUSE_S
            breaker.failed(error, seconds, shortest_s=least, longest_s=most)
        else:
            breaker.failed(error, seconds)

    async def _measure(self, resident: Resident, adapted: ModelSpec, need: Estimate | None) -> None:
        """Note what the engine takes. It runs: nothing that fails here may lose it."""
        room, engine = self._room, resident.engine
        if adapted.engine.kind == "openai" or engine is None:
            return
        held = None
        try:
            resident.postmortem = PostMortem()  # a few small files
            if room is not None:
                ids = engine.process_ids()
                if need is None:
                    resident.takes = await in_thread(lambda: room.held(ids))
                else:
                    held = await in_thread(lambda: room.took(adapted, ids, need))
        except Exception:
            logger.warning("What %r takes cannot be measured", adapted.name, exc_info=True)
        if need is not None:
            # transformers' memory grows with its first batches: what is not there yet is to come.
            resident.takes = dict.fromkeys(need.devices, max(held or 0, resident.granted))


def _expected(room: Room, resident: Resident) -> Estimate | None:
    with progress.endable(lambda: resident.leaving):
        return room.expected(resident.spec)


def _explained(resident: Resident, error: ChancellorError) -> ChancellorError:
    if resident.hung is None or resident.leaving:
        return error
    return EngineStartError(
        f"The start of {resident.spec.name!r} hung, and was ended: {resident.hung}.",
        hint=f"Its log may say more: {log_file()}",
    )
