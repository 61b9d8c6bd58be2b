"""What the targets are asked, and how it arrives."""

import asyncio
import itertools
import random
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chancellor import errors
from chancellor.bench import AgentTurns, Load, PerformanceMonitor, Questions, Synthetic
from chancellor.bench.load import closed_loop, open_loop
from chancellor.bench.report import Sample
from chancellor.bench.targets.base import Ask, Reply, Stopwatch
from chancellor.bench.words import TextMaker
from chancellor.bench.workload import Conversation
from tests.scripted import Scripted, questions
from tests.tiny import make_tokenizer


def test_no_prompt_comes_twice_in_a_synthetic_run() -> None:
    targets = [Scripted("a", []), Scripted("b", [])]
    PerformanceMonitor(targets, [Load(Synthetic(12, 2), concurrency=2, requests=4)], blocks=2).run()
    prompts = [str(ask.messages) for target in targets for ask in target.asked]
    assert len(prompts) == len(set(prompts)) == 2 * 2 * (4 + 2)
    assert all(ask.ignore_eos for target in targets for ask in target.asked)


@given(concurrency=st.integers(1, 9), count=st.integers(1, 40), seed=st.integers())
@settings(deadline=None, max_examples=50)
def test_a_closed_loop_runs_everything_once_and_never_more_at_a_time(concurrency: int, count: int, seed: int) -> None:
    rng, done = random.Random(seed), []
    now = most = 0

    async def converse(number: int, _: Conversation, due: float) -> None:
        nonlocal now, most
        now, most = now + 1, max(most, now + 1)
        for _pause in range(rng.randrange(1, 4)):
            await asyncio.sleep(0)
        now -= 1
        done.append(number)

    asyncio.run(closed_loop([Conversation(["?"])] * count, converse, concurrency))
    assert sorted(done) == list(range(count))
    assert most == min(concurrency, count)


def test_an_open_loop_starts_requests_at_random_at_its_mean_rate() -> None:
    due: list[float] = []

    async def converse(_: int, __: Conversation, at: float) -> None:
        due.append(at)
        await asyncio.sleep(0.05)  # a slow answer does not hold up the next arrival

    rate, count = 2000.0, 1000
    asyncio.run(open_loop([Conversation(["?"])] * count, converse, rate, "seed"))
    gaps = [later - earlier for earlier, later in itertools.pairwise(due)]
    mean = sum(gaps) / len(gaps)
    deviation = (sum((gap - mean) ** 2 for gap in gaps) / len(gaps)) ** 0.5
    assert mean == pytest.approx(1 / rate, rel=0.15)
    assert deviation == pytest.approx(mean, rel=0.15)  # an exponential's standard deviation is its mean
    again: list[float] = []

    async def note(_: int, __: Conversation, at: float) -> None:
        again.append(at)

    asyncio.run(open_loop([Conversation(["?"])] * 50, note, rate, "seed"))
    assert [b - a for a, b in itertools.pairwise(again)] == pytest.approx(gaps[:49])


def test_waiting_to_be_sent_counts_in_an_open_loop() -> None:
    """A load generator that is held up must not make the latencies look better: coordinated omission."""

    class Blocking(Scripted):
        async def send(self, ask: Ask, stopwatch: Stopwatch) -> Reply:
            time.sleep(0.02)  # noqa: ASYNC251 - holds up the loop on purpose
            return Reply("x", 1, 1)

    report = PerformanceMonitor(
        [Blocking("a", [])], [questions(rate=1000.0, requests=20)], blocks=1, warmup=0, stream=False
    ).run()
    assert report.runs[0].rate == 1000.0
    latency = report.runs[0].latency_s
    assert latency is not None
    assert latency.max > 0.3  # the twentieth waited for nineteen others


