"""What is paid for each chunk: many tokens to one under load, none lost, and nothing for each token unstreamed."""

import asyncio
import gc
import itertools
import threading
import weakref
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st
from langchain_core.messages import AIMessageChunk

from chancellor import ChatVLLM
from chancellor.chat.messages import chunk_of, message_of
from chancellor.engines import Delta, EnginePool, GenerationRequest, TokenLogprob, ToolCallPiece
from chancellor.engines.host import EngineHost
from chancellor.engines.joining import joined
from tests.fakes import FakeEngine, catalog

LAST = Delta("", finish_reason="stop", input_tokens=3, output_tokens=7, cached_tokens=2, inference_time_s=0.5)
pieces = st.builds(
    ToolCallPiece, st.integers(0, 2), st.sampled_from([None, "x"]), st.sampled_from([None, "f"]), st.text(max_size=3)
)
deltas = st.builds(
    Delta,
    text=st.sampled_from(["", "a", " bc"]),
    token_ids=st.lists(st.integers(0, 9), max_size=2).map(tuple),
    logprobs=st.lists(st.builds(TokenLogprob, st.integers(0, 9), st.just("t"), st.just(-1.0)), max_size=2).map(tuple),
    reasoning=st.sampled_from(["", "", "hm"]),
    tool_calls=st.lists(pieces, max_size=2).map(tuple),
)


def said(answer: list[Delta]) -> list[tuple[str, str]]:
    """What a reader sees, in its order, whatever the pieces."""
    seen: list[tuple[str, str]] = []
    for delta in answer:
        calls = [(f"call {piece.index}", piece.arguments) for piece in delta.tool_calls]
        seen += [(kind, text) for kind, text in (("thought", delta.reasoning), ("text", delta.text)) if text]
        seen += sorted(calls, key=lambda call: call[0]) if calls else []
    groups = itertools.groupby(seen, key=lambda one: one[0].split()[0])
    runs: list[tuple[str, str]] = []
    for kind, group in groups:
        by_name: dict[str, str] = {}
        for name, text in group:
            by_name[name] = by_name.get(name, "") + text
        runs += sorted(by_name.items()) if kind == "call" else [(kind, "".join(by_name.values()))]
    return runs


@given(st.lists(deltas, max_size=6))
def test_joining_loses_nothing_and_keeps_the_order(some: list[Delta]) -> None:
    answer = [*some, LAST]
    made = list(joined(answer))
    assert len(made) <= len(answer)
    assert said(made) == said(answer)
    assert [one for delta in made for one in delta.token_ids] == [one for delta in answer for one in delta.token_ids]
    assert [one for delta in made for one in delta.logprobs] == [one for delta in answer for one in delta.logprobs]
    bare = replace(made[-1], text="", reasoning="", tool_calls=(), token_ids=(), logprobs=())
    assert bare == LAST
    assert [delta.finish_reason for delta in made[:-1]] == [None] * (len(made) - 1)


def test_thoughts_text_and_calls_come_in_one_only_in_this_order() -> None:
    thought, text, call = Delta("", reasoning="hm"), Delta("yes"), Delta("", tool_calls=(ToolCallPiece(0, "1", "f"),))
    assert len(list(joined([thought, text, call]))) == 1
    assert list(joined([text, thought])) == [text, thought]
    assert [delta.text for delta in joined([text, call, text, text])] == ["yes", "yesyes"]
    assert list(joined([text])) == [text]
    assert list(joined([])) == []


@pytest.mark.parametrize("size", [1, 2, 3, 20])
def test_chunks_of_joined_deltas_add_up_to_the_whole_message(size: int) -> None:
    arguments = ['{"ci', 'ty": ', '"Ulm"}']
    calls = [Delta("", (), tool_calls=(ToolCallPiece(0, "1", "weather"),))]
    calls += [Delta("", tool_calls=(ToolCallPiece(0, arguments=text),)) for text in arguments]
    calls += [Delta("", tool_calls=(ToolCallPiece(1, "2", "time", "{}"),))]
    logprobs = tuple(TokenLogprob(number, f"t{number}", -1.0) for number in range(4))
    words = [Delta(f"{number} ", (number,), logprobs[number : number + 1]) for number in range(4)]
    answer = [Delta("", reasoning="I "), Delta("", reasoning="see."), *words, *calls, LAST]
    total: AIMessageChunk | None = None
    for batch in (answer[at : at + size] for at in range(0, len(answer), size)):
        for delta in joined(batch):
            chunk = chunk_of(delta, {"finish_reason": "stop"} if delta.finish_reason else None)
            total = chunk if total is None else total + chunk
    whole = message_of(answer, {"finish_reason": "stop"})
    assert total is not None
    assert total.content == whole.content
    assert total.additional_kwargs == whole.additional_kwargs
    assert total.tool_calls == whole.tool_calls
    assert [call["args"] for call in whole.tool_calls] == [{"city": "Ulm"}, {}]
    assert total.usage_metadata == whole.usage_metadata
    assert total.response_metadata == whole.response_metadata


