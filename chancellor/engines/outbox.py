"""Messages to an engine's process that wait for nobody: a process that was stopped takes nothing from its pipe."""

import queue
import threading
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

__all__ = ["Outbox"]


class Outbox:
    """Writes to a pipe in a thread of its own, which also closes it."""

    def __init__(self, connection: "Connection[Any, Any]", lost: Callable[[], None]) -> None:
        """Begin.

        Args:
            connection: the pipe; its other end is another process's.
            lost: called in that thread when the other end is gone.
        """
        self._connection, self._lost = connection, lost
        self._messages: queue.SimpleQueue[Any] = queue.SimpleQueue()
        threading.Thread(target=self._run, name="chancellor-outbox", daemon=True).start()

    def put(self, message: Any) -> None:
        """Send a message, which is not None, after those before it."""
        self._messages.put(message)

    def close(self) -> None:
        """Close the pipe after what was put before, or when the other end is gone."""
        self._messages.put(None)

    def _run(self) -> None:
        try:
            while (message := self._messages.get()) is not None:
                self._connection.send(message)
        except OSError:
            self._lost()
            while self._messages.get() is not None:  # its number must not be another file's as long as it is watched
                pass
        finally:
            self._connection.close()
