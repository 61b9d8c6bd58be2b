"""Real engines: vLLM on this machine, with the demo model."""

import asyncio
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from langgraph.checkpoint.memory import InMemorySaver

from chancellor import Catalog, ChatModels, create_chancellor, errors
from chancellor.engines import Delta, EnginePool, GenerationRequest
from chancellor.engines.vllm_pace import Pace
from chancellor.nodes import generation_node
from tests.integration.conftest import INT8, PLAIN
from tests.unit.test_graph import Graph

pytestmark = pytest.mark.engine
GREEDY = {"temperature": 0, "max_tokens": 48}


def ask(text: str) -> dict[str, Any]:
    return {"messages": [("user", text)]}


def test_the_main_job(graph: Graph) -> None:
    state = graph.invoke(ask("What is 2+2?"), context=GREEDY)
    assert "4" in state["messages"][-1].text
    assert state["decision"]["model"] == INT8
    metrics = state["metrics"]
    assert (metrics["engine"], metrics["quantization"], metrics["fallbacks"]) == ("vllm", "int8", [])
    assert metrics["inference_time_s"] > metrics["time_to_first_token_s"] > 0
    assert metrics["input_tokens"] == 37
    assert metrics["tokens_per_s"] == pytest.approx(metrics["output_tokens"] / metrics["inference_time_s"])
    assert metrics["process_memory_mib"] > 500


def test_a_hard_question_goes_to_the_strong_model(graph: Graph) -> None:
    question = "Please explain to me in a few words how the tides of the sea work"
    state = graph.invoke(ask(question), context=GREEDY)
    assert state["decision"]["model"] == PLAIN
    assert state["metrics"]["quantization"] is None
    assert len(state["messages"][-1].text) > 20


def test_vllms_own_kernels_run_the_int8_layers(catalog: Catalog, pool: EnginePool, graph: Graph) -> None:
    graph.invoke(ask("hi"), context={"max_tokens": 1, "model": INT8})
    engine = asyncio.run(pool.aengine(catalog[INT8]))
    kernels = pool._host.call(engine.inner().collective_rpc("linear_kernels"))
    # four fused linear layers in each of 30 blocks; the embedding doubles as output layer and is none of them
    assert kernels == [{"CPUInt8ScaledMMLinearKernel": 120, "head: none, Parameter": 1}]


def test_sixteen_concurrent_calls_are_one_batch(graph: Graph, pool: EnginePool) -> None:
    seen: list[int] = []
    done = threading.Event()

    def watch() -> None:
        while not done.wait(0.02):
            seen.append(pool.stats()[INT8].running)

    async def sixteen() -> list[Any]:
        questions = [ask(f"Count from {number} upwards.") for number in range(16)]
        context = {**GREEDY, "model": INT8}
        return list(await asyncio.gather(*(graph.ainvoke(one, context=context) for one in questions)))

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        states = asyncio.run(sixteen())
    finally:
        done.set()
        watcher.join()
    assert max(seen) == 16
    assert all(state["metrics"]["output_tokens"] > 0 for state in states)


def test_batch_and_threads(graph: Graph) -> None:
    states = graph.batch([ask("What is 2+2?")] * 4, context=GREEDY)
    assert len({state["messages"][-1].text for state in states}) == 1


async def test_streaming_gives_the_same_text(graph: Graph) -> None:
    whole = graph.invoke(ask("What is 2+2?"), context=GREEDY)["messages"][-1]
    pieces: list[Any] = []
    for _ in range(10):  # a token each; but on a busy machine, as after a start, some come joined
        stream = graph.astream(ask("What is 2+2?"), context=GREEDY, stream_mode="messages")
        pieces = [message async for message, _ in stream]
        assert "".join(piece.text for piece in pieces) == whole.text
        if len(pieces) == whole.usage_metadata["output_tokens"]:
            break
    assert len(pieces) == whole.usage_metadata["output_tokens"]
    synchronous: list[Any] = [
        message for message, _ in graph.stream(ask("What is 2+2?"), context=GREEDY, stream_mode="messages")
    ]
    assert "".join(piece.text for piece in synchronous) == whole.text
    assert pieces[-1].usage_metadata["output_tokens"] == whole.usage_metadata["output_tokens"]


