"""What the engines of other pools in this process take of the devices: all pools have one budget."""

import os
import threading
from collections import Counter
from collections.abc import Mapping
from typing import Final, Protocol
from weakref import WeakSet

from chancellor.engines.resident import Resident

__all__ = ["PROCESS", "Neighbour", "Neighbours"]


class Neighbour(Protocol):
    """A pool, as the others see it."""

    def taken(self) -> Counter[str]:
        """Return the bytes that its engines take, by device. May be called from any thread."""


class Neighbours:
    """Pools on the same devices. The methods may be called from any thread."""

    def __init__(self) -> None:
        self.forget()

    def join(self, pool: Neighbour) -> None:
        """Count what a pool's engines take, as long as there is the pool."""
        with self._lock:
            self._pools.add(pool)

    def taken(self, besides: Neighbour) -> Counter[str]:
        """Return the bytes that the other pools' engines take, by device."""
        taken = Counter[str]()
        with self._lock:
            for pool in self._pools:
                if pool is not besides:
                    taken.update(pool.taken())
        return taken

    def claim(self, pool: Neighbour, resident: Resident, takes: Mapping[str, int], seen: Counter[str]) -> bool:
        """Have an engine take so much; return False, and change nothing, where others take more than was `seen`."""
        with self._lock:
            if not self.taken(pool) <= seen:
                return False
            resident.takes = dict(takes)
            return True

    def forget(self) -> None:
        """Begin anew, as in a forked child: the engines are the parent's, and so is who holds the lock."""
        self._lock = threading.RLock()
        self._pools: WeakSet[Neighbour] = WeakSet()


PROCESS: Final = Neighbours()
"""The pools whose room is what the devices themselves say."""
os.register_at_fork(after_in_child=PROCESS.forget)
