import asyncio
from itertools import pairwise
from typing import Any

import pytest
from langchain_core.messages import AIMessage

from chancellor import Catalog, ChatVLLM, FallbackOptions, create_chancellor
from chancellor.chat import ChatModels
from chancellor.engines import EnginePool
from chancellor.engines.ladder import Ladder
from chancellor.errors import (
    BrokenCheckpointError,
    ChancellorError,
    EngineStartError,
    MissingDependencyError,
    OutOfMemoryError,
    QuantizationError,
)
from chancellor.nodes import generation_node
from tests.faulty import ANSWER, A, B, FaultyEngine, Plan, fail, request, whole


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (QuantizationError("x"), [("unquantised", "scheme", "a (vllm, as it is, 4,096 tokens)")]),
        (EngineStartError("x"), [("unquantised", "engine", "a (vllm, as it is, 4,096 tokens)")]),
        (MissingDependencyError.of("vllm"), [("transformers", "import", "a (transformers, int8, 4,096 tokens)")]),
        (OutOfMemoryError("x"), [("shorter_context", "memory", "a (vllm, int8, 2,048 tokens)")]),
        (BrokenCheckpointError("x"), [("other_model", "checkpoint", "b (vllm, as it is, 4,096 tokens)")]),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_failed_says_what_comes_next(
    pool: EnginePool, error: Exception, expected: list[tuple[str, str, str]]
) -> None:
    deltas = fail(pool, Plan(start_errors={"a/vllm/int8": [error]}), request())  # type: ignore[list-item]
    assert whole(deltas) == ANSWER
    assert [(step["step"], step["cause"], step["to"]) for step in deltas[-1].fallbacks] == expected
    assert all(step["seconds_lost"] >= 0 and step["reason"] for step in deltas[-1].fallbacks)


def test_the_whole_way_down(pool: EnginePool) -> None:
    errors = {
        "a/vllm/int8": [QuantizationError("no scheme")],
        "a/vllm/None": [EngineStartError("no vLLM")],
        "a/transformers/None": [OutOfMemoryError("no room")] * 4,
    }
    deltas = fail(pool, Plan(start_errors=errors), request())  # type: ignore[arg-type]
    steps = deltas[-1].fallbacks
    assert [step["step"] for step in steps] == ["unquantised", "transformers", *["shorter_context"] * 3, "other_model"]
    assert deltas[-1].model == "b"
    assert all(later["from"] == earlier["to"] for earlier, later in pairwise(steps))


def test_nothing_is_left_to_try(pool: EnginePool) -> None:
    error = EngineStartError("The first error.", hint="A hint.")
    errors = {"a/vllm/int8": [error], "a/vllm/None": [EngineStartError("x")], "b/vllm/None": [EngineStartError("x")]}
    errors["a/transformers/int8"] = errors["a/transformers/None"] = [EngineStartError("x"), EngineStartError("x")]
    errors["b/transformers/None"] = [EngineStartError("x")]
    with pytest.raises(EngineStartError, match=r"The first error.\nA hint. Tried besides, in vain: .*transformers"):
        fail(pool, Plan(start_errors=errors), request())  # type: ignore[arg-type]


def test_no_step_without_leave(pool: EnginePool) -> None:
    for ways in (None, Ladder(FallbackOptions.none(), lambda: [B])):
        with pytest.raises(QuantizationError, match="x"):
            fail(pool, Plan(start_errors={"a/vllm/int8": [QuantizationError("x")]}), request(), ways)
        assert len(FaultyEngine.starts) == 1


def test_the_graph_names_the_steps_in_its_metrics() -> None:
    def broken() -> Plan:
        return Plan(start_errors={"a/vllm/int8": [BrokenCheckpointError("It is broken.")]})

    FaultyEngine.reset(broken())
    pool, catalog = EnginePool(FaultyEngine), Catalog([A, B])
    graph = create_chancellor(catalog, generate=generation_node(ChatModels(catalog, pool=pool))).compile()
    ask: Any = {"messages": [("user", "Explain the cat")]}
    context: Any = {"max_tokens": 5, "policy": "strong"}
    state = graph.invoke(ask, context=context)
    assert state["decision"]["model"] == "a"
    (step,) = state["metrics"]["fallbacks"]
    assert (step["step"], step["cause"], step["reason"]) == ("other_model", "checkpoint", "It is broken.")
    assert state["messages"][-1].response_metadata["model_name"] == "b"
    pool.close()

    FaultyEngine.reset(broken())
    with pytest.raises(BrokenCheckpointError, match="It is broken"):  # by name, no other will do
        graph.invoke(ask, context={**context, "model": "a"})
    pool.close()
    FaultyEngine.reset()


@pytest.mark.parametrize("stream", [False, True])
def test_a_model_named_in_the_call_has_substitutes_of_its_own(pool: EnginePool, stream: bool) -> None:
    FaultyEngine.reset(Plan(start_errors={"b/vllm/None": [BrokenCheckpointError("It is broken.")]}))
    model = ChatVLLM(model="a", catalog=Catalog([A, B]), pool=pool, substitute=True)
    asked = "Explain the cat"
    last: AIMessage = [*model.stream(asked, model="b")][-1] if stream else model.invoke(asked, model="b")
    assert last.response_metadata["model_name"] == "a"


def test_who_waits_for_the_same_start_gets_an_error_of_its_own(pool: EnginePool) -> None:
    errors: dict[str, list[ChancellorError]] = {
        "a/vllm/int8": [EngineStartError("The first error.", hint="A hint.")],
        "a/vllm/None": [EngineStartError("x")],
    }
    FaultyEngine.reset(Plan(start_errors=errors, start_s=0.1))
    ways = Ladder(FallbackOptions.none().model_copy(update={"unquantised": True}))

    async def one() -> ChancellorError | None:
        try:
            [delta async for delta in pool.agenerate(A, request(), ways)]
        except ChancellorError as error:
            return error
        return None

    async def four() -> list[ChancellorError | None]:
        return list(await asyncio.gather(*(one() for _ in range(4))))

    caught = [error for error in asyncio.run(four()) if error is not None]
    assert len(caught) == 4
    assert all(error.hint.count("Tried besides") == 1 for error in caught)
    held = [breaker.error for breaker in pool._residents._gate._breakers.values() if breaker.error is not None]
    assert all(error.__traceback__ is None and "Tried" not in error.hint for error in held)