@pytest.mark.parametrize("stop", [(), ("5",)])
def test_several_tokens_of_a_stream_at_a_time(
    catalog: Catalog, pool: EnginePool, monkeypatch: pytest.MonkeyPatch, stop: tuple[str, ...]
) -> None:
    """As under many thousand tokens a second: the same tokens, the first by itself, none twice."""
    messages = [{"role": "user", "content": "Count from one to forty in digits."}]
    settings: dict[str, Any] = {"max_tokens": 40, "temperature": 0.0, "logprobs": 1, "stop": stop}

    def streamed(good: Callable[[list[int]], bool]) -> list[Delta]:
        """Return an answer whose pieces have such sizes: on a busy machine, as after a start, some come joined."""
        seen = []
        for _ in range(10):
            deltas = list(pool._host.iterate(lambda: pool._generate(catalog[INT8], request, None)))
            seen.append([len(delta.token_ids) for delta in deltas])
            if good(seen[-1]):
                return deltas
        raise AssertionError(seen)

    request = GenerationRequest(messages, stream=True, **settings)
    singly = streamed(lambda sizes: max(sizes) == 1)
    monkeypatch.setattr(Pace, "note", lambda *_: None)
    engine: Any = asyncio.run(pool.aengine(catalog[INT8]))
    monkeypatch.setattr(engine._pace, "interval", 4)
    together = streamed(lambda sizes: sizes[:3] == [1, 4, 4])
    assert len(together) < len(singly) / 2
    for part in ("token_ids", "logprobs"):
        one, other = ([item for delta in deltas for item in getattr(delta, part)] for deltas in (singly, together))
        if part == "logprobs":
            one, other = ([(item.token_id, item.token) for item in items] for items in (one, other))
        assert one == other
    assert "".join(delta.text for delta in together) == "".join(delta.text for delta in singly)
    assert (together[-1].finish_reason, together[-1].output_tokens) == (
        singly[-1].finish_reason,
        singly[-1].output_tokens,
    )


def test_a_conversation_is_remembered(catalog: Catalog, pool: EnginePool) -> None:
    graph = create_chancellor(catalog, generate=generation_node(ChatModels(catalog, pool=pool))).compile(
        checkpointer=InMemorySaver()
    )
    config: Any = {"configurable": {"thread_id": "t"}}
    first = graph.invoke(ask("My name is Ada."), config, context=GREEDY)
    second = graph.invoke(ask("What is my name?"), config, context=GREEDY)
    assert len(second["messages"]) == 4
    # The second prompt holds the first, the first answer, and the second question with its two markers.
    told = first["metrics"]["input_tokens"] + first["metrics"]["output_tokens"]
    assert told + 5 < second["metrics"]["input_tokens"] < told + 20


def test_cancelling_frees_the_engine(graph: Graph, pool: EnginePool) -> None:
    async def cancelled() -> None:
        context = {"max_tokens": 4000, "temperature": 1.5, "seed": 1, "model": INT8}
        task = asyncio.create_task(graph.ainvoke(ask("Tell me an endless story."), context=context))
        for _ in range(500):
            if pool.stats()[INT8].running == 1:
                break
            await asyncio.sleep(0.02)
        else:
            raise AssertionError("the request never ran")
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(cancelled())
    deadline = time.monotonic() + 10
    # The engine reports its numbers with the next step it makes, so it is given one.
    while time.monotonic() < deadline:
        graph.invoke(ask("hi"), context={"max_tokens": 2, "model": INT8})
        if pool.stats()[INT8].running == 0:
            return
    raise AssertionError(f"still running: {pool.stats()[INT8]}")


def test_a_prompt_that_is_too_long(graph: Graph) -> None:
    with pytest.raises(errors.PromptTooLongError, match=r"takes 4,096") as caught:
        graph.invoke(ask("word " * 5000), context={"model": INT8})
    assert "max_model_len" in caught.value.hint
    assert "4" in graph.invoke(ask("What is 2+2?"), context=GREEDY)["messages"][-1].text


def test_seeds_and_stop(catalog: Catalog, pool: EnginePool) -> None:
    def text(**options: Any) -> tuple[str, str | None]:
        request = GenerationRequest([{"role": "user", "content": "Say something surprising."}], **options)
        deltas = list(pool.generate(catalog[INT8], request))
        return "".join(delta.text for delta in deltas), deltas[-1].finish_reason

    warm = {"temperature": 1.0, "max_tokens": 16}
    assert text(seed=7, **warm) == text(seed=7, **warm)
    assert text(seed=7, **warm) != text(seed=8, **warm)
    whole, reason = text(temperature=0.0, max_tokens=16)
    assert reason == "length"
    word = whole.split()[2]
    assert text(temperature=0.0, max_tokens=16, stop=(word,)) == (whole[: whole.index(word)], "stop")


def test_callers_on_four_loops_in_four_threads(graph: Graph) -> None:
    answers: list[str] = []

    def work() -> None:
        state = asyncio.run(graph.ainvoke(ask("What is 2+2?"), context=GREEDY))
        answers.append(str(state["messages"][-1].text))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(answers) == 4
    assert len(set(answers)) == 1
