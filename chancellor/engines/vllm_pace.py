"""How many tokens of a stream vLLM passes on together."""

import math
import time
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from vllm import SamplingParams
    from vllm.v1.engine.async_llm import AsyncLLM

__all__ = ["Pace"]

_PIECES_PER_S: Final = 2000
"""Pieces of all streams together: a third of what one interpreter has time for, if LangGraph passes them on."""
_WINDOW_S: Final = 0.5


class Pace:
    """One token at a time, as long as Python keeps up with so many pieces; then as many as it takes."""

    def __init__(self) -> None:
        self.interval = 1
        """Tokens of a piece, for streams that begin now."""
        self._tokens, self._at = 0, time.perf_counter()

    def note(self, tokens: int) -> None:
        """Take how many tokens the engine has made since its start. Called after each of its steps."""
        seconds = time.perf_counter() - self._at
        if seconds >= _WINDOW_S:
            self.interval = max(1, math.ceil((tokens - self._tokens) / seconds / _PIECES_PER_S))
            self._tokens, self._at = tokens, self._at + seconds

    def set(self, sampling: "SamplingParams", llm: "AsyncLLM", *, singly: bool = False) -> None:
        """Have a request streamed at this pace. Its first token comes by itself, its last when it is there.

        Args:
            sampling: of the request.
            llm: that is about to get it.
            singly: whether each of its tokens is to come by itself.
        """
        idle = time.perf_counter() - self._at > 2 * _WINDOW_S  # it makes no steps then, which is what is counted
        interval = 1 if singly or idle else self.interval
        if hasattr(sampling, "stream_interval"):
            sampling.stream_interval = interval
            return
        # vLLM 0.26 has it for all requests alike, and reads it when a request is added.
        processor: Any = llm.output_processor
        processor.stream_interval = max(interval, llm.vllm_config.scheduler_config.stream_interval)
