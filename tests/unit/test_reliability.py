import asyncio
import pickle
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from dataclasses import replace
from itertools import pairwise
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest

from chancellor import Catalog, FallbackOptions, ModelSpec, create_chancellor
from chancellor.chat import ChatModels
from chancellor.engines import Delta, EnginePool, GenerationRequest, Guide
from chancellor.engines.breaker import Breaker
from chancellor.engines.descent import Descent
from chancellor.engines.ladder import Ladder
from chancellor.engines.migration import Migration
from chancellor.engines.pulse import Pulse
from chancellor.engines.residents import Residents
from chancellor.engines.room import Room
from chancellor.engines.vllm import VLLMEngine
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
    plan = Plan(start_errors={"a/vllm/int8": [EngineStartError("x")]}, start_s=0.2)
    fail(pool, plan, request())
    for _ in range(3):
        deltas = list(pool.generate(A, request(), WAYS))
        (step,) = deltas[-1].fallbacks
        assert step["step"] == "unquantised"
        assert "It will be tried again in" in step["reason"]
    assert [spec.scheme for spec in FaultyEngine.starts] == ["int8", None]
    (paused,) = (breaker for breaker in pool._residents._gate._breakers.values() if breaker.failures)
    while paused.paused_s():  # ten times what the failed start took
        time.sleep(0.05)
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


async def answered(pool: EnginePool, spec: ModelSpec, **options: Any) -> str:
    return whole([delta async for delta in pool.agenerate(spec, request(**options))])


async def until(condition: Any) -> None:
    for _ in range(500):
        if condition():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("It did not come.")


def test_who_leaves_during_a_restart_does_not_use_the_engine_for_ever() -> None:
    class Slow(Desk):
        def free_mib(self, names: object = ()) -> float:
            time.sleep(0.2)
            return 1.0

    FaultyEngine.reset(Plan(deaths=[0]))
    pool = EnginePool(FaultyEngine, room=Slow(3))

    async def scenario() -> None:
        task = asyncio.create_task(answered(pool, A))
        await until(lambda: len(FaultyEngine.starts) == 2 and any(one.users for one in pool._residents.ready()))
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
        await until(lambda: all(one.users == 0 and one.idle.is_set() for one in pool._residents.ready()))

    asyncio.run(scenario())
    pool.close()


class Slowly(FaultyEngine):
    """Its memory is taken until its close is over."""

    closes_s: ClassVar[float] = 0.3
    held: ClassVar[int] = 0
    closed = False

    async def start(self) -> None:
        await super().start()
        Slowly.held += 3

    async def close(self) -> None:
        if self.closed:
            return
        self.closed = True
        self.kill()
        await asyncio.sleep(self.closes_s)
        Slowly.held -= 3


def test_who_makes_room_waits_for_a_close_that_is_under_way() -> None:
    class Held(Desk):
        def __init__(self, size: int) -> None:
            super().__init__(size)
            self._read = lambda: [Device("cpu", self.size, self.size - Slowly.held, self.size)]  # type: ignore[method-assign]

    FaultyEngine.reset()
    Slowly.held = 0
    pool = EnginePool(Slowly, room=Held(3))

    async def scenario() -> list[str]:
        assert await answered(pool, A) == ANSWER
        pool._residents.ready()[0].task.result().kill()
        return list(await asyncio.gather(answered(pool, A), answered(pool, B)))

    assert asyncio.run(scenario()) == [ANSWER, ANSWER]
    pool.close()
    assert Slowly.held == 0


def test_an_orderly_close_is_no_death() -> None:
    FaultyEngine.reset()
    pool = EnginePool(Slowly)

    async def scenario() -> None:
        for _ in range(6):
            assert await answered(pool, A) == ANSWER
            stop = asyncio.create_task(pool.astop(A))
            await asyncio.sleep(0.05)
            assert await answered(pool, A) == ANSWER
            await stop

    asyncio.run(scenario())
    assert not any(breaker._deaths or breaker.error for breaker in pool._residents._gate._breakers.values())
    pool.close()


def test_a_start_that_was_stopped_has_not_failed() -> None:
    class Interrupted(FaultyEngine):
        interrupted = False

        def interrupt(self) -> None:
            self.interrupted = True

        async def start(self) -> None:
            await super().start()
            if self.interrupted:
                self.kill()
                raise EngineStartError("It was interrupted.")

    FaultyEngine.reset(Plan(start_s=0.2))
    pool = EnginePool(Interrupted)

    async def scenario() -> str:
        asked = asyncio.create_task(answered(pool, A))
        await until(lambda: FaultyEngine.starts)
        await pool.astop(A)
        with suppress(EngineStartError):
            await asked
        return whole([delta async for delta in pool.agenerate(A, request(), WAYS)])

    assert asyncio.run(scenario()) == ANSWER
    assert {spec.scheme for spec in FaultyEngine.starts} == {"int8"}
    pool.close()


