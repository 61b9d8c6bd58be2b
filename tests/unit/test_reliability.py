import asyncio
import time
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import pytest

from chancellor import Catalog, FallbackOptions, ModelSpec, create_chancellor
from chancellor.chat import ChatModels
from chancellor.engines import Delta, EnginePool, GenerationRequest, Guide
from chancellor.engines.breaker import Breaker
from chancellor.engines.ladder import Ladder
from chancellor.engines.room import Room
from chancellor.errors import (
    BrokenCheckpointError,
    ChancellorError,
    EngineBusyError,
    EngineDiedError,
    EngineStartError,
    GenerationTimeoutError,
    MissingDependencyError,
    OutOfMemoryError,
    QuantizationError,
)
from chancellor.memory import Device, Estimate
from chancellor.nodes import generation_node
from tests.faulty import FaultyEngine, Plan, text_of

A = ModelSpec(name="a", source="fake/a", trinity=99.0, parameters=2_000, scheme="int8")
B = ModelSpec(name="b", source="fake/b", trinity=98.0, parameters=1_000)
WAYS = Ladder(FallbackOptions(), lambda: [B])
QUESTION = "abc"
ANSWER = text_of(range(3, 13))


@pytest.fixture
def pool() -> Iterator[EnginePool]:
    FaultyEngine.reset()
    pool = EnginePool(FaultyEngine)
    yield pool
    pool.close()
    FaultyEngine.reset()


def request(question: str = QUESTION, **options: object) -> GenerationRequest:
    options = {"max_tokens": 10, "stream": True, "retries": 1, **options}
    return GenerationRequest([{"role": "user", "content": question}], **options)  # type: ignore[arg-type]


def whole(deltas: list[Delta]) -> str:
    return "".join(delta.text for delta in deltas)


def fail(pool: EnginePool, plan: Plan, asked: GenerationRequest, ways: Ladder | None = WAYS) -> list[Delta]:
    FaultyEngine.reset(plan)
    return list(pool.generate(A, asked, ways))


@pytest.mark.parametrize("died_after", range(10))
@pytest.mark.parametrize("stream", [True, False])
def test_an_answer_goes_on_where_its_engine_died(pool: EnginePool, died_after: int, *, stream: bool) -> None:
    deltas = fail(pool, Plan(deaths=[died_after]), request(stream=stream))
    assert whole(deltas) == ANSWER
    assert [token for delta in deltas for token in delta.token_ids] == list(range(3, 13))
    assert (deltas[-1].input_tokens, deltas[-1].output_tokens) == (3, 10)
    (step,) = deltas[-1].fallbacks
    assert (step["step"], step["cause"], step["from"]) == ("restart", "died", step["to"])
    assert len(FaultyEngine.starts) == 2
    # what had come is not made again
    again = FaultyEngine.requests[1]
    assert again.answered == (tuple(range(3, 3 + died_after)) if stream else ())


@pytest.mark.parametrize("died_after", [0, 4, 9])
def test_a_guided_answer_is_made_again_and_nothing_comes_twice(pool: EnginePool, died_after: int) -> None:
    deltas = fail(pool, Plan(deaths=[died_after]), request(guide=Guide("regex", ".*"), temperature=0.9))
    assert whole(deltas) == ANSWER
    assert [token for delta in deltas for token in delta.token_ids] == list(range(3, 13))
    first, second = FaultyEngine.requests
    assert second.answered == ()
    assert first.seed == second.seed
    assert first.seed is not None


def test_after_two_deaths_a_request_ends_with_its_text(pool: EnginePool) -> None:
    FaultyEngine.reset(Plan(deaths=[3, 5]))
    deltas: list[Delta] = []
    with pytest.raises(EngineDiedError, match=r"died 2 times.*5 tokens") as caught:
        deltas += pool.generate(A, request(), WAYS)
    assert caught.value.partial == text_of(range(3, 8))


def test_an_answer_that_has_begun_keeps_its_model(pool: EnginePool) -> None:
    FaultyEngine.reset(Plan(deaths=[3], token_s=0.05))
    stream = pool.generate(A, request(), WAYS)
    next(stream)
    errors: list[ChancellorError] = [EngineStartError("No more.") for _ in range(5)]
    FaultyEngine.plan.start_errors = {"a/vllm/int8": errors}
    with pytest.raises(EngineDiedError, match="did not start again: No more") as caught:
        list(stream)
    assert caught.value.partial == text_of(range(3, 6))
    assert {spec.name for spec in FaultyEngine.starts} == {"a"}


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


def test_what_failed_is_not_started_for_each_request(pool: EnginePool) -> None:
    plan = Plan(start_errors={"a/vllm/int8": [EngineStartError("x")]}, start_s=0.05)
    fail(pool, plan, request())
    for _ in range(3):
        deltas = list(pool.generate(A, request(), WAYS))
        (step,) = deltas[-1].fallbacks
        assert step["step"] == "unquantised"
        assert "It will be tried again in" in step["reason"]
    assert [spec.scheme for spec in FaultyEngine.starts] == ["int8", None]
    time.sleep(0.6)  # ten times what the failed start took
    deltas = list(pool.generate(A, request(), WAYS))
    assert deltas[-1].fallbacks == ()
    assert [spec.scheme for spec in FaultyEngine.starts] == ["int8", None, "int8"]


def test_a_breaker_opens_longer_each_time() -> None:
    now = [0.0]
    breaker = Breaker(lambda: now[0])
    error = EngineStartError("x")
    pauses = []
    for _ in range(5):
        breaker.failed(error, 5.0)
        pauses.append(breaker.paused_s())
    assert pauses == [50.0, 150.0, 450.0, 600.0, 600.0]
    breaker.started()
    now[0] += 600
    assert breaker.paused_s() == 0
    for _ in range(4):
        breaker.died(error)
        assert breaker.paused_s() == 0
    breaker.died(error)
    assert breaker.paused_s() == 60.0


