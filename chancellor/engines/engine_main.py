"""Stands in for the user's script as `__main__` of an engine's processes (see spawn.py). Not for import.

multiprocessing runs it first of all in a spawned process, so whatever vLLM and its libraries print lands in the log.
"""

import os
import signal
import sys
import threading
import time


def _end_with(parent: int) -> None:
    """Kill this process when its parent is gone, which may not have had the time to say so."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__mp_main__":
    # A Ctrl-C in the terminal is meant for the user's program; the engine ends when that says so.
    os.setpgid(0, 0)
    # A server that ends by SIGTERM, as for a hot reload, runs no exit handlers.
    threading.Thread(target=_end_with, args=(os.getppid(),), name="chancellor-parent", daemon=True).start()

if __name__ == "__mp_main__" and (_log := os.environ.get("CHANCELLOR_ENGINE_LOG")):
    _file = os.open(_log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    for _stream in (sys.stdout, sys.stderr):
        if _stream is not None:
            _stream.flush()
    os.dup2(_file, 1)
    os.dup2(_file, 2)
    os.close(_file)
