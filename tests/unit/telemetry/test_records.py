"""Records of requests, over a fake engine."""

import asyncio
import threading
import time
from collections.abc import Callable
from contextlib import aclosing, suppress
from types import SimpleNamespace

import pytest

from chancellor.engines import Delta, EnginePool
from chancellor.errors import EngineDiedError, EngineStartError
from chancellor.telemetry import RequestRecord, recording, requests
from tests.fakes import FakeEngine
from tests.unit.telemetry.tools import BEST, LIGHT, Otel, Talkative, request, until


def test_an_answer_makes_one_record(pool: EnginePool, records: list[RequestRecord]) -> None:
    before = time.time()
    list(pool.generate(LIGHT, request(temperature=0.2, top_p=0.9, max_tokens=7, seed=3, stop=("x",), stream=True)))
    (record,) = records
    assert before <= record.started_at <= record.ended_at <= time.time()
    assert (record.model, record.engine, record.quantization) == ("light", "fake", "int8")
    assert (record.duration_s, record.time_to_first_token_s, record.queue_time_s) == (0.5, 0.1, None)
    assert (record.input_tokens, record.output_tokens, record.cached_tokens) == (3, 3, 1)
    assert (record.finish_reason, record.error, record.answered, record.outcome) == ("stop", None, True, "stop")
    assert (record.temperature, record.top_p, record.max_tokens) == (0.2, 0.9, 7)
    assert (record.seed, record.stop, record.streamed) == (3, ("x",), True)
    assert record.time_per_output_token_s == pytest.approx(0.2)


def test_a_failure_makes_one_record(pool: EnginePool, records: list[RequestRecord]) -> None:
    with pytest.raises(EngineDiedError):
        list(pool.generate(LIGHT, request("die")))
    (record,) = records
    assert (record.error, record.finish_reason, record.outcome) == ("EngineDiedError", None, "EngineDiedError")
    assert record.engine == "fake"
    assert record.duration_s is not None
    assert record.output_tokens is record.time_to_first_token_s is record.time_per_output_token_s is None


def test_a_failed_start_is_a_failed_request_without_an_engine(
    pool: EnginePool, fake_engine: type[FakeEngine], records: list[RequestRecord]
) -> None:
    fake_engine.fail_starts = 1
    with pytest.raises(EngineStartError):
        list(pool.generate(LIGHT, request()))
    (record,) = records
    assert (record.error, record.engine, record.duration_s) == ("EngineStartError", None, None)
    assert record.quantization == "int8"


def test_who_cancels_stops_listening_or_gives_up_during_a_start(
    pool: EnginePool, fake_engine: type[FakeEngine], records: list[RequestRecord]
) -> None:
    async def cancel(begun: Callable[[], object]) -> None:
        async def ask() -> None:
            async for _ in pool.agenerate(LIGHT, request("a question of several words")):
                pass

        task = asyncio.create_task(ask())
        await asyncio.to_thread(until, begun)
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task

    Talkative.may_start = threading.Event()
    asyncio.run(cancel(lambda: pool._residents._all))
    until(lambda: len(records) == 1)
    Talkative.may_start.set()
    pool.start(LIGHT)

    fake_engine.delta_s = 0.05
    asyncio.run(cancel(lambda: fake_engine.requests))
    until(lambda: len(records) == 2)
    stream = pool.generate(LIGHT, request("a question of several words", stream=True))
    next(stream)
    stream.close()
    until(lambda: len(records) == 3)
    assert [record.error for record in records] == [requests.CANCELLED] * 3
    assert [record.engine for record in records] == [None, "fake", "fake"]
    assert [record.duration_s is None for record in records] == [True, False, False]
    assert {record.finish_reason for record in records} == {None}


def test_whoever_leaves_after_the_last_delta_was_answered(pool: EnginePool, records: list[RequestRecord]) -> None:
    async def leave() -> None:
        async with aclosing(pool.agenerate(LIGHT, request())) as deltas:
            async for delta in deltas:
                if delta.finish_reason is not None:
                    break

    asyncio.run(leave())
    until(lambda: records)
    assert [record.outcome for record in records] == ["stop"]


def test_the_start_of_the_engine_is_no_part_of_the_duration(
    records: list[RequestRecord], otel: Otel, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter([10.0, 50.0, 53.0])  # made, handed over, failed
    monkeypatch.setattr(requests, "time", SimpleNamespace(perf_counter=lambda: next(clock), time=lambda: 1000.0))
    with suppress(KeyError), requests.Observation(LIGHT, request()) as observed:
        observed.handed_to(FakeEngine(LIGHT))
        raise KeyError
    (record,), (span,) = records, otel.chats()
    assert (record.started_at, record.ended_at, record.duration_s, record.error) == (997.0, 1000.0, 3.0, "KeyError")
    assert (span.start_time, span.end_time) == (997 * 10**9, 1000 * 10**9)


@pytest.mark.parametrize(
    ("output", "first", "expected"), [(1, 0.1, None), (None, 0.1, None), (5, None, None), (5, 0.6, None), (5, 0.1, 0.1)]
)
def test_time_per_output_token(
    records: list[RequestRecord], output: int | None, first: float | None, expected: float | None
) -> None:
    with requests.Observation(LIGHT, request()) as observed:
        observed.handed_to(FakeEngine(LIGHT))
        observed.last = Delta(
            "", finish_reason="stop", output_tokens=output, inference_time_s=0.5, time_to_first_token_s=first
        )
    assert records[0].time_per_output_token_s == expected


def test_one_record_each_however_many_ask_at_once(pool: EnginePool, records: list[RequestRecord]) -> None:
    async def ask(number: int) -> None:
        async for _ in pool.agenerate(LIGHT if number % 2 else BEST, request(max_tokens=number + 1)):
            pass

    async def all_of_them() -> None:
        await asyncio.gather(*(ask(number) for number in range(20)))

    asyncio.run(all_of_them())
    assert sorted(record.max_tokens for record in records) == list(range(1, 21))
    assert {record.model: record.quantization for record in records} == {"light": "int8", "best": None}


def test_a_sink_that_fails_harms_nothing(pool: EnginePool, caplog: pytest.LogCaptureFixture) -> None:
    def broken(record: RequestRecord) -> None:
        raise RuntimeError

    taken: list[RequestRecord] = []
    with recording(broken), recording(taken.append):
        assert "".join(delta.text for delta in pool.generate(LIGHT, request())) == "light says: hi"
    assert len(taken) == 1
    assert "A sink of request records failed" in caplog.text


def test_without_a_sink_no_record_is_made(pool: EnginePool, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[RequestRecord] = []
    original = requests.Observation._record

    def make(observation: requests.Observation, kind: type[BaseException] | None) -> RequestRecord:
        made.append(original(observation, kind))
        return made[-1]

    monkeypatch.setattr(requests.Observation, "_record", make)
    list(pool.generate(LIGHT, request()))
    assert made == []
    taken: list[RequestRecord] = []
    with recording(taken.append):
        list(pool.generate(LIGHT, request()))
    list(pool.generate(LIGHT, request()))
    assert made == taken
    assert len(made) == 1