def test_who_waits_for_room_can_be_stopped_and_nobody_is_sent_away_for_it(narrow: EnginePool) -> None:
    FaultyEngine.plan.token_s = 0.05

    async def scenario() -> tuple[float, list[str]]:
        busy = asyncio.create_task(answered(narrow, A, max_tokens=60))
        await until(lambda: FaultyEngine.requests)
        wants_room = asyncio.create_task(narrow.astart(B))
        await until(lambda: any(one.leaving for one in narrow._residents._all.values()))
        later = asyncio.create_task(answered(narrow, A))  # it waits for the next start of its model
        await asyncio.sleep(0.1)
        wants_room.cancel()
        began = time.perf_counter()
        await narrow.astop(B)
        took = time.perf_counter() - began
        return took, list(await asyncio.gather(busy, later))

    took, texts = asyncio.run(scenario())
    assert took < 1
    assert texts == [text_of(range(3, 63)), ANSWER]
    assert [spec.name for spec in FaultyEngine.starts] == ["a"]


def test_an_engine_that_somebody_takes_in_hand_makes_no_room(narrow: EnginePool) -> None:
    FaultyEngine.plan.token_s = 0.05

    async def scenario() -> None:
        busy = asyncio.create_task(answered(narrow, A))
        await until(lambda: FaultyEngine.requests)
        wants_room = asyncio.create_task(narrow.astart(B))
        await asyncio.sleep(0.1)
        engine = await narrow.aengine(A)
        with pytest.raises(OutOfMemoryError):
            await wants_room
        assert engine.healthy()
        assert await busy == ANSWER

    asyncio.run(scenario())


def test_a_dead_engine_makes_room_first() -> None:
    FaultyEngine.reset()
    pool = EnginePool(FaultyEngine, room=Desk(6))
    for model in (A, B):
        list(pool.generate(model, request()))
    pool._residents.ready()[1].task.result().kill()
    list(pool.generate(B.model_copy(update={"source": "fake/c"}), request()))
    list(pool.generate(A, request()))
    assert [spec.source for spec in FaultyEngine.starts] == ["fake/a", "fake/b", "fake/c"]
    pool.close()


def test_an_engine_that_cannot_be_measured_runs_all_the_same() -> None:
    class Blind(Desk):
        def took(self, *_: object) -> None:
            raise RuntimeError("The driver is gone.")

    FaultyEngine.reset()
    pool = EnginePool(FaultyEngine, room=Blind(3))
    assert whole(list(pool.generate(A, request()))) == ANSWER
    assert whole(list(pool.generate(B, request()))) == ANSWER
    assert FaultyEngine.most == 1
    pool.close()
    assert not any(FaultyEngine.alive.values())


def test_one_engine_that_cannot_be_watched_does_not_end_the_watch() -> None:
    class Odd(FaultyEngine):
        def stalled(self) -> str | None:
            if self.spec.name == "b":
                raise OSError("no such process")
            return super().stalled()

    FaultyEngine.reset(Plan(token_s=0.05))
    pool = EnginePool(Odd)
    pool.start(B)
    time.sleep(1.1)
    stream = pool.generate(A, request())
    first = next(stream)
    FaultyEngine.plan.hangs = True
    assert whole([first, *stream]) == ANSWER
    pool.close()


def test_a_start_that_succeeds_ends_the_pause() -> None:
    breaker = Breaker(lambda: 0.0)
    breaker.failed(EngineStartError("x"), 5.0)
    breaker.started()  # without another way a request may try again at once
    assert breaker.paused_s() == 0


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


def test_errors_keep_what_they_carry() -> None:
    died, busy = EngineDiedError("x", hint="y"), EngineBusyError("z")
    died.partial, busy.retry_after_s = "the cat", 7.0
    assert pickle.loads(pickle.dumps(died)).partial == "the cat"
    assert pickle.loads(pickle.dumps(busy)).retry_after_s == 7.0


def test_who_was_let_in_is_not_sent_away_after_a_death() -> None:
    FaultyEngine.reset()
    small = A.model_copy(update={"engine": A.engine.model_copy(update={"max_queue": 1})})

    async def scenario() -> None:
        residents = Residents(FaultyEngine)
        resident = await residents.enter(small)
        with pytest.raises(EngineBusyError):
            await Descent(small, None, residents).enter(emitted=False)
        descent = Descent(small, None, residents)
        await descent.died(EngineDiedError("x"))
        assert await descent.enter(emitted=True) is resident
        await residents.close()

    asyncio.run(scenario())


