"""One engine for each model, however many callers ask at once; started one after another, closed at exit."""

import asyncio
import atexit
import contextvars
import logging
import os
import threading
import time
import weakref
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Generator
from contextlib import asynccontextmanager
from typing import Any, Final, TypeVar

from chancellor import progress
from chancellor.catalog import ModelSpec
from chancellor.engines.base import Delta, Engine, EngineStats, GenerationRequest
from chancellor.engines.host import EngineHost
from chancellor.engines.joining import joined
from chancellor.engines.vllm import VLLMEngine
from chancellor.errors import EngineDiedError, EngineStartError, GenerationTimeoutError
from chancellor.telemetry.requests import Observation

__all__ = ["EnginePool", "default_pool"]

logger = logging.getLogger(__name__)
T = TypeVar("T")
_INTERRUPT_EVERY_S: Final = 0.5


class EnginePool:
    """Engines by catalog entry. The public methods may be called from any thread and any event loop.

    Two entries that differ in anything but their name, tier or Trinity have an engine each.
    """

    def __init__(self, factory: Callable[[ModelSpec], Engine] | None = None) -> None:
        self._factory = factory or engine_of
        self._host = EngineHost()
        self._engines: dict[str, asyncio.Task[Engine]] = {}  # touched on the host's loop only
        self._names: dict[str, str] = {}
        self._starting: asyncio.Lock | None = None
        self._waiting: set[asyncio.Task[Engine]] = set()  # for their turn to start
        self._under_way: Engine | None = None
        self._closing = False
        self._pid = os.getpid()
        this = weakref.ref(self)
        os.register_at_fork(after_in_child=lambda: _call(this, EnginePool._forget))
        atexit.register(lambda: _call(this, EnginePool.close))

    def start(self, spec: ModelSpec) -> None:
        """Start the model's engine unless it runs; return when it is ready."""
        self._host.call(self._get(spec))

    async def astart(self, spec: ModelSpec) -> None:
        """Like `start`, without blocking the caller's loop."""
        await self._host.acall(self._get(spec))

    async def aengine(self, spec: ModelSpec) -> Engine:
        """Return the model's engine, started where needed. Its coroutines run on the host's loop only: see `arun`."""
        return await self._host.acall(self._get(spec))

    async def aruns(self, spec: ModelSpec) -> bool:
        """Return whether the model's engine runs already, or starts."""

        async def look() -> bool:
            return _key(spec) in self._engines

        return await self._host.acall(look())

    async def arun(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine on the loop that the engines live on."""
        return await self._host.acall(work)

    async def astop(self, spec: ModelSpec) -> None:
        """Close the model's engine, if it runs; the next request starts it again."""
        await self._host.acall(self._stop(_key(spec)))

    def generate(self, spec: ModelSpec, request: GenerationRequest) -> Generator[Delta, None, None]:
        """Yield the answer, starting the engine where needed. Leaving the iteration aborts the request.

        What comes while the caller is busy with the delta before comes joined.
        """
        return self._host.iterate(lambda: self._generate(spec, request), joined)

    def agenerate(self, spec: ModelSpec, request: GenerationRequest) -> AsyncGenerator[Delta, None]:
        """Like `generate`, without blocking the caller's loop."""
        return self._host.aiterate(lambda: self._generate(spec, request), joined)

    def stats(self) -> dict[str, EngineStats]:
        """Return what each running engine is doing, by the name of its model."""
        return self._host.call(self._stats()) if self._host.running else {}

    def close(self) -> None:
        """Close all engines and end the host's thread; also done at exit. The pool can be used again afterwards.

        Requests that are still running end with an EngineDiedError.
        """
        if self._pid == os.getpid() and self._host.running:
            self._host.call(self._close())
            self._host.stop()

    def _forget(self) -> None:
        """In a forked child: the engines are the parent's."""
        self._engines, self._names, self._waiting = {}, {}, set()
        self._starting, self._closing, self._pid = None, False, os.getpid()

    async def _get(self, spec: ModelSpec) -> Engine:
        if self._closing:
            raise EngineDiedError("The engines are being closed.")
        key = _key(spec)
        task = self._engines.get(key)
        if task is not None and task.done() and not _usable(task):
            del self._engines[key]
            if not task.cancelled() and task.exception() is None:
                await task.result().close()
            task = self._engines.get(key)  # another caller may have started it meanwhile
        if task is None:
            # In a context of its own: the engine outlives the run, and the trace, that asked for it first.
            task = self._engines[key] = asyncio.create_task(self._start(spec), context=contextvars.Context())
            self._names[key] = spec.name
            task.add_done_callback(lambda done: self._forget_failure(key, done))
        # Shielded: the others who wait for this engine must not suffer when one of them is cancelled.
        return await asyncio.shield(task)

    async def _stop(self, key: str) -> None:
        if (task := self._engines.get(key)) is not None:
            await self._end(task)
            if self._engines.get(key) is task:
                del self._engines[key]

    async def _end(self, task: "asyncio.Task[Engine]") -> None:
        """Close the task's engine, whether it runs, starts, or waits for its turn to start."""
        waits = task in self._waiting
        if waits:
            task.cancel()
        try:
            while not task.done():
                if self._under_way is not None and not waits:
                    self._under_way.interrupt()
                await asyncio.wait({task}, timeout=_INTERRUPT_EVERY_S)
            await task.result().close()
        except asyncio.CancelledError:
            if not task.cancelled():  # then it is this close that is being cancelled
                raise
        except Exception:
            logger.debug("An engine did not start or close cleanly", exc_info=True)

    async def _start(self, spec: ModelSpec) -> Engine:
        if self._starting is None:
            self._starting = asyncio.Lock()
        task = asyncio.current_task()
        if task is not None:
            self._waiting.add(task)
        async with self._starting:  # two engines that start at once measure each other's memory
            self._waiting = {other for other in self._waiting if other is not task}
            began = time.perf_counter()
            engine = self._under_way = self._factory(spec)
            try:
                await engine.start()
            finally:
                self._under_way = None
            progress.report("ready", spec.name, f"ready after {time.perf_counter() - began:.1f} s")
            return engine

    def _forget_failure(self, key: str, task: "asyncio.Task[Engine]") -> None:
        if (task.cancelled() or task.exception() is not None) and self._engines.get(key) is task:
            del self._engines[key]

    async def _generate(self, spec: ModelSpec, request: GenerationRequest) -> AsyncIterator[Delta]:
        with Observation(spec, request) as observed:
            for left in reversed(range(request.retries + 1)):
                engine = await self._get(spec)
                observed.handed_to(engine)
                answered = False
                deltas = engine.generate(request)
                try:
                    async with _within(request.timeout_s):
                        async for delta in deltas:
                            observed.last, answered = delta, True
                            yield delta
                    return
                except EngineDiedError:
                    if answered or self._closing or not left:
                        raise
                finally:
                    close = getattr(deltas, "aclose", None)
                    if close is not None:
                        await close()

    async def _stats(self) -> dict[str, EngineStats]:
        ready = {key: task for key, task in self._engines.items() if task.done() and _usable(task)}
        return {self._names[key]: task.result().stats() for key, task in ready.items()}

    async def _close(self) -> None:
        self._closing = True
        try:
            for task in tuple(self._waiting):
                task.cancel()
            while self._engines:
                # One by one: a close that is interrupted (Ctrl-C) can be taken up again.
                key, task = next(iter(self._engines.items()))
                await self._end(task)
                self._engines.pop(key, None)
        finally:
            self._closing, self._starting, self._waiting = False, None, set()


@asynccontextmanager
async def _within(seconds: float | None) -> AsyncIterator[None]:
    if seconds is None:
        yield
        return
    try:
        async with asyncio.timeout(seconds):
            yield
    except TimeoutError as error:
        raise GenerationTimeoutError(f"The answer was not there after {seconds:g} s.") from error


def _call(pool: "weakref.ref[EnginePool]", method: Callable[[EnginePool], None]) -> None:
    if (alive := pool()) is not None:
        method(alive)


def _usable(task: "asyncio.Task[Engine]") -> bool:
    return not task.cancelled() and task.exception() is None and task.result().healthy()


def _key(spec: ModelSpec) -> str:
    return spec.model_dump_json(exclude={"name", "trinity", "tier", "parameters"})


def engine_of(spec: ModelSpec) -> Engine:
    """Return the engine that the entry asks for, not started."""
    if spec.engine.kind == "openai":
        raise EngineStartError(
            f"{spec.name!r} is on a server, so that there is no engine to start here.",
            hint="Take its chat model from ChatModels(catalog), which asks the server.",
        )
    if spec.engine.kind == "transformers":
        from chancellor.engines.transformers import TransformersEngine

        return TransformersEngine(spec)
    return VLLMEngine(spec)


_default: EnginePool | None = None
_default_lock = threading.Lock()


def default_pool() -> EnginePool:
    """Return the process's pool."""
    global _default
    with _default_lock:
        if _default is None:
            _default = EnginePool()
        return _default