def test_all_targets_get_the_same_arrivals() -> None:
    class Clocked(Scripted):
        async def send(self, ask: Ask, stopwatch: Stopwatch) -> Reply:
            return Reply("x", 1, 1)

    targets = [Clocked("a", []), Clocked("b", [])]
    report = PerformanceMonitor(targets, [questions(rate=500.0, requests=12)], blocks=2, warmup=0).run()
    first, other = ([(s.block, s.index, s.start_s) for s in sorted(run.samples, key=_order)] for run in report.runs)
    assert len(first) == 24
    for (block, index, mine), (block_too, index_too, theirs) in zip(first, other, strict=True):
        assert (block, index) == (block_too, index_too)
        # Both count from the segment's start, which lies a moment before the first arrival: microseconds, mostly.
        began, began_too = first[12 * block][2], other[12 * block][2]
        assert mine - began == pytest.approx(theirs - began_too, abs=1e-5)
    assert first[1][2] - first[0][2] != pytest.approx(first[13][2] - first[12][2], abs=1e-5)  # another block


def _order(sample: Sample) -> tuple[int, int]:
    return sample.block, sample.index


def test_agents_reach_the_concurrency_that_was_asked_for() -> None:
    target = Scripted("a", [])
    load = Load(AgentTurns(prefix_tokens=8, turns=4, input_tokens=2, output_tokens=2), concurrency=5)
    run = PerformanceMonitor([target], [load], blocks=1, warmup=0).run().runs[0]
    assert (target.peak, run.requests) == (5, 2 * 5 * 4)
    with pytest.raises(errors.WorkloadError, match="cannot keep 5 conversations in flight"):
        Load(AgentTurns(turns=4), concurrency=5, requests=8)
    with pytest.raises(errors.WorkloadError, match="cannot keep 8"):
        questions(concurrency=8, requests=4)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    from transformers import AutoTokenizer

    folder = tmp_path_factory.mktemp("tokenizer")
    make_tokenizer(folder)
    return AutoTokenizer.from_pretrained(folder)


@pytest.mark.parametrize("tokens", [9, 31, 128, 513])
def test_prompts_have_the_length_that_was_asked_for(tokenizer: Any, tokens: int) -> None:
    text = TextMaker(tokenizer)
    made = Synthetic(tokens, 4).conversations(8, "seed", text)
    lengths = [text.length([{"role": "user", "content": one.turns[0]}]) for one in made]
    assert lengths == [tokens] * 8


def test_lengths_that_vary_are_the_same_for_all_targets(tokenizer: Any) -> None:
    workload = Synthetic(64, 32, vary=0.5)
    one = workload.conversations(20, "seed a", TextMaker(None))
    other = workload.conversations(20, "seed b", TextMaker(None))
    assert [each.max_tokens for each in one] == [each.max_tokens for each in other]
    assert len({each.max_tokens[0] for each in one}) > 5
    assert all(16 <= each.max_tokens[0] <= 48 for each in one)
    assert one != other


def test_questions_come_from_a_file(tmp_path: Path) -> None:
    lines = tmp_path / "questions.txt"
    lines.write_text("What is 2+2?\n\nWhy?\n", encoding="utf-8")
    assert Questions.read(lines).questions == ["What is 2+2?", "Why?"]
    objects = tmp_path / "questions.jsonl"
    objects.write_text(
        '{"question": "a?"}\n{"prompt": "b?"}\n{"messages": [{"role": "user", "content": "c?"}]}\n"d?"\n'
    )
    assert Questions.read(objects).questions == ["a?", "b?", "c?", "d?"]
    for content, complaint in (("", "holds no question"), ("{}", "has no question"), ("{", "is no JSON")):
        objects.write_text(content)
        with pytest.raises(errors.WorkloadError, match=complaint):
            Questions.read(objects)
    with pytest.raises(errors.WorkloadError, match="cannot be read"):
        Questions.read(tmp_path / "missing.txt")


@pytest.mark.parametrize(
    "how",
    [
        {},
        {"concurrency": 1, "rate": 1.0},
        {"concurrency": 0},
        {"rate": 0.0},
        {"rate": float("nan")},
        {"concurrency": 1, "requests": 0},
    ],
)
def test_loads_that_make_no_sense(how: dict[str, Any]) -> None:
    with pytest.raises(errors.WorkloadError):
        questions(**how)
