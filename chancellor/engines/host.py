"""The thread that all in-process engines live on, with an event loop of its own.

An engine bound to a caller's loop dies with it, and graphs are called from many: `asyncio.run` twice, LangGraph's
server, threads. So engines run here, and callers cross over, from sync code and from any loop.
"""

import asyncio
import collections
import os
import queue
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Generator
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Final, Generic, TypeVar

from chancellor.errors import EngineDiedError

__all__ = ["EngineHost", "in_thread"]

_END: Final = object()
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class _Failure:
    """What a source raised, on its way to whoever iterates over it."""

    error: BaseException


class EngineHost:
    """An event loop in a daemon thread, started on first use."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        # A forked child has no such thread: it starts its own.
        os.register_at_fork(after_in_child=self._forget)

    def _forget(self) -> None:
        self._lock = threading.Lock()
        self._loop = self._thread = None

    @property
    def running(self) -> bool:
        """Whether the thread has been started."""
        return self._loop is not None

    def loop(self) -> asyncio.AbstractEventLoop:
        """Return the host's loop, running."""
        with self._lock:
            if self._loop is None:
                loop = asyncio.new_event_loop()
                self._thread = threading.Thread(target=_run, args=(loop,), name="chancellor-engines", daemon=True)
                self._thread.start()
                self._loop = loop
            return self._loop

    def submit(self, coroutine: Coroutine[Any, Any, T]) -> "Future[T]":
        """Start a coroutine on the host; cancelling the future cancels it."""
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop())

    def call(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine on the host and wait. An interrupt (Ctrl-C) cancels it."""
        future = self.submit(coroutine)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    async def acall(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine on the host from another loop. Cancelling this cancels it."""
        return await asyncio.wrap_future(self.submit(coroutine))

    def iterate(self, source: Callable[[], AsyncIterator[T]]) -> Generator[T, None, None]:
        """Iterate over what `source` yields on the host. Leaving early cancels it."""
        items: queue.SimpleQueue[Any] = queue.SimpleQueue()
        future = self.submit(_pump(source, items.put))
        try:
            while (item := items.get()) is not _END:
                if isinstance(item, _Failure):
                    raise item.error
                yield item
        finally:
            future.cancel()

    async def aiterate(self, source: Callable[[], AsyncIterator[T]]) -> AsyncGenerator[T, None]:
        """Iterate over what `source` yields on the host, from another loop. Leaving early cancels it."""
        inbox: _Inbox[Any] = _Inbox(asyncio.get_running_loop())
        future = self.submit(_pump(source, inbox.put))
        try:
            while (item := await inbox.get()) is not _END:
                if isinstance(item, _Failure):
                    raise item.error
                yield item
        finally:
            future.cancel()

    def stop(self) -> None:
        """End the thread; what still runs on it is cancelled. Engines have to be closed before."""
        with self._lock:
            loop, thread = self._loop, self._thread
            self._loop = self._thread = None
        if loop is not None and thread is not None:
            loop.call_soon_threadsafe(loop.stop)
            thread.join(timeout=5)


async def in_thread(function: Callable[[], T]) -> T:
    """Run blocking work in a daemon thread. asyncio.to_thread's threads hold up, and are gone at, interpreter exit."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[T] = loop.create_future()

    def deliver(result: T | None, error: BaseException | None) -> None:
        if done.cancelled():
            return
        if error is not None:
            done.set_exception(error)
        else:
            done.set_result(result)  # type: ignore[arg-type]

    def work() -> None:
        try:
            result = function()
        except BaseException as error:  # noqa: BLE001 - raised again where it belongs: at the caller
            loop.call_soon_threadsafe(deliver, None, error)
        else:
            loop.call_soon_threadsafe(deliver, result, None)

    threading.Thread(target=work, name="chancellor-start", daemon=True).start()
    return await done


def _run(loop: asyncio.AbstractEventLoop) -> None:
    asyncio.set_event_loop(loop)
    try:
        loop.run_forever()
        # Whoever waits for a request would wait for ever if its task just vanished with the loop.
        tasks = asyncio.all_tasks(loop)
        for task in tasks:
            task.cancel()
        loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
        loop.run_until_complete(loop.shutdown_asyncgens())
    finally:
        loop.close()


async def _pump(source: Callable[[], AsyncIterator[T]], put: Callable[[Any], None]) -> None:
    """Pass the items on, then the end, or what went wrong."""
    items = source()
    try:
        async for item in items:
            put(item)
    except asyncio.CancelledError:
        # Either nobody listens any more, or the host is being stopped.
        put(_Failure(EngineDiedError("The engines were closed while this request ran.")))
        raise
    except BaseException as error:  # noqa: BLE001 - raised again where it belongs: at the caller
        put(_Failure(error))
    finally:
        # Closing it here, not when the garbage collector comes by, aborts the request at once.
        close = getattr(items, "aclose", None)
        if close is not None:
            await close()
        put(_END)


class _Inbox(Generic[T]):
    """A queue into another loop that wakes it once for all items that came meanwhile."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._items: collections.deque[T] = collections.deque()
        self._arrived = asyncio.Event()
        self._waking = False

    def put(self, item: T) -> None:
        self._items.append(item)
        if not self._waking:
            self._waking = True
            try:
                self._loop.call_soon_threadsafe(self._wake)
            except RuntimeError as error:  # the caller's loop was closed: nobody is waiting any more
                raise asyncio.CancelledError from error

    def _wake(self) -> None:
        self._waking = False
        self._arrived.set()

    async def get(self) -> T:
        while not self._items:
            self._arrived.clear()
            # Between the look above and this clear nothing can be lost: _wake runs on this same loop.
            if self._items:
                break
            await self._arrived.wait()
        return self._items.popleft()
