"""Engines that sleep: when that is better than to stop them, and how they fall asleep and wake."""

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Final, NamedTuple

from chancellor.engines.base import Engine
from chancellor.engines.host import in_thread
from chancellor.engines.probe import answer, bounded
from chancellor.engines.resident import Resident
from chancellor.engines.room import Room
from chancellor.errors import EngineDiedError
from chancellor.memory import Estimate, host_free
from chancellor.settings import settings

__all__ = ["WAKE_S", "Sleepers"]

logger = logging.getLogger(__name__)

_GIB: Final = 2**30
_SLEEP_S: Final = 7.0
WAKE_S: Final = 1.0
"""Seconds to fall asleep for the first time and to wake, until they are known: those of 8 GiB of weights on an H100."""
_STOP_S: Final = 7.0
"""Seconds that stopping takes."""
_SLEEP_LIMIT_S: Final = 120.0
_WAKE_LIMIT_S: Final = 60.0
_PROBE_LIMIT_S: Final = 60.0
_LOOK_EVERY_S: Final = 0.05
_FREED_S: Final = 5.0
"""How long a device may take to show what an engine has given back."""
_FREED_SHARE: Final = 0.9
"""Of weights and KV cache, which are all that sleeps."""
_STAYS: Final = _GIB // 2
"""What an engine keeps on its device beyond the process and its graphs, until that has been measured."""
_HOST_SHARE: Final = 2
"""Weights are pinned in pieces, each rounded up to a power of two: up to twice their size."""
_HOST_SPARE: Final = 2 * _GIB


class _Sight(NamedTuple):
    """Bytes at one moment."""

    held: dict[str, int]
    """By the engine, on the devices that tell."""
    free: dict[str, int]
    host: int


