"""A model on a server that speaks OpenAI's protocol: `vllm serve`, Ray Serve LLM, a router in front of several, ..."""

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable
from contextlib import aclosing, suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar, Final, TypeVar

from chancellor import progress
from chancellor.catalog import ModelSpec
from chancellor.engines.base import Delta, Engine, EngineStats, GenerationRequest
from chancellor.engines.host import in_thread
from chancellor.engines.remote_errors import error_of, lost, status_of, wants_other_limit
from chancellor.engines.remote_requests import Answer, body_of
from chancellor.engines.remote_server import Trouble, address, connect, look, patiently
from chancellor.errors import ChancellorError, EngineDiedError, EngineStartError, GenerationError
from chancellor.settings import settings

if TYPE_CHECKING:
    from openai import AsyncOpenAI

__all__ = ["RemoteEngine"]

T = TypeVar("T")
_LOOK_EVERY_S: Final = 5.0
_MISSES: Final = 3
"""Looks in a row that fail before a server is given up that did not refuse outright."""


class RemoteEngine(Engine):
    """One model on a server, which is looked at now and then: without it, requests soon fail or go elsewhere.

    Of an entry's further arguments (`vllm`) it takes `default_headers`, `default_query` and `extra_body`.
    """

    kind: ClassVar[str] = "openai"

    def __init__(self, spec: ModelSpec) -> None:
        self.spec = spec
        self._client: AsyncOpenAI | None = None
        self._looking: asyncio.Task[Trouble | None] | None = None
        self._watching: asyncio.Task[None] | None = None
        self._soon = asyncio.Event()
        self._interrupted = self._closed = False
        self._gone: str | None = None
        self._missed = 0
        self._heard = time.monotonic()
        self._waiting: set[asyncio.Timeout] = set()
        self._answering = self._peak = self._peak_since = 0
        self._limit = "max_tokens"

    @property
    def quantization(self) -> str | None:
        return None  # the server does not tell

    async def start(self) -> None:
        progress.report("start", self.spec.name, f"asking {address(self.spec)}")
        # Importing openai, and reading the certificates of authorities, would hold up every other engine.
        client = self._client = await in_thread(lambda: connect(self.spec))
        try:
            self._looking = asyncio.create_task(patiently(client, self.spec))
            if self._interrupted:  # while openai was imported
                self._looking.cancel()
            trouble = await self._looking
            if trouble is not None:
                raise EngineStartError(trouble.message, hint=trouble.hint)
        except BaseException as error:
            await self.close()
            if self._interrupted and isinstance(error, asyncio.CancelledError):
                raise EngineStartError(f"The start of {self.spec.name!r} was interrupted.") from None
            raise
        self._heard = time.monotonic()
        self._watching = asyncio.create_task(self._watch())

    def interrupt(self) -> None:
        self._interrupted = True
        if self._looking is not None:
            self._looking.cancel()

    async def generate(self, request: GenerationRequest) -> AsyncIterator[Delta]:
        client, started = self._running(), time.perf_counter()
        path, body = body_of(request, self.spec)
        if request.answered:
            raise GenerationError(f"{self.spec.name!r} is on a server, which cannot go on with an answer.")
        answer, delta = Answer(), None
        first: float | None = None
        self._answering += 1
        self._peak, self._peak_since = max(self._peak, self._answering), max(self._peak_since, self._answering)
        try:
            try:
                async with aclosing(self._pieces(client, path, body)) as pieces:
                    async for piece in pieces:
                        self._heard, self._missed = time.monotonic(), 0
                        delta = answer.take(piece)
                        if delta is not None and request.stream:
                            first = first or time.perf_counter() - started
                            yield delta
                            delta = None
                if not answer.ended:
                    raise ConnectionError("The answer has no end.")
            except ChancellorError:
                raise
            except Exception as error:
                if not (answer.ended and lost(error)):  # else only the figures are missing
                    raise await self._explained(error, emitted=first is not None) from error
            yield replace(
                delta or Delta(""),
                **answer.figures(),
                inference_time_s=time.perf_counter() - started,
                time_to_first_token_s=first,
                model=self.spec.name,
                engine=self.kind,
            )
        finally:
            self._answering -= 1
            if self._client is None and not self._answering:
                await client.close()

    async def _pieces(self, client: "AsyncOpenAI", path: str, body: dict[str, Any]) -> AsyncGenerator[Any, None]:
        """Yield the JSON of a stream's chunks, or of the whole answer. Closing it ends the request on the server."""
        answer = await self._post(client, path, body)
        if not body["stream"]:
            yield answer
            return
        try:
            if "event-stream" not in (form := answer.response.headers.get("content-type", "event-stream")):
                raise ValueError(f"It is {form}, and no stream of events.")
            while (piece := await self._until_given_up(anext(answer, None))) is not None:
                yield piece
        finally:
            await answer.close()

    async def _post(self, client: "AsyncOpenAI", path: str, body: dict[str, Any]) -> Any:
        import openai

        if self._limit != "max_tokens":
            body[self._limit] = body.pop("max_tokens")
        streamed: dict[str, Any] = {"stream": True, "stream_cls": openai.AsyncStream[object]} if body["stream"] else {}
        try:
            return await self._until_given_up(client.post(path, cast_to=object, body=body, **streamed))
        except openai.BadRequestError as error:
            if "max_tokens" not in body or not wants_other_limit(error):
                raise
        self._limit = "max_completion_tokens"
        return await self._post(client, path, body)

    async def _until_given_up(self, awaited: Awaitable[T]) -> T:
        try:
            async with asyncio.timeout(None) as waiting:
                self._waiting.add(waiting)
                try:
                    return await awaited
                finally:
                    self._waiting.discard(waiting)
        except TimeoutError as error:
            raise ConnectionError(self._gone or "The connection was closed.") from error

    async def _explained(self, error: Exception, *, emitted: bool) -> ChancellorError:
        """Return the error for the caller; look whether the server is still there, where that decides."""
        if self._closed:
            return EngineDiedError(f"The connection to the server of {self.spec.name!r} was closed while it answered.")
        status = status_of(error)
        doubtful = lost(error) or (status is not None and status >= 500)
        if doubtful and not emitted:
            await self._look(failed=True)
        elif doubtful or status in (401, 403, 404):
            self._soon.set()
        return error_of(error, self.spec, gone=self._gone is not None, emitted=emitted)

    async def _watch(self) -> None:
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(_LOOK_EVERY_S):
                    await self._soon.wait()
            self._soon.clear()
            await self._look()

    async def _look(self, *, failed: bool = False) -> None:
        """Look at the server, together with whoever does so at the moment.

        Args:
            failed: whether a request has just failed: then one look that fails too is enough.
        """
        client, began = self._client, time.monotonic()
        if client is None:
            return
        if self._looking is None or self._looking.done():
            self._looking = asyncio.create_task(look(client, self.spec))
        looking = self._looking
        await asyncio.wait({looking})
        if looking.cancelled():  # the engine is being closed
            return
        trouble = looking.result()
        if trouble is None:
            self._heard, self._missed, self._gone = time.monotonic(), 0, None
        elif failed or trouble.certain:
            self._gone = trouble.message
        elif self._heard < began:
            self._missed += 1
            if self._missed >= _MISSES and not (trouble.kind == "silent" and self._answering):
                self._gone = trouble.message

    def healthy(self) -> bool:
        return self._client is not None and self._gone is None

    def stalled(self) -> str | None:
        silent = time.monotonic() - self._heard
        if self._answering and self._missed >= _MISSES and silent > settings().stall_s:
            return f"its server at {address(self.spec)} has been silent for {silent:.0f} s"
        return None

    def kill(self) -> None:
        self._gone = "It was given up."
        now = asyncio.get_running_loop().time()
        for waiting in self._waiting:
            waiting.reschedule(now)

    def stats(self) -> EngineStats:
        return EngineStats(running=self._answering, waiting=None, kv_cache_usage=None, peak_running=self._peak)

    def peaks(self) -> tuple[int, float | None] | None:
        seen, self._peak_since = self._peak_since, self._answering
        return seen, None

    def inner(self) -> Any:
        return self._running()

    async def close(self) -> None:
        client, self._client = self._client, None
        for task in (self._watching, self._looking):
            if task is not None:
                task.cancel()
        if client is None:
            return
        if self._gone is not None and self._answering:
            return  # a server that shuts down refuses new requests, and ends those that it has: the last one closes it
        self._closed = True
        self.kill()
        await client.close()

    def _running(self) -> "AsyncOpenAI":
        if self._client is None:
            raise EngineDiedError(f"The connection to the server of {self.spec.name!r} is closed.")
        return self._client