def test_an_engine_that_keeps_dying_is_left_alone_for_a_while(pool: EnginePool) -> None:
    FaultyEngine.reset(Plan(deaths=[0] * 20))
    kinds = []
    for _ in range(9):
        try:
            kinds.append(whole(list(pool.generate(B, request()))))
        except EngineDiedError as error:
            kinds.append(error.message)
    assert len(FaultyEngine.starts) == 5
    assert any("It will be tried again in" in kind for kind in kinds)


def test_a_hanging_engine_is_ended_and_its_requests_go_on(pool: EnginePool) -> None:
    FaultyEngine.reset(Plan(token_s=0.1))
    stream = pool.generate(A, request(), WAYS)
    first = next(stream)
    FaultyEngine.plan.hangs = True
    deltas = [first, *stream]
    assert whole(deltas) == ANSWER
    assert [step["step"] for step in deltas[-1].fallbacks] == ["restart"]


def test_too_many_at_once_are_told_to_come_back(pool: EnginePool) -> None:
    FaultyEngine.reset(Plan(token_s=0.02))
    small = A.model_copy(update={"engine": A.engine.model_copy(update={"max_queue": 3})})

    async def one() -> str | EngineBusyError:
        try:
            return whole([delta async for delta in pool.agenerate(small, request())])
        except EngineBusyError as error:
            return error

    async def eight() -> list[str | EngineBusyError]:
        return list(await asyncio.gather(*(one() for _ in range(8))))

    made = asyncio.run(eight())
    assert made.count(ANSWER) == 3
    busy = [one for one in made if isinstance(one, EngineBusyError)]
    assert len(busy) == 5
    assert all(one.retry_after_s >= 1 for one in busy)
    assert asyncio.run(one()) == ANSWER


def test_a_deadline_counts_over_restarts(pool: EnginePool) -> None:
    FaultyEngine.reset(Plan(deaths=[2], token_s=0.05))
    with pytest.raises(GenerationTimeoutError):
        list(pool.generate(A, request(timeout_s=0.3)))
    assert len(FaultyEngine.starts) == 2


class Desk(Room):
    """Room for so many units; each model needs one for itself and one for its cache."""

    def __init__(self, size: int) -> None:
        self.size = size

    def expected(self, spec: ModelSpec) -> Estimate:
        return Estimate(("cpu",), weights=1, kv_cache=2, kv_cache_least=1, activations=0, graphs=0, overhead=0)

    def _read(self) -> list[Device]:
        return [Device("cpu", self.size, self.size, self.size)]

    def took(self, *_: object) -> None:
        return None


@pytest.fixture
def narrow() -> Iterator[EnginePool]:
    FaultyEngine.reset(Plan(start_s=0.05))
    pool = EnginePool(FaultyEngine, room=Desk(3))
    yield pool
    pool.close()
    FaultyEngine.reset()


def test_two_that_fit_only_one_at_a_time_take_turns(narrow: EnginePool) -> None:
    for number in range(10):
        model = (A, B)[number % 2]
        deltas = list(narrow.generate(model, request()))
        assert (whole(deltas), deltas[-1].model) == (ANSWER, model.name)
    assert FaultyEngine.most == 1
    assert len(FaultyEngine.starts) == 10


def test_who_asks_at_once_is_served_in_groups(narrow: EnginePool) -> None:
    async def one(number: int) -> str | None:
        model = (A, B)[number % 2]
        deltas = [delta async for delta in narrow.agenerate(model, request())]
        assert whole(deltas) == ANSWER
        return deltas[-1].model

    async def forty() -> list[str | None]:
        return list(await asyncio.gather(*(one(number) for number in range(40))))

    assert asyncio.run(forty()) == ["a", "b"] * 20
    assert FaultyEngine.most == 1
    assert len(FaultyEngine.starts) <= 4


def test_a_steady_stream_for_one_does_not_keep_the_other_out(narrow: EnginePool) -> None:
    FaultyEngine.plan.token_s = 0.01

    async def forever(stop: asyncio.Event) -> int:
        answered = 0
        while not stop.is_set():
            answered += whole([delta async for delta in narrow.agenerate(A, request())]) == ANSWER
        return answered

    async def scenario() -> tuple[float, list[int]]:
        stop = asyncio.Event()
        steady = [asyncio.create_task(forever(stop)) for _ in range(4)]
        await asyncio.sleep(0.3)
        began = time.perf_counter()
        assert whole([delta async for delta in narrow.agenerate(B, request())]) == ANSWER
        waited = time.perf_counter() - began
        stop.set()
        return waited, await asyncio.gather(*steady)

    waited, answered = asyncio.run(scenario())
    assert waited < 5
    assert all(answered)


def test_engines_that_fit_are_kept(pool: EnginePool) -> None:
    roomy = EnginePool(FaultyEngine, room=Desk(6))
    for _ in range(3):
        for model in (A, B):
            list(roomy.generate(model, request()))
    assert len(FaultyEngine.starts) == 2
    roomy.close()


def test_what_never_fits_says_so_and_stops_nobody(pool: EnginePool) -> None:
    tight = EnginePool(FaultyEngine, room=Desk(1))
    with pytest.raises(OutOfMemoryError, match=r"needs .* GiB on cpu for one context of 4,096 tokens"):
        list(tight.generate(A, request()))
    assert FaultyEngine.starts == []


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
