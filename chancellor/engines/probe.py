"""A question whose answer is always the same, and calls of an engine that end even if it does not."""

import asyncio
import time
from collections.abc import Coroutine
from typing import Any, Final, TypeVar

from chancellor.engines.base import Engine, GenerationRequest
from chancellor.errors import EngineDiedError

__all__ = ["answer", "bounded"]

T = TypeVar("T")
_LOOK_EVERY_S: Final = 0.05
_PROBE: Final = tuple(range(1, 33))
_PROBE_TOKENS: Final = 16


async def bounded(engine: Engine, work: Coroutine[Any, Any, T], limit_s: float) -> T:
    """Return what the work returns. vLLM's calls never do if its process dies meanwhile.

    Raises:
        EngineDiedError: the engine died, or the time is over.
    """
    task = asyncio.create_task(work)
    task.add_done_callback(lambda done: done.cancelled() or done.exception())
    ends = time.monotonic() + limit_s
    try:
        while not task.done():
            if not engine.healthy():
                raise EngineDiedError("It died.")
            if (rest := ends - time.monotonic()) <= 0:
                raise EngineDiedError(f"That took more than {limit_s:g} s.")
            await asyncio.wait({task}, timeout=min(rest, _LOOK_EVERY_S))
        return task.result()
    finally:
        task.cancel()


async def answer(engine: Engine) -> tuple[int, ...]:
    """Return the tokens of an answer that is always the same as long as weights and kernels are."""
    tokens: list[int] = []
    asked = GenerationRequest(prompt=_PROBE, max_tokens=_PROBE_TOKENS, temperature=0.0, ignore_eos=True)
    async for delta in engine.generate(asked):
        tokens += delta.token_ids
    if not tokens:
        raise EngineDiedError("It does not tell its tokens.")
    return tuple(tokens)
