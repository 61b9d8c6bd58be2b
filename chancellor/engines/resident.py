"""One engine that runs or starts, and who uses it."""

import asyncio
import time
from typing import NamedTuple

from chancellor.catalog import ModelSpec
from chancellor.engines.base import Engine
from chancellor.engines.postmortem import PostMortem
from chancellor.engines.pulse import Pulse
from chancellor.memory import Estimate

__all__ = ["Resident", "SmallerCache", "key_of"]


class SmallerCache(NamedTuple):
    """Bytes on each device."""

    wanted: int
    granted: int


def key_of(spec: ModelSpec) -> str:
    """Return what two entries have in common that share an engine: all but their name, tier and Trinity."""
    return spec.model_dump_json(exclude={"name", "trinity", "tier", "parameters"})


class Resident:
    """An engine, its task, and its users. Touched on the host's loop only."""

    def __init__(self, spec: ModelSpec, key: str) -> None:
        self.spec, self.key = spec, key
        self.task: asyncio.Task[Engine]
        self.engine: Engine | None = None
        self.starting: Engine | None = None
        """The engine while it starts."""
        self.waiting = True
        """Whether its start has not begun: it waits for a download, for its turn, or for room."""
        self.turn = self.began = 0.0
        """When it had its turn first, and when its start began."""
        self.pulse = Pulse.of_start()
        self.hung: str | None = None
        """Why its start was ended, if it was."""
        self.users = 0
        self.used = time.monotonic()
        self.start_s = 0.0
        self.granted = 0
        """Bytes that it may take on each device."""
        self.takes: dict[str, int] = {}
        """Bytes that it takes, by device."""
        self.promised: dict[str, int] = {}
        """Those of them that a newcomer counts as its own already, while this one makes room for it."""
        self.need: Estimate | None = None
        """What it was estimated to need when it started."""
        self.asleep = False
        """Whether its weights are in the host's memory, and nothing of it can answer."""
        self.moving: asyncio.Task[None] | None = None
        """What puts it to sleep or wakes it, while that is under way."""
        self.left: dict[str, int] = {}
        """Bytes by device that it takes while it sleeps; known once it has slept."""
        self.awake: dict[str, int] = {}
        """Bytes by device that it takes while it does not, as they were when it fell asleep."""
        self.host_bytes = 0
        """Host memory that it keeps for its sleep, from the first one on until it ends."""
        self.sleep_s: float | None = None
        self.wake_s: float | None = None
        """Seconds that it took last to fall asleep, and to wake."""
        self.probe: tuple[int, ...] | None = None
        """What it answered before its first sleep to the question that it is asked after each."""
        self.smaller: SmallerCache | None = None
        """What it got for its KV cache, where that is much less than it should have."""
        self.postmortem: PostMortem | None = None
        self._shortage: tuple[str | None] | None = None
        self.died = 0.0
        """When it was found dead while it ran; 0 as long as it was not."""
        self.pinned = False
        """Whether somebody holds the engine itself, so that it cannot make room for others."""
        self.leaving = False
        """Whether it makes room: it answers what it has, and gets no more."""
        self.spared: set[object] = set()
        """Requests that have been cut once already, by an engine that had to go: it stays until they are answered."""
        self.cut: str | None = None
        """Why what it was answering has been cut, if it has: it was ended by us, and did not die."""
        self.idle = asyncio.Event()
        self.idle.set()
        self.gone = asyncio.Event()
        self.ending: asyncio.Task[None] | None = None

    @property
    def usable(self) -> bool:
        """Whether it can answer."""
        if self.engine is None or self.leaving or self.asleep:
            return False
        return self.task.done() and self.engine.healthy()

    @property
    def dead(self) -> bool:
        """Whether it has run, and will not any more."""
        return self.engine is not None and self.task.done() and not self.engine.healthy()

    @property
    def deserted(self) -> bool:
        """Whether it is dead, and neither has requests nor is being ended."""
        return self.dead and not self.users and not self.leaving

    def shortage(self) -> str | None:
        """Return what says that the engine, which is dead, died for want of memory. Reads files, the first time."""
        if self._shortage is None:
            self._shortage = (None if self.postmortem is None else self.postmortem.shortage(),)
        return self._shortage[0]

    def enter(self) -> None:
        """Count one user more."""
        self.users += 1
        self.used = time.monotonic()
        self.idle.clear()

    def stay(self) -> None:
        """Make no room after all: who waits for the next start goes on with this one."""
        self.leaving, self.promised = False, {}
        gone, self.gone = self.gone, asyncio.Event()
        gone.set()

    def leave(self) -> None:
        """Count one user less."""
        self.users -= 1
        self.used = time.monotonic()
        if not self.users:
            self.idle.set()
