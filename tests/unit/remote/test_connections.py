"""Connections that are lost, or left."""

import asyncio
from contextlib import aclosing
from typing import Any

import pytest

from chancellor.engines.remote import RemoteEngine
from chancellor.errors import EngineDiedError, GenerationError, UpstreamError
from tests.remote_server import Server, chunk
from tests.unit.remote.asking import all_of, ask, text_of, until


@pytest.mark.parametrize(
    "pieces",
    [
        ["cut"],
        [chunk({"role": "assistant", "content": ""}), "cut"],
        [chunk({"content": ""}, logprobs={"content": [{"token": "x", "logprob": -1.0}]}), "cut"],
        [chunk({"role": "assistant", "content": ""})],  # an end without a reason
        [chunk({}, "abort"), "[DONE]"],  # of a server that shuts down
    ],
)
async def test_lost_before_the_first_text(engine: RemoteEngine, server: Server, pieces: list[Any]) -> None:
    server.streams["x"] = pieces
    deltas = engine.generate(ask("x"))
    with pytest.raises(EngineDiedError, match="lost before 'far' answered"):
        await anext(deltas)
    assert engine.healthy()  # it was one connection, and the server answers


async def test_whole_answer_lost(engine: RemoteEngine, server: Server) -> None:
    server.wholes["x"] = "cut"
    with pytest.raises(EngineDiedError, match="lost before"):
        await all_of(engine, ask("x", stream=False))


@pytest.mark.parametrize(
    "delta", [{"content": "one "}, {"reasoning": "hm"}, {"tool_calls": [{"function": {"name": "add"}}]}]
)
async def test_lost_after_the_first_piece(engine: RemoteEngine, server: Server, delta: dict[str, Any]) -> None:
    server.streams["x"] = [chunk(delta), "cut"]
    with pytest.raises(GenerationError, match="lost in the middle") as raised:
        await all_of(engine, ask("x"))
    assert type(raised.value) is UpstreamError  # no engine can go on with it
    assert "Ask again" in raised.value.hint


async def test_lost_after_the_last_piece(engine: RemoteEngine, server: Server) -> None:
    server.streams["x"] = [chunk({"content": "all"}), chunk({}, "length"), "cut"]
    deltas = await all_of(engine, ask("x"))
    assert text_of(deltas) == "all"
    assert (deltas[-1].finish_reason, deltas[-1].output_tokens) == ("length", None)


@pytest.mark.parametrize("stream", [True, False])
async def test_leaving_ends_the_request_on_the_server(engine: RemoteEngine, server: Server, stream: bool) -> None:
    server.streams["x"] = [chunk({"content": "one "}), "hang"]
    server.wholes["x"] = "hang"
    task = asyncio.create_task(all_of(engine, ask("x", stream=stream)))
    await until(lambda: server.requests)
    assert engine.stats().running == 1
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await until(lambda: server.left == ["x"])
    assert engine.stats().running == 0
    if stream:
        async with aclosing(engine.generate(ask("x"))) as deltas:  # type: ignore[type-var]
            async for delta in deltas:
                assert delta.text == "one "
                break
        await until(lambda: server.left == ["x", "x"])


async def test_stats_and_peaks(engine: RemoteEngine, server: Server) -> None:
    server.streams["x"] = ["hang"]
    tasks = [asyncio.create_task(all_of(engine, ask("x"))) for _ in range(3)]
    await until(lambda: len(server.requests) == 3)
    stats = engine.stats()
    assert (stats.running, stats.peak_running) == (3, 3)
    assert (stats.waiting, stats.kv_cache_usage, stats.output_tokens) == (None, None, None)
    assert engine.peaks() == (3, None)
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)
    assert engine.peaks() == (3, None)
    assert engine.peaks() == (0, None)
    assert engine.process_ids() == []
    assert engine.tokenizer() is None


@pytest.mark.parametrize("pieces", [["hang"], [chunk({"content": "one "}), "hang"]])
async def test_close_ends_what_runs(engine: RemoteEngine, server: Server, pieces: list[Any]) -> None:
    server.streams["x"] = pieces
    task = asyncio.create_task(all_of(engine, ask("x")))
    await until(lambda: server.requests)
    await engine.close()
    with pytest.raises(EngineDiedError, match="closed"):
        await task
    await until(lambda: server.left)
    assert not engine.healthy()
    await engine.close()
    with pytest.raises(EngineDiedError, match="closed"):
        await all_of(engine, ask())


async def test_what_others_have_begun_is_refused(engine: RemoteEngine) -> None:
    with pytest.raises(GenerationError, match="cannot go on"):
        await all_of(engine, ask(answered=(1, 2)))
