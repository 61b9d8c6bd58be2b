"""How many tokens come together, by how many the engine makes."""

from types import SimpleNamespace
from typing import Any

import pytest
from vllm import SamplingParams

from chancellor.engines import vllm_pace
from chancellor.engines.vllm_pace import Pace


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    clock = SimpleNamespace(now=100.0)
    monkeypatch.setattr(vllm_pace, "time", SimpleNamespace(perf_counter=lambda: clock.now))
    return clock


def run(pace: Pace, clock: SimpleNamespace, tokens: int, *, rate: float, seconds: float, step_s: float = 0.02) -> int:
    """Make steps of an engine; return the tokens since its start."""
    for _ in range(round(seconds / step_s)):
        clock.now += step_s
        tokens += round(rate * step_s)
        pace.note(tokens)
    return tokens


@pytest.mark.parametrize(("rate", "interval"), [(40, 1), (1_900, 1), (2_200, 2), (8_900, 5), (29_000, 15)])
def test_as_many_as_it_takes(clock: SimpleNamespace, rate: float, interval: int) -> None:
    pace = Pace()
    assert pace.interval == 1
    run(pace, clock, 0, rate=rate, seconds=2.0)
    assert pace.interval == interval


def test_it_follows_the_load(clock: SimpleNamespace) -> None:
    pace = Pace()
    tokens = run(pace, clock, 0, rate=5_500, seconds=1.0)
    assert pace.interval == 3
    clock.now += 60.0  # in which nobody asked anything
    tokens = run(pace, clock, tokens, rate=500, seconds=0.1)
    assert pace.interval == 1
    run(pace, clock, tokens, rate=3_500, seconds=1.0)
    assert pace.interval == 2


def test_what_was_before_a_pause_does_not_count(clock: SimpleNamespace) -> None:
    pace, sampling = Pace(), SamplingParams()
    run(pace, clock, 0, rate=9_000, seconds=1.0)
    clock.now += 60.0
    pace.set(sampling, processor())
    assert sampling.stream_interval == 1


def test_parsers_get_single_tokens(clock: SimpleNamespace) -> None:
    pace, sampling = Pace(), SamplingParams()
    run(pace, clock, 0, rate=9_000, seconds=1.0)
    pace.set(sampling, processor(), singly=True)
    assert sampling.stream_interval == 1


def processor(own: int = 1) -> Any:
    return SimpleNamespace(
        output_processor=SimpleNamespace(stream_interval=own),
        vllm_config=SimpleNamespace(scheduler_config=SimpleNamespace(stream_interval=own)),
    )


def test_a_request_has_its_own_pace_where_vllm_can(clock: SimpleNamespace) -> None:
    pace, llm, sampling = Pace(), processor(), SamplingParams()
    run(pace, clock, 0, rate=5_500, seconds=1.0)
    pace.set(sampling, llm)
    assert sampling.stream_interval == 3
    assert llm.output_processor.stream_interval == 1


@pytest.mark.parametrize(("own", "set_to"), [(1, 3), (5, 5)])
def test_else_all_have_it(clock: SimpleNamespace, own: int, set_to: int) -> None:
    """As in vLLM 0.26. What the user asked for is the least."""
    pace, llm = Pace(), processor(own)
    run(pace, clock, 0, rate=5_500, seconds=1.0)
    sampling: Any = SimpleNamespace()
    pace.set(sampling, llm)
    assert llm.output_processor.stream_interval == set_to
    assert not vars(sampling)
