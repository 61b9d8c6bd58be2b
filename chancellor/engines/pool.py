"""One engine for each model, however many callers ask at once; what fails is answered otherwise."""

import asyncio
import atexit
import os
import threading
import time
import weakref
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Generator
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from chancellor.catalog import ModelSpec
from chancellor.engines.base import Delta, Engine, EngineStats, GenerationRequest
from chancellor.engines.descent import Descent
from chancellor.engines.hardware import default_frontend
from chancellor.engines.host import EngineHost
from chancellor.engines.joining import joined
from chancellor.engines.ladder import Ladder
from chancellor.engines.migration import Migration
from chancellor.engines.residents import EngineState, Residents
from chancellor.engines.room import Room
from chancellor.engines.vllm import VLLMEngine
from chancellor.engines.vllm_apart import ApartVLLMEngine
from chancellor.errors import ChancellorError, EngineDiedError, GenerationTimeoutError, PromptTooLongError
from chancellor.telemetry.requests import Observation

__all__ = ["EnginePool", "default_pool"]

T = TypeVar("T")


class EnginePool:
    """Engines by catalog entry. The public methods may be called from any thread and any event loop.

    Two entries that differ in anything but their name, tier or Trinity have an engine each.
    """

    def __init__(self, factory: Callable[[ModelSpec], Engine] | None = None, *, room: Room | None = None) -> None:
        """Make a pool without engines.

        Args:
            factory: makes an entry's engine; None makes the one that the entry asks for.
            room: the memory budget; None has none with a factory of your own, else that of the devices.
        """
        self._factory = factory or engine_of
        self._room = room if room is not None or factory is not None else Room()
        self._host = EngineHost()
        self._residents = Residents(self._factory, self._room)
        self._pid = os.getpid()
        this = weakref.ref(self)
        os.register_at_fork(after_in_child=lambda: _call(this, EnginePool._forget))
        atexit.register(lambda: _call(this, EnginePool.close))

    def start(self, spec: ModelSpec) -> None:
        """Start the model's engine unless it runs; return when it is ready."""
        self._host.call(self._residents.get(spec))

    async def astart(self, spec: ModelSpec) -> None:
        """Like `start`, without blocking the caller's loop."""
        await self._host.acall(self._residents.get(spec))

    async def aengine(self, spec: ModelSpec) -> Engine:
        """Return the model's engine, started where needed. Its coroutines run on the host's loop only: see `arun`.

        From now on it does not make room for others.
        """

        async def pin() -> Engine:
            resident = await self._residents.get(spec)
            resident.pinned = True
            return resident.task.result()

        return await self._host.acall(pin())

    async def aruns(self, spec: ModelSpec) -> bool:
        """Return whether the model's engine runs already, or starts."""

        async def look() -> bool:
            return self._residents.known(spec)

        return await self._host.acall(look())

    async def arun(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine on the loop that the engines live on."""
        return await self._host.acall(work)

    async def astop(self, spec: ModelSpec) -> None:
        """Close the model's engine, if it runs; the next request starts it again."""
        await self._host.acall(self._residents.stop(spec))

    def generate(
        self, spec: ModelSpec, request: GenerationRequest, ladder: Ladder | None = None
    ) -> Generator[Delta, None, None]:
        """Yield the answer, starting the engine where needed. Leaving the iteration aborts the request.

        What comes while the caller is busy with the delta before comes joined.

        Args:
            spec: the entry.
            request: what is asked.
            ladder: what to do when the model cannot be served as it is asked for; None lets that fail.

        Raises:
            EngineBusyError: too many requests wait already.
            EngineDiedError: its engine died more often than the request allows.
            GenerationTimeoutError: the answer was not there in time; a start that was under way goes on.
            ChancellorError: the engine cannot be started, or cannot answer.
        """
        return self._host.iterate(lambda: self._generate(spec, request, ladder), joined)

    def agenerate(
        self, spec: ModelSpec, request: GenerationRequest, ladder: Ladder | None = None
    ) -> AsyncGenerator[Delta, None]:
        """Like `generate`, without blocking the caller's loop."""
        return self._host.aiterate(lambda: self._generate(spec, request, ladder), joined)

    def stats(self) -> dict[str, EngineStats]:
        """Return what each running engine is doing, by the name of its model."""
        return self._host.call(self._stats()) if self._host.running else {}

    def start_s(self, spec: ModelSpec) -> float | None:
        """Return the seconds until the model can answer: 0 if its engine runs, else what its last start, or wake, took.

        Making room for it, by stopping others, is in it. None where it has not been started in this process, or is
        not run in it. It only looks, and blocks nothing.
        """
        return self._residents.start_s(spec)

    def state(self, spec: ModelSpec) -> EngineState:
        """Return what the model's engine is about. It only looks, and blocks nothing."""
        return self._residents.state(spec)

    def asleep(self) -> dict[str, bool]:
        """Return which of the engines that run sleep, by the name of their model. It only looks, and blocks nothing."""
        return self._residents.asleep()

    def swaps(self) -> dict[str, int]:
        """Return how often an engine went to `sleep`, or had to `stop`, to make room, and how often one did `wake`.

        It only looks, and blocks nothing. A pool that is closed counts anew.
        """
        return self._residents.swaps()

    def close(self, *, patience_s: float | None = None) -> None:
        """Close all engines and end the host's thread; also done at exit. The pool can be used again afterwards.

        Requests that are still running end with an EngineDiedError.

        Args:
            patience_s: how long to wait for a start that does not end although it is interrupted, as in the middle of
                an import; None has no limit. What is left then ends as soon as it can, in a thread: see `starts_left`.
        """
        if self._pid == os.getpid() and self._host.running:
            self._host.call(self._residents.close(patience_s))
            self._host.stop()
            self._residents = Residents(self._factory, self._room)  # until here, the old ones start nothing more

    def _forget(self) -> None:
        """In a forked child: the engines are the parent's."""
        self._residents, self._pid = Residents(self._factory, self._room), os.getpid()

    async def _generate(
        self, spec: ModelSpec, request: GenerationRequest, ladder: Ladder | None
    ) -> AsyncIterator[Delta]:
        with Observation(spec, request) as observed:
            migration, descent = Migration(request), Descent(spec, ladder, self._residents)
            seconds = request.timeout_s
            deadline = None if seconds is None else time.monotonic() + seconds
            while True:
                try:
                    async with _until(deadline, seconds, starting=not migration.emitted):
                        resident = await descent.enter(emitted=migration.emitted)
                except GenerationTimeoutError:
                    raise
                except ChancellorError as error:
                    raise (migration.stranded(error) if migration.emitted else error) from error.__cause__
                deltas: AsyncIterator[Delta] | None = None
                try:
                    engine = resident.task.result()
                    observed.handed_to(engine)
                    deltas = engine.generate(migration.request(engine))
                    async with _until(deadline, seconds):
                        async for delta in deltas:
                            for piece in migration.take(delta):
                                observed.last = descent.noted(piece)
                                yield observed.last
                    return
                except PromptTooLongError as error:
                    if migration.emitted:  # on a shorter context than it began with
                        raise migration.stranded(error) from error
                    if not await descent.outgrown(error):
                        raise descent.explained(error) from error.__cause__
                except EngineDiedError as error:
                    if migration.finished:
                        return
                    if self._residents.closing or not migration.goes_on(cut=resident.cut is not None):
                        raise migration.ended(error) from error
                    await descent.died(error, resident)
                finally:
                    descent.leave(resident)
                    close = getattr(deltas, "aclose", None)
                    if close is not None:
                        await close()

    async def _stats(self) -> dict[str, EngineStats]:
        return {one.spec.name: one.task.result().stats() for one in self._residents.ready()}


@asynccontextmanager
async def _until(deadline: float | None, seconds: float | None, *, starting: bool = False) -> AsyncIterator[None]:
    if deadline is None:
        yield
        return
    try:
        async with asyncio.timeout(max(0.0, deadline - time.monotonic())):
            yield
    except TimeoutError as error:
        message = f"The answer was not there after {seconds:g} s."
        if not starting:
            raise GenerationTimeoutError(message) from error
        raise GenerationTimeoutError(
            f"{message} Its engine was not ready yet.",
            hint="Its start goes on: ask again later, allow more time (timeout), or start it beforehand.",
        ) from error


def _call(pool: "weakref.ref[EnginePool]", method: Callable[[EnginePool], None]) -> None:
    if (alive := pool()) is not None:
        method(alive)


def engine_of(spec: ModelSpec) -> Engine:
    """Return the engine that the entry asks for, not started."""
    if spec.engine.kind == "openai":
        from chancellor.engines.remote import RemoteEngine

        return RemoteEngine(spec)
    if spec.engine.kind == "transformers":
        from chancellor.engines.transformers import TransformersEngine

        return TransformersEngine(spec)
    if (spec.engine.frontend or default_frontend()) == "process":
        return ApartVLLMEngine(spec)
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
