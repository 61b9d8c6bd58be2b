"""Who is let in to an engine: not more than may wait, and not to one that has failed only lately."""

import time
from collections import deque
from functools import cache
from typing import Final

from chancellor.catalog import ModelSpec
from chancellor.engines.breaker import Breaker
from chancellor.engines.resident import key_of
from chancellor.engines.vllm_args import CPU_SEQUENCES, GPU_SEQUENCES
from chancellor.errors import EngineBusyError
from chancellor.memory.device import gpu_memories

__all__ = ["Gate"]

_BATCHES: Final = 16
_SERVER_BATCH: Final = 64


class Gate:
    """A bounded queue and a breaker for each engine, by its key."""

    def __init__(self) -> None:
        self._breakers: dict[str, Breaker] = {}
        self._ended: dict[str, deque[float]] = {}

    def breaker(self, key: str) -> Breaker:
        """Return the engine's breaker."""
        return self._breakers.setdefault(key, Breaker())

    def admit(self, spec: ModelSpec, under_way: int) -> None:
        """Let one more request in.

        Raises:
            EngineBusyError: with as many under way, no more may wait.
        """
        most = spec.engine.max_queue or _BATCHES * _batch(spec)
        if under_way < most:
            return
        ended = self._ended.get(key_of(spec))
        took = ended[-1] - ended[0] if ended else 0.0
        error = EngineBusyError(f"{under_way} requests are under way with {spec.name!r}, and no more may wait.")
        error.retry_after_s = round(min(max(took, 1.0), 60.0), 1)  # what the last batch of answers took
        raise error

    def ended(self, spec: ModelSpec, key: str) -> None:
        """Note that a request has ended."""
        if (ended := self._ended.get(key)) is None:
            ended = self._ended[key] = deque(maxlen=_batch(spec))
        ended.append(time.monotonic())

    def check(self, key: str, *, elsewhere: bool) -> None:
        """Refuse what has failed lately. One failure alone is no reason, where there is nothing else to do."""
        breaker = self._breakers.get(key)
        if breaker is None or breaker.error is None or not (wait := breaker.paused_s()):
            return
        if breaker.failures == 1 and not elsewhere:
            return
        raise type(breaker.error)(
            f"{breaker.error.message} It will be tried again in {wait:.0f} s.", hint=breaker.error.hint
        )


def _batch(spec: ModelSpec) -> int:
    """Return how many requests one batch of the entry's engine has."""
    options = spec.engine
    if options.kind == "openai":
        return _SERVER_BATCH
    own = options.vllm.get("max_num_seqs") if options.kind == "vllm" else None
    return int(own or options.max_num_seqs or (GPU_SEQUENCES if _on_gpus() else CPU_SEQUENCES))


@cache
def _on_gpus() -> bool:
    return bool(gpu_memories())