class Gated(FakeEngine):
    """Makes its first word, and all others once the caller has that one and is busy."""

    more: ClassVar[threading.Event]
    done: ClassVar[threading.Event]

    async def generate(self, request: GenerationRequest) -> AsyncIterator[Delta]:
        yield Delta("one", (0,))
        await asyncio.to_thread(self.more.wait, 30)
        for number in range(1, 5):
            yield Delta(f" {number}", (number,))
        yield Delta(" end", (5,), finish_reason="stop", input_tokens=1, output_tokens=6)
        self.done.set()


@pytest.fixture
def gated(fake_engine: type[FakeEngine]) -> EnginePool:
    Gated.more, Gated.done = threading.Event(), threading.Event()
    return EnginePool(Gated)


def busy() -> None:
    Gated.more.set()
    assert Gated.done.wait(30)


async def test_what_came_while_the_caller_was_busy_comes_joined(gated: EnginePool) -> None:
    model = ChatVLLM(model="light", catalog=catalog(), pool=gated)
    texts = []
    async for chunk in model.astream("?"):
        texts.append(chunk.text)
        if len(texts) == 1:
            busy()
    assert texts == ["one", " 1 2 3 4 end"]


def test_so_it_does_in_sync_code(gated: EnginePool) -> None:
    answer = []
    request = GenerationRequest([{"role": "user", "content": "?"}], stream=True)
    for delta in gated.generate(catalog()["light"], request):
        answer.append(delta)
        if len(answer) == 1:
            busy()
    assert [delta.token_ids for delta in answer] == [(0,), (1, 2, 3, 4, 5)]
    assert answer[-1].output_tokens == 6


async def test_a_caller_that_keeps_up_gets_each_token() -> None:
    host, taken = EngineHost(), threading.Semaphore(1)

    async def numbers() -> AsyncIterator[int]:
        for number in range(20):
            await asyncio.to_thread(taken.acquire)
            yield number

    lots: list[list[int]] = []

    def kept(items: list[int]) -> list[int]:
        lots.append(items)
        return items

    async for number in host.aiterate(numbers, kept):
        assert number == len(lots) - 1
        taken.release()
    assert lots == [[number] for number in range(20)]


async def test_an_error_comes_after_the_items_that_were_joined() -> None:
    host, gate = EngineHost(), threading.Event()

    async def failing() -> AsyncIterator[int]:
        for number in range(3):
            yield number
        gate.set()
        raise ValueError("broken")

    seen: list[int] = []

    async def collect() -> None:
        async for number in host.aiterate(failing):
            seen.append(number)
            assert gate.wait(30)

    with pytest.raises(ValueError, match="broken"):
        await collect()
    assert seen == [0, 1, 2]


async def test_many_callers_of_one_loop_all_get_everything() -> None:
    host = EngineHost()

    async def numbers() -> AsyncIterator[int]:
        for number in range(50):
            await asyncio.sleep(0)
            yield number

    async def collect() -> list[int]:
        return [number async for number in host.aiterate(numbers)]

    assert await asyncio.gather(*(collect() for _ in range(64))) == [list(range(50))] * 64


def test_a_loop_that_is_done_is_let_go() -> None:
    host, loop = EngineHost(), asyncio.new_event_loop()

    async def one() -> AsyncIterator[int]:
        yield 1

    async def collect() -> list[int]:
        return [number async for number in host.aiterate(one)]

    assert loop.run_until_complete(collect()) == [1]
    loop.run_until_complete(loop.shutdown_asyncgens())
    loop.close()
    gone = weakref.ref(loop)
    del loop
    host.call(asyncio.sleep(0.01))
    gc.collect()
    assert gone() is None
