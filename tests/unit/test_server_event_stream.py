"""What a stream does while nothing comes, and when nobody takes it."""

import asyncio
from collections.abc import AsyncGenerator, Iterator
from typing import Any

import pytest
from starlette.types import Message

from chancellor.engines import EnginePool
from chancellor.errors import EngineStartError
from chancellor.server.event_stream import EventStream
from tests.fakes import FakeEngine
from tests.serving import QUESTION, app_of, client_of, events, pooled

CHAT = "/v1/chat/completions"
ASKED: dict[str, Any] = {"model": "light", "messages": QUESTION, "stream": True}


@pytest.fixture
def pool() -> Iterator[EnginePool]:
    with pooled() as pool:
        yield pool


class Caller:
    """An ASGI caller who can hang up, or stop reading."""

    def __init__(self) -> None:
        self.got: list[Message] = []
        self.gone, self.reads = asyncio.Event(), asyncio.Event()
        self.reads.set()

    async def receive(self) -> Message:
        await self.gone.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        await self.reads.wait()
        self.got.append(message)

    @property
    def bodies(self) -> list[bytes]:
        return [message["body"] for message in self.got[1:]]


class Source:
    """Events that come when they are told to."""

    def __init__(self) -> None:
        self.queue: asyncio.Queue[bytes | Exception | None] = asyncio.Queue()
        self.closed = False

    async def events(self) -> AsyncGenerator[bytes, None]:
        try:
            while (item := await self.queue.get()) is not None:
                if isinstance(item, Exception):
                    raise item
                yield item
        finally:
            self.closed = True


async def until(what: Any) -> None:
    async with asyncio.timeout(60):
        while not what():  # noqa: ASYNC110 - what is waited for is of several kinds
            await asyncio.sleep(0.01)


def run(source: Source, caller: Caller, *, ping_s: float = 60, stalled_s: float = 60) -> "asyncio.Task[None]":
    response = EventStream(source.events(), headers={"x-ours": "1"}, ping_s=ping_s, stalled_s=stalled_s)
    return asyncio.ensure_future(response({"type": "http"}, caller.receive, caller.send))


async def test_events_are_sent_as_they_come() -> None:
    source, caller = Source(), Caller()
    task = run(source, caller)
    for event in (b"data: 1\n\n", b"data: 2\n\n"):
        source.queue.put_nowait(event)
        await until(lambda event=event: event in caller.bodies)
    source.queue.put_nowait(None)
    await task
    start, *bodies = caller.got
    headers = dict(start["headers"])
    assert start["status"] == 200
    assert headers[b"content-type"] == b"text/event-stream; charset=utf-8"
    assert headers[b"x-ours"] == b"1"
    assert headers[b"cache-control"] == b"no-store"
    assert b"content-length" not in headers
    assert [one["body"] for one in bodies] == [b"data: 1\n\n", b"data: 2\n\n", b""]
    assert [one["more_body"] for one in bodies] == [True, True, False]


async def test_silence_is_filled_with_comments_and_nothing_else_is() -> None:
    source, caller = Source(), Caller()
    task = run(source, caller, ping_s=0.05)
    await until(lambda: len(caller.bodies) == 2)
    source.queue.put_nowait(b"data: 1\n\n")
    source.queue.put_nowait(None)
    await task
    assert all(body == b": ping\n\n" for body in caller.bodies[:-2])
    assert caller.bodies[-2:] == [b"data: 1\n\n", b""]


async def test_a_caller_who_hangs_up_closes_the_source() -> None:
    source, caller = Source(), Caller()
    task = run(source, caller)
    source.queue.put_nowait(b"data: 1\n\n")
    await until(lambda: caller.bodies)
    caller.gone.set()
    await task
    assert source.closed


@pytest.mark.parametrize("ping_s", [0.05, 60])
async def test_a_caller_who_stops_reading_closes_the_source(ping_s: float) -> None:
    source, caller = Source(), Caller()
    task = run(source, caller, ping_s=ping_s, stalled_s=0.2)
    source.queue.put_nowait(b"data: 1\n\n")
    await until(lambda: caller.bodies)
    caller.reads.clear()
    source.queue.put_nowait(b"data: 2\n\n")
    async with asyncio.timeout(10):
        await task
    assert source.closed
    assert caller.got[-1]["more_body"]  # the server sees that it was cut


async def test_what_the_source_raises_is_raised() -> None:
    source, caller = Source(), Caller()
    task = run(source, caller)
    source.queue.put_nowait(ValueError("broken"))
    with pytest.raises(ValueError, match="broken"):
        await task


async def test_a_cancelled_response_closes_the_source() -> None:
    source, caller = Source(), Caller()
    task = run(source, caller)
    source.queue.put_nowait(b"data: 1\n\n")
    await until(lambda: caller.bodies)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert source.closed


async def test_proxies_hear_something_before_the_first_token(pool: EnginePool) -> None:
    FakeEngine.start_s = 0.5
    async with client_of(app_of(pool, ping_s=0.1)) as client:
        answer = await client.post(CHAT, json=ASKED)
    assert answer.status_code == 200
    assert answer.headers["x-chancellor-model"] == "light"
    assert answer.text.startswith(": ping\n\n")
    *pieces, done = events(answer.text)
    assert done == "[DONE]"
    assert {piece["model"] for piece in pieces} == {"light"}
    assert "".join(piece["choices"][0]["delta"].get("content", "") for piece in pieces) == "light says: hello there"


async def test_what_fails_after_a_comment_is_an_event(pool: EnginePool) -> None:
    FakeEngine.start_s, FakeEngine.fail_starts = 0.5, 9
    async with client_of(app_of(pool, ping_s=0.1)) as client:
        answer = await client.post(CHAT, json=ASKED)
        assert answer.status_code == 200
        (failed,) = events(answer.text)
        assert failed["error"]["message"] == EngineStartError("The fake did not start.").message
        FakeEngine.start_s = 0.0
        assert (await client.post(CHAT, json=ASKED)).status_code == 503


async def test_the_time_that_a_request_may_take_goes_on_after_a_comment(pool: EnginePool) -> None:
    wait: dict[str, Any] = ASKED | {"messages": [{"role": "user", "content": "wait"}]}
    async with client_of(app_of(pool, ping_s=0.1, timeout_s=1.5)) as client:
        answer = await client.post(CHAT, json=wait)
    (failed,) = events(answer.text)
    assert "1.5 s" in failed["error"]["message"]
    await until(lambda: FakeEngine.aborted == ["wait"])


@pytest.mark.parametrize("stream", [False, True])
async def test_metrics_are_those_of_all_choices(pool: EnginePool, *, stream: bool) -> None:
    asked = ASKED | {"n": 3, "stream": stream, "chancellor": {"decision": True}}
    async with client_of(app_of(pool)) as client:
        answer = await client.post(CHAT, json=asked)
    body = events(answer.text)[-2] if stream else answer.json()
    metrics = body["chancellor"]["metrics"]
    assert metrics["output_tokens"] == 12
    assert metrics["tokens_per_s"] == pytest.approx(24)
    assert metrics["inference_time_s"] == 0.5