class Sleepers:
    """Puts engines to sleep and wakes them; one that does not do so as it should is ended, and not tried again."""

    def __init__(
        self, residents: Mapping[str, Resident], room: Room | None, ending: Callable[[Resident], object]
    ) -> None:
        """Make it.

        Args:
            residents: all engines.
            room: the memory budget; without one nothing has to sleep.
            ending: begins to close an engine.
        """
        self._residents = residents
        self._room = room
        self._ending = ending
        self._unsound: set[str] = set()

    def patience_s(self, resident: Resident) -> float:
        """Return how long the engine may take its time before it makes room: as long as it takes to come back."""
        return min(self._sleep_s(resident), resident.start_s) if self._able(resident) else resident.start_s

    def _sleep_s(self, resident: Resident) -> float:
        """Return the seconds to fall asleep and to wake."""
        return (_SLEEP_S if resident.sleep_s is None else resident.sleep_s) + (resident.wake_s or WAKE_S)

    def left(self, resident: Resident) -> dict[str, int]:
        """Return the bytes by device that the engine keeps while it sleeps, as far as that is known."""
        need = resident.need
        return dict(resident.left) if resident.left or need is None else dict.fromkeys(need.devices, _rest(need))

    async def better(self, victim: Resident, newcomer: Resident, need: Estimate, freed: Mapping[str, int]) -> bool:
        """Return whether an idle engine that has to make room should rather sleep than stop.

        Args:
            victim: the engine.
            newcomer: what it makes room for.
            need: of the newcomer.
            freed: what the newcomer has itself on each device already.
        """
        if not self._able(victim) or self._sleep_s(victim) >= _STOP_S + victim.start_s:
            return False
        try:
            return await in_thread(lambda: self._host_holds(victim) and self._rest_fits(victim, newcomer, need, freed))
        except Exception:
            logger.warning("Whether %r may sleep cannot be told", victim.spec.name, exc_info=True)
            return False

    def _able(self, resident: Resident) -> bool:
        engine = resident.engine
        if engine is None or resident.need is None or resident.key in self._unsound:
            return False
        return resident.spec.engine.sleep is not False and engine.can_sleep and engine.healthy()

    def _host_holds(self, victim: Resident) -> bool:
        if victim.host_bytes or victim.need is None:  # it keeps what it had for its first sleep
            return True
        wanted = _HOST_SHARE * victim.need.weights
        limit, theirs = settings().sleep_gib, sum(one.host_bytes for one in tuple(self._residents.values()))
        return (limit is None or theirs + wanted <= limit * _GIB) and wanted + _HOST_SPARE <= host_free()

    def _rest_fits(self, victim: Resident, newcomer: Resident, need: Estimate, freed: Mapping[str, int]) -> bool:
        """Return whether it is not what a sleeper leaves on the device that keeps the newcomer out."""
        room = self._room
        if room is None:
            return False
        rest, whole = Counter(self.left(victim)), Counter(victim.takes)
        stay, sleep, go = Counter[str](), Counter[str](), Counter[str]()
        for one in tuple(self._residents.values()):
            if one is not newcomer and one is not victim:
                (sleep if one.asleep else go if one.engine and not one.pinned else stay).update(one.takes)

        def comfortable(taken: Counter[str], gone: Counter[str]) -> bool:
            return room.fit(need, taken, Counter(freed) + gone + sleep).comfortable

        # Those that sleep already were used longer ago, and are stopped first.
        if comfortable(stay + go + rest, whole - rest):
            return True
        # Where others have to go in any case, it is enough that all of them would do.
        return not comfortable(stay + go, whole) and comfortable(stay + rest, whole - rest + go)

    async def fall(self, resident: Resident) -> None:
        """Put an engine that has no requests to sleep, or end it. Nothing may start meanwhile: memory is measured."""
        engine, need = resident.engine, resident.need
        if engine is None or need is None:
            self._ending(resident)
            return
        try:
            if resident.probe is None:
                resident.probe = await bounded(engine, answer(engine), _PROBE_LIMIT_S)
            before = await in_thread(lambda: self._look(engine))
            began = time.perf_counter()
            await bounded(engine, engine.sleep(), _SLEEP_LIMIT_S)
            resident.sleep_s = time.perf_counter() - began
            left, host = await self._freed(resident, engine, need, before)
        except asyncio.CancelledError:
            self._given_up(resident, engine)
            raise
        except Exception as error:  # noqa: BLE001 - whatever it is, the engine cannot be relied on
            self._lost(resident, engine, "fall asleep", error)
            return
        resident.awake, resident.left, resident.takes = resident.takes, left, dict(left)
        resident.host_bytes = resident.host_bytes or min(max(host, need.weights), _HOST_SHARE * need.weights)
        resident.asleep = True
        if resident.ending is None:
            resident.stay()  # who waits for it wakes it

    async def wake(self, resident: Resident) -> None:
        """Wake an engine for which there is room, or end it. Nothing may start meanwhile."""
        engine = resident.engine
        if engine is None:
            self._ending(resident)
            return
        resident.takes = dict(resident.awake)
        try:
            began = time.perf_counter()
            await bounded(engine, engine.wake(), _WAKE_LIMIT_S)
            resident.wake_s = time.perf_counter() - began
            if await bounded(engine, answer(engine), _PROBE_LIMIT_S) != resident.probe:
                raise EngineDiedError("It does not answer as it did before.")
        except asyncio.CancelledError:
            self._given_up(resident, engine)
            raise
        except Exception as error:  # noqa: BLE001 - whatever it is, the engine cannot be relied on
            self._lost(resident, engine, "wake up", error)
            return
        resident.used = time.monotonic()
        resident.asleep = False

    def give_up(self, resident: Resident) -> None:
        """End a sleeper that cannot have its memory back; its next start says why, or finds a way."""
        if resident.engine is not None:
            resident.engine.kill()
        self._ending(resident)

    def _given_up(self, resident: Resident, engine: Engine) -> None:
        if not engine.healthy():  # which is what has ended it
            self._unsound.add(resident.key)
        engine.kill()
        if resident.ending is None:
            self._ending(resident)

    def _lost(self, resident: Resident, engine: Engine, what: str, error: Exception) -> None:
        logger.warning(
            "The engine of %r is ended, for it did not %s: %s", resident.spec.name, what, str(error) or repr(error)
        )
        self._unsound.add(resident.key)
        engine.kill()
        self._ending(resident)

    def _look(self, engine: Engine) -> _Sight:
        room = self._room
        ids = engine.process_ids()
        return _Sight(room.held(ids) if room else {}, room.free() if room else {}, host_free())

    async def _freed(
        self, resident: Resident, engine: Engine, need: Estimate, before: _Sight
    ) -> tuple[dict[str, int], int]:
        """Return what a sleeper keeps, by device, and what it has of the host's memory.

        Raises:
            EngineDiedError: it keeps too much.
        """
        whole = need.weights + max(0, resident.granted - need.fixed)
        wanted = int(_FREED_SHARE * whole)
        ends = time.monotonic() + _FREED_S
        while True:
            now = await in_thread(lambda: self._look(engine))
            freed, left = 0, {}
            for device in need.devices:
                if device in before.held:
                    left[device] = now.held.get(device, 0)
                    freed = before.held[device] - left[device]
                else:  # a driver that does not tell of single processes
                    freed = now.free.get(device, 0) - before.free.get(device, 0)
                    most = resident.takes.get(device, 0) - freed  # with the peak of a step, which it has not now
                    left[device] = max(0, min(most, _rest(need) + max(0, whole - freed)))
                if freed < wanted:
                    break
            else:
                return left, before.host - now.host
            if time.monotonic() > ends:
                raise EngineDiedError(f"It gave back {freed / _GIB:.1f} GiB instead of {wanted / _GIB:.1f}.")
            await asyncio.sleep(_LOOK_EVERY_S)


def _rest(need: Estimate) -> int:
    """Return the bytes that a sleeper should leave on its device."""
    return need.overhead + need.graphs + _STAYS
