"""Whether an engine has died, or its first steps have failed, for want of memory."""

from typing import Final

from chancellor.engines.logs import log_file, shortage_in
from chancellor.memory import cgroup

__all__ = ["PostMortem"]

_TAIL: Final = 2**18  # bytes of the log: the last words are at its end


class PostMortem:
    """Made while all is well; asked when it is not. Reads files: not for a loop."""

    def __init__(self) -> None:
        self._kills = cgroup.oom_kills()
        self._logged = log_file().stat().st_size

    def shortage(self, error: object = "") -> str | None:
        """Return what says, in the error or elsewhere, that memory was too little since then, or None.

        That a process was killed is not enough: a user may have done it.
        """
        if cgroup.oom_kills() > self._kills:
            return "the kernel has killed a process because there was no memory left"
        try:
            log = log_file()
            return shortage_in(log, max(self._logged, log.stat().st_size - _TAIL), error, killed=False)
        except OSError:  # somebody has cleaned up
            return None