def test_a_request_whose_thoughts_are_parsed_is_replayed_with_a_seed(pool: EnginePool) -> None:
    thinking = B.model_copy(update={"engine": B.engine.model_copy(update={"reasoning_parser": "qwen3"})})
    FaultyEngine.reset(Plan(deaths=[4]))
    assert whole(list(pool.generate(thinking, request()))) == ANSWER
    first, second = FaultyEngine.requests
    assert second.answered == ()
    assert first.seed == second.seed
    assert first.seed is not None


def test_a_replay_that_ends_before_what_had_come_is_an_error() -> None:
    class Shorter(FaultyEngine):
        async def generate(self, request: GenerationRequest) -> AsyncIterator[Delta]:
            if FaultyEngine.requests:
                request = replace(request, max_tokens=3)
            async for delta in super().generate(request):
                yield delta

    FaultyEngine.reset(Plan(deaths=[6]))
    pool = EnginePool(Shorter)
    with pytest.raises(EngineDiedError, match="shorter"):
        list(pool.generate(A, request(guide=Guide("regex", ".*"))))
    pool.close()


def test_a_death_after_the_last_delta_changes_nothing() -> None:
    class Late(FaultyEngine):
        async def generate(self, request: GenerationRequest) -> AsyncIterator[Delta]:
            async for delta in super().generate(request):
                yield delta
            self.kill()
            raise EngineDiedError("It died when all was said.")

    FaultyEngine.reset()
    pool = EnginePool(Late)
    assert whole(list(pool.generate(A, request()))) == ANSWER
    assert len(FaultyEngine.starts) == 1
    pool.close()


def test_text_without_tokens_is_not_made_twice() -> None:
    migration = Migration(request())
    engine = FaultyEngine(A)
    migration.request(engine)
    assert [delta.text for delta in migration.take(Delta("the cat"))] == ["the cat"]
    assert migration.emitted
    assert migration.goes_on()
    migration.request(engine)
    assert [delta.text for delta in migration.take(Delta("the cat sat"))] == [" sat"]
    assert Migration(request()).ended(EngineDiedError("x")).partial == ""
    closed = Migration(request())
    list(closed.take(Delta("the", (1,))))
    assert closed.ended(EngineDiedError("x")).partial == "the"


def test_an_answer_with_penalties_is_made_once_more_from_its_beginning() -> None:
    for more, again in ({"frequency_penalty": 0.5}, True), ({"presence_penalty": -1.0}, True), ({}, False):
        migration = Migration(replace(request(), **more))  # type: ignore[arg-type]
        migration.request(FaultyEngine(A))
        list(migration.take(Delta("the cat", (1, 2))))
        assert migration.goes_on()
        assert (migration.request(FaultyEngine(A)).answered == ()) == again


def test_a_deadline_does_not_wait_for_a_restart(pool: EnginePool) -> None:
    FaultyEngine.reset(Plan(deaths=[2], token_s=0.02))
    stream = pool.generate(A, request(timeout_s=0.5))
    next(stream)
    FaultyEngine.plan.start_s = 3.0
    began = time.perf_counter()
    with pytest.raises(GenerationTimeoutError):
        list(stream)
    assert time.perf_counter() - began < 2


def test_a_pause_of_the_whole_program_is_no_stall(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("chancellor.engines.pulse.time", SimpleNamespace(monotonic=lambda: now[0]))
    pulse = Pulse()
    reasons = []
    for at in (1, 2, 1000, *range(1001, 1040)):  # Ctrl-Z and fg, or a virtual machine that was put to sleep
        now[0] = float(at)
        reasons.append(pulse.stalled(busy=True))
    assert reasons[:30] == [None] * 30
    assert reasons[-1] is not None


def test_a_start_that_hangs_in_its_first_steps_can_be_interrupted(monkeypatch: pytest.MonkeyPatch) -> None:
    engine, killed = VLLMEngine(B), []
    monkeypatch.setattr(engine, "kill", lambda: killed.append(True))
    engine._llm = SimpleNamespace()
    engine.interrupt()
    assert killed == [True]


def test_a_batch_that_nobody_streams_says_that_it_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch")
    from chancellor.engines import transformers_worker

    now = [100.0]
    monkeypatch.setattr(transformers_worker, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    sent: list[Any] = []
    worker: Any = SimpleNamespace(
        tokenizer=SimpleNamespace(backend_tokenizer=None),
        eos=torch.tensor([]),
        connection=SimpleNamespace(send=sent.append),
        aborted=set(),
    )
    question = transformers_worker.Question("1", [1], 10_000, 0.0, 1.0, None, (), True, False, 0.0)
    steps = transformers_worker._Steps(worker, [question], 1, now[0])
    for _ in range(20):
        now[0] += 1
        steps(torch.tensor([[1, 2]]), None)
    assert sent == [("beat",)] * 3
