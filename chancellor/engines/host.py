"""The thread that all in-process engines live on, with an event loop of its own.

An engine bound to a caller's loop dies with it, and graphs are called from many: `asyncio.run` twice, LangGraph's
server, threads. So engines run here, and callers cross over, from sync code and from any loop.
"""

import asyncio
import collections
import os
import queue
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Generator, Iterable
from concurrent.futures import CancelledError, Future
from contextlib import suppress
from typing import Any, Final, TypeVar

from chancellor.engines.inbox import End, Inbox, taken_from
from chancellor.engines.interpreter import tuned_interpreter
from chancellor.errors import EngineDiedError

__all__ = ["EngineHost", "in_thread", "starts_left"]

_END_S: Final = 5.0
"""How long to wait for a thread that was stopped."""
_MOMENT_S: Final = 0.2
_BLOCKING: Final = "chancellor-start"
"""Name of the threads with blocking work."""
_CLOSED: Final = "The engines were closed while this request ran."
T = TypeVar("T")
Join = Callable[[list[T]], Iterable[T]]


class EngineHost:
    """An event loop in a daemon thread, started on first use."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        # A forked child has no such thread: it starts its own.
        os.register_at_fork(after_in_child=self._forget)

    def _forget(self) -> None:
        self._lock = threading.RLock()
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
                # The thread before may still be ending: what belongs to its loop must not be met on this one.
                self._thread = threading.Thread(
                    target=_run, args=(loop, self._thread), name="chancellor-engines", daemon=True
                )
                self._thread.start()
                self._loop = loop
            return self._loop

    def submit(self, coroutine: Coroutine[Any, Any, T]) -> "Future[T]":
        """Start a coroutine on the host; cancelling the future cancels it."""
        with self._lock:  # what comes to a loop that is being stopped comes before its end, and ends with it
            return asyncio.run_coroutine_threadsafe(coroutine, self.loop())

    def call(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine on the host and wait. An interrupt (Ctrl-C) cancels it."""
        future = self.submit(coroutine)
        try:
            return future.result()
        except CancelledError as error:
            raise EngineDiedError(_CLOSED) from error
        except BaseException:
            future.cancel()
            raise

    async def acall(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine on the host from another loop. Cancelling this cancels it."""
        try:
            return await asyncio.wrap_future(self.submit(coroutine))
        except asyncio.CancelledError as error:
            if (task := asyncio.current_task()) is None or task.cancelling():
                raise
            raise EngineDiedError(_CLOSED) from error  # not the caller was cancelled: the host was stopped

    def iterate(self, source: Callable[[], AsyncIterator[T]], join: Join[T] = iter) -> Generator[T, None, None]:
        """Iterate over what `source` yields on the host. Leaving early cancels it.

        Args:
            source: called on the host.
            join: makes fewer items of those that came while the caller was busy with the ones before.
        """
        arrived: queue.SimpleQueue[Any] = queue.SimpleQueue()
        items: collections.deque[Any] = collections.deque()
        future = self.submit(_pump(source, arrived.put))
        try:
            while True:
                if not items:
                    items.append(arrived.get())
                while not arrived.empty():
                    items.append(arrived.get())
                if not (taken := taken_from(items)):
                    return
                yield from join(taken)
        finally:
            future.cancel()

    async def aiterate(self, source: Callable[[], AsyncIterator[T]], join: Join[T] = iter) -> AsyncGenerator[T, None]:
        """Like `iterate`, from another loop and without blocking it."""
        inbox: Inbox[T] = Inbox(asyncio.get_running_loop())
        future = self.submit(_pump(source, inbox.put))
        try:
            while taken := await inbox.take():
                for item in join(taken):
                    yield item
        finally:
            future.cancel()

    def stop(self) -> None:
        """End the thread; what still runs on it is cancelled. Engines have to be closed before."""
        with self._lock:
            loop, thread = self._loop, self._thread
            self._loop = None
        if loop is not None and thread is not None:
            loop.call_soon_threadsafe(loop.stop)
            thread.join(_END_S)


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
        result, failed = None, None
        try:
            result = function()
        except BaseException as error:  # noqa: BLE001 - raised again where it belongs: at the caller
            failed = error
        with suppress(RuntimeError):  # the loop is closed: its caller has gone
            loop.call_soon_threadsafe(deliver, result, failed)

    try:
        threading.Thread(target=work, name=_BLOCKING, daemon=True).start()
    except RuntimeError:  # from Python 3.12 on, an interpreter that ends starts no more threads
        work()
    return await done


def starts_left() -> bool:
    """Return whether blocking work goes on. An interpreter that ends in the middle of it may crash."""
    left = [thread for thread in threading.enumerate() if thread.name == _BLOCKING]
    for thread in left:
        thread.join(_MOMENT_S)  # one that has delivered its result is about to end
    return any(thread.is_alive() for thread in left)


def _run(loop: asyncio.AbstractEventLoop, before: threading.Thread | None) -> None:
    if before is not None:
        before.join(_END_S)
    with tuned_interpreter():
        _run_until_stopped(loop)


def _run_until_stopped(loop: asyncio.AbstractEventLoop) -> None:
    asyncio.set_event_loop(loop)
    try:
        while True:
            try:
                loop.run_forever()
                break
            except (KeyboardInterrupt, SystemExit):  # a task's: its caller gets it, and the others go on
                continue
        loop.run_until_complete(asyncio.sleep(0))  # a task that had not begun could not tell that it was cancelled
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
    items: AsyncIterator[T] | None = None
    try:
        items = source()
        async for item in items:
            put(item)
    except asyncio.CancelledError:
        # Either nobody listens any more, or the host is being stopped.
        put(End(EngineDiedError(_CLOSED)))
        raise
    except BaseException as error:  # noqa: BLE001 - raised again where it belongs: at the caller
        put(End(error))
    finally:
        try:
            # Closing it here, not when the garbage collector comes by, aborts the request at once.
            close = getattr(items, "aclose", None)
            if close is not None:
                await close()
        finally:
            put(End())
