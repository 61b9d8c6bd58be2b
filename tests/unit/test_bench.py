"""The monitor's logic, with the fake engine; tests/integration/test_bench.py measures real ones."""

import asyncio
import itertools
import json
import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from langchain_core.language_models.fake_chat_models import GenericFakeChatModel
from langchain_core.messages import AIMessage, ToolMessage

from chancellor import Catalog, ChatModels, create_chancellor, errors
from chancellor.bench import (
    AgentTurns,
    Event,
    Load,
    Objectives,
    PerformanceMonitor,
    Questions,
    Report,
    Synthetic,
    Workload,
)
from chancellor.bench.against import make_targets
from chancellor.bench.load import closed_loop, open_loop
from chancellor.bench.report import Sample
from chancellor.bench.targets.base import Ask, Reply, Stopwatch, Target
from chancellor.bench.words import TextMaker
from chancellor.bench.workload import Conversation
from chancellor.engines import EnginePool
from chancellor.nodes import generation_node
from tests import fakes
from tests.fakes import FakeEngine
from tests.tiny import make_tokenizer


@pytest.fixture
def pool(fake_engine: type[FakeEngine]) -> Iterator[EnginePool]:
    pool = EnginePool(fake_engine)
    yield pool
    pool.close()


@pytest.fixture
def catalog() -> Catalog:
    return fakes.catalog()


def monitor(pool: EnginePool, *names: str, **options: Any) -> PerformanceMonitor:
    subject, *against = names
    targets = make_targets(subject, against, catalog=fakes.catalog(), model="light", pool=pool)
    loads = options.pop("loads", [Load(Questions(["What is two plus two?"]), concurrency=2, requests=4)])
    return PerformanceMonitor(targets, loads, **options)


class Scripted(Target):
    """Answers after a while, fails where it is told to, and writes down what it was asked."""

    def __init__(self, name: str, journal: list[str], *, delay_s: float = 0.001, fail_every: int = 0) -> None:
        self.name, self.journal, self.delay_s, self.fail_every = name, journal, delay_s, fail_every
        self.asked: list[Ask] = []
        self.in_flight = self.peak = 0

    @property
    def detail(self) -> str:
        return "scripted"

    async def start(self) -> None:
        self.journal.append(f"start {self.name}")

    async def send(self, ask: Ask, stopwatch: Stopwatch) -> Reply:
        self.journal.append(self.name)
        self.asked.append(ask)
        if self.fail_every and len(self.asked) % self.fail_every == 0:
            raise errors.GenerationError("It did not want to.")
        self.in_flight += 1
        self.peak = max(self.peak, self.in_flight)
        try:
            for _ in range(ask.max_tokens if ask.stream else 0):
                await asyncio.sleep(self.delay_s)
                stopwatch.piece()
            if not ask.stream:
                await asyncio.sleep(self.delay_s)
        finally:
            self.in_flight -= 1
        return Reply("answer", 5, ask.max_tokens, 0, 0.5, 0.25)

    async def close(self) -> None:
        self.journal.append(f"close {self.name}")


def questions(**how: Any) -> Load:
    return Load(Questions(["one?", "two?"], max_tokens=3), **how)


def test_the_graph_is_measured_beside_what_it_stands_on(pool: EnginePool) -> None:
    FakeEngine.delta_s = 0.005  # what comes while the caller is busy comes joined
    report = monitor(pool, "graph", "chat", "engine").run()
    assert report.state == "complete"
    assert [run.name for run in report.runs] == ["graph", "chat", "engine"]
    for run in report.runs:
        assert (run.requests, run.errors, run.concurrency) == (8, 0, 2)
        assert run.tokens_per_s == pytest.approx(
            sum(sample.output_tokens or 0 for sample in run.samples) / run.duration_s
        )
        assert run.ttft_s is not None
        assert run.latency_s is not None
        assert run.latency_s.min >= run.ttft_s.min > 0
        assert run.itl_s is not None
        assert 0 < run.itl_s.n <= 8 * 6  # seven words, one after the other
        assert run.process_memory_mib is not None
        assert run.gpu_memory_mib is None or run.gpu_memory_mib > 0
        assert run.preemptions is None  # the fake does not tell
    assert [(ratio.subject, ratio.against) for ratio in report.ratios] == [("graph", "chat"), ("graph", "engine")]
    assert all(ratio.spread is not None and len(ratio.pairs) == 2 for ratio in report.ratios)


def test_any_chat_model_and_any_graph_can_be_measured(pool: EnginePool, catalog: Catalog) -> None:
    model = GenericFakeChatModel(messages=iter(AIMessage("three small words") for _ in range(100)))
    report = PerformanceMonitor.of(model, catalog=catalog, workload=["?"], concurrency=[2], requests=4, blocks=1).run()
    assert report.runs[0].requests == 4
    assert report.runs[0].itl_s is not None
    assert report.runs[0].tokens_per_s is None  # it does not say how many tokens they were
    graph = create_chancellor(catalog, generate=generation_node(ChatModels(catalog, pool=pool))).compile(name="mine")
    report = PerformanceMonitor.of(graph, catalog=catalog, workload=["?"], concurrency=[2], requests=4, blocks=1).run()
    assert report.runs[0].name == "mine"
    assert report.runs[0].tokens_per_s is not None
    assert "select_model" in report.runs[0].detail
    with pytest.raises(errors.BenchmarkError, match="cannot be measured"):
        PerformanceMonitor.of(3, catalog=catalog)  # type: ignore[arg-type]


def test_an_engine_that_was_running_keeps_running(pool: EnginePool, catalog: Catalog) -> None:
    pool.start(catalog["light"])
    monitor(pool, "engine", blocks=1).run()
    assert FakeEngine.closed == []
    PerformanceMonitor.of(
        "engine", model="best", catalog=catalog, against="chat", workload="?", concurrency=1, pool=pool, blocks=1
    ).run()
    assert FakeEngine.closed == ["best"]


def test_without_streaming_the_engines_own_clock_gives_the_first_token(pool: EnginePool) -> None:
    report = monitor(pool, "graph", stream=False, blocks=1).run()
    assert report.runs[0].itl_s is None
    assert report.runs[0].ttft_s is not None
    assert report.runs[0].ttft_s.p50 == 0.1  # what the fake says


def test_segments_alternate_forwards_and_backwards() -> None:
    journal: list[str] = []
    targets = [Scripted("a", journal), Scripted("b", journal)]
    PerformanceMonitor(targets, [questions(concurrency=1, requests=2)], blocks=4, warmup=0).run()
    blocks = [name for name in journal if len(name) == 1]
    assert journal[:2] + journal[-2:] == ["start a", "start b", "close a", "close b"]
    assert "".join(blocks) == "aabb" + "bbaa" + "aabb" + "bbaa"


def test_warm_up_is_not_counted() -> None:
    target = Scripted("a", [])
    report = PerformanceMonitor([target], [questions(concurrency=2, requests=4)], blocks=1, warmup=3).run()
    assert len(target.asked) == 7
    assert report.runs[0].requests == 4


def test_errors_are_counted_by_kind_and_leave_the_rest_alone() -> None:
    target = Scripted("a", [], fail_every=4)
    report = PerformanceMonitor([target], [questions(concurrency=2, requests=8)], blocks=1, warmup=0).run()
    run = report.runs[0]
    assert (run.requests, run.errors, run.error_kinds) == (6, 2, {"GenerationError": 2})
    assert [sample.error for sample in run.samples if sample.error] == ["GenerationError: It did not want to."] * 2
    assert run.latency_s is not None
    assert run.latency_s.n == 6


def test_a_run_that_is_interrupted_keeps_what_it_has() -> None:
    target = Scripted("a", [], delay_s=0.005)

    def stop(event: Event) -> None:
        if event.kind == "sample" and event.block == 1 and event.completed == 3:
            raise KeyboardInterrupt

    bench = PerformanceMonitor([target], [questions(concurrency=1, requests=5)], blocks=3, warmup=0, on_event=stop)
    with pytest.raises(KeyboardInterrupt):
        bench.run()
    report = bench.report
    assert report.state == "interrupted"
    segments = report.runs[0].segments
    assert [(segment.block, segment.requests, segment.complete) for segment in segments] == [
        (0, 5, True),
        (1, 3, False),
    ]
    assert report.runs[0].tokens_per_s is not None
    assert target.journal[-1] == "close a"
    assert Report.model_validate_json(report.model_dump_json(by_alias=True)) == report


def test_the_report_can_be_saved_after_every_segment(tmp_path: Path) -> None:
    seen: list[int] = []
    file = tmp_path / "bench.json"

    def save(report: Report) -> None:
        report.save(file)
        seen.append(sum(len(run.segments) for run in Report.load(file).runs))

    PerformanceMonitor(
        [Scripted("a", []), Scripted("b", [])], [questions(concurrency=1, requests=1)], on_report=save
    ).run()
    assert seen == [1, 2, 3, 4]
    stable = json.loads(file.read_text())
    assert {"machine", "settings", "runs", "ratios"} <= set(stable)
    assert {"name", "concurrency", "requests", "errors", "tokens_per_s", "requests_per_s"} <= set(stable["runs"][0])
    assert {"p50", "p90", "p99"} <= set(stable["runs"][0]["ttft_s"])
    assert {"against", "concurrency", "tokens_per_s_ratio", "spread"} <= set(stable["ratios"][0])


def test_a_target_that_does_not_start_is_a_result_unless_it_is_the_first() -> None:
    class Broken(Scripted):
        async def start(self) -> None:
            raise errors.EngineStartError("There is no kernel for it.")

    report = PerformanceMonitor([Scripted("a", []), Broken("b", [])], [questions(concurrency=1)], blocks=1).run()
    assert report.failures == {"b": "There is no kernel for it."}
    assert report.state == "complete"
    with pytest.raises(errors.EngineStartError):
        PerformanceMonitor([Broken("b", [])], [questions(concurrency=1)]).run()


def test_a_target_that_takes_too_long_to_start_is_given_up() -> None:
    class Slow(Scripted):
        async def start(self) -> None:
            await asyncio.sleep(30)

    slow = Slow("b", [])
    report = PerformanceMonitor(
        [Scripted("a", []), slow], [questions(concurrency=1)], blocks=1, start_timeout_s=0.05
    ).run()
    assert "0.05 s" in report.failures["b"]
    assert slow.journal == ["close b"]


def test_an_agents_turns_follow_one_another() -> None:
    target = Scripted("a", [])
    load = Load(AgentTurns(prefix_tokens=20, turns=3, input_tokens=4, output_tokens=2), concurrency=2, requests=6)
    report = PerformanceMonitor([target], [load], blocks=1, warmup=0).run()
    assert report.runs[0].requests == 6
    assert target.peak == 2
    by_length: dict[int, int] = {}
    for ask in target.asked:
        assert ask.messages[0]["role"] == "system"
        by_length[len(ask.messages)] = by_length.get(len(ask.messages), 0) + 1
    assert by_length == {2: 2, 4: 2, 6: 2}
    assert len({ask.messages[0]["content"] for ask in target.asked}) == 1
    assert target.asked[-1].messages[2] == {"role": "assistant", "content": "answer"}


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


def test_turns_after_a_failed_one_are_counted() -> None:
    target = Scripted("a", [], fail_every=2)
    load = Load(AgentTurns(prefix_tokens=8, turns=4, input_tokens=2, output_tokens=2), concurrency=1, requests=4)
    run = PerformanceMonitor([target], [load], blocks=1, warmup=0).run().runs[0]
    assert (run.requests, run.errors) == (1, 3)
    assert run.error_kinds == {"GenerationError": 1, "Skipped": 2}


def test_a_target_that_fails_between_segments_costs_only_its_own() -> None:
    class Gone(Scripted):
        begun = 0

        async def begin(self) -> bool:
            self.begun += 1
            if self.begun > 2:  # twice for the first segment
                raise errors.BenchmarkError("The server is gone.")
            return True

    targets = [Scripted("a", []), Gone("b", [])]
    report = PerformanceMonitor(targets, [questions(concurrency=1, requests=2)], blocks=3, warmup=0).run()
    assert report.state == "complete"
    assert {run.name: len(run.segments) for run in report.runs} == {"a": 3, "b": 1}
    assert len(report.failures) == 2
    assert all("server is gone" in reason for reason in report.failures.values())
    assert len(report.ratios[0].pairs) == 1


def test_loads_and_targets_that_would_be_mixed_up_are_refused() -> None:
    with pytest.raises(errors.BenchmarkError, match="Two loads are called"):
        PerformanceMonitor([Scripted("a", [])], [questions(concurrency=1), questions(concurrency=1, requests=9)])
    free = Scripted("b", [])
    free.fixed_length = False
    with pytest.raises(errors.BenchmarkError, match="ends its answers when it likes"):
        PerformanceMonitor([Scripted("a", []), free], [Load(Synthetic(8, 8), concurrency=1)])


def test_what_is_partly_unknown_is_unknown() -> None:
    class Forgetful(Scripted):
        async def send(self, ask: Ask, stopwatch: Stopwatch) -> Reply:
            self.asked.append(ask)
            return Reply("x", 1, None if len(self.asked) % 2 else 7)

    run = PerformanceMonitor(
        [Forgetful("a", [])], [questions(concurrency=1, requests=4)], blocks=1, warmup=0, stream=False
    ).run()
    assert run.runs[0].requests == 4
    assert run.runs[0].tokens_per_s is None
    assert run.runs[0].ttft_s is None


def test_an_agent_with_tools_is_measured(pool: EnginePool, catalog: Catalog) -> None:
    def tool(_: Any) -> dict[str, Any]:
        return {"messages": [ToolMessage("a result", tool_call_id="1")]}

    builder = create_chancellor(catalog, generate=generation_node(ChatModels(catalog, pool=pool)), record=tool)
    report = PerformanceMonitor.of(
        builder.compile(name="agent"), catalog=catalog, workload="?", concurrency=1, requests=2, blocks=1
    ).run()
    run = report.runs[0]
    assert (run.requests, run.errors) == (2, 0), run.error_kinds
    assert run.output_tokens is not None
    assert report.starts_s == {}  # it was there before


def test_a_running_loop_and_scalars(pool: EnginePool, catalog: Catalog) -> None:
    bench = PerformanceMonitor.of(
        "engine", model="light", catalog=catalog, against="chat", workload="?", rates=200.0, requests=3, pool=pool
    )
    assert [load.label for load in bench.loads] == ["questions, 64 tokens at most at 200 requests/s"]

    async def inside() -> None:
        with pytest.raises(errors.BenchmarkError, match="event loop runs"):
            bench.run()
        assert (await bench.arun()).state == "complete"

    asyncio.run(inside())
    assert all(run.requests == 6 for run in bench.run().runs)  # a second run starts from nothing


def test_goodput_counts_requests_that_keep_every_limit() -> None:
    def sample(ttft: float | None, latency: float) -> Sample:
        return Sample(block=0, index=0, start_s=0, latency_s=latency, ttft_s=ttft, output_tokens=11)

    limits = Objectives.parse(["ttft=0.5", "tpot=0.1"])
    assert limits.kept([sample(0.5, 1.5), sample(0.4, 1.5), sample(0.6, 0.7), sample(None, 0.1)]) == 1
    assert Objectives().kept([sample(0.5, 1.5)]) is None
    assert limits.kept([sample(None, 1.0), sample(None, 0.1)]) is None  # nobody measured it
    assert limits.kept([]) == 0
    one_token = Sample(block=0, index=0, start_s=0, latency_s=0.3, ttft_s=0.3, output_tokens=1)
    assert limits.kept([one_token]) == 1
    for wrong in ("ttft", "ttft=", "ttft=-1", "speed=3", "ttft=nan", "ttft=0"):
        with pytest.raises(errors.BenchmarkError, match="no latency target"):
            Objectives.parse([wrong])


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


def test_what_cannot_be_compared_says_so(pool: EnginePool, catalog: Catalog) -> None:
    def make(subject: str, *against: str, model: str | None = "light") -> list[Target]:
        return make_targets(subject, against, catalog=catalog, model=model, pool=pool)

    assert [target.name for target in make("graph", "unquantised", "stock", "transformers", "best")] == [
        "graph",
        "unquantised",
        "stock",
        "transformers",
        "best",
    ]
    with pytest.raises(errors.UnknownChoiceError, match="'grahp'"):
        make("grahp")
    with pytest.raises(errors.UnknownChoiceError, match="'rwa'"):
        make("graph", "rwa")
    with pytest.raises(errors.UnknownModelError):
        make("graph", model="missing")
    with pytest.raises(errors.BenchmarkError, match="not quantised"):
        make("graph", "unquantised", model="best")
    with pytest.raises(errors.BenchmarkError, match="not quantised"):
        make("graph", "stock", model="best")
    with pytest.raises(errors.BenchmarkError, match="twice"):
        make("graph", "raw", "raw")
    with pytest.raises(errors.BenchmarkError, match="no URL"):
        make("http://")
    with pytest.raises(errors.BenchmarkError, match="target is a server"):
        make("http://127.0.0.1:1", "raw", model=None)
    wrongs: list[dict[str, Any]] = [{"blocks": 0}, {"warmup": -1}]
    for wrong in wrongs:
        with pytest.raises(errors.BenchmarkError):
            PerformanceMonitor([Scripted("a", [])], [questions(concurrency=1)], **wrong)
    with pytest.raises(errors.BenchmarkError):
        PerformanceMonitor([], [questions(concurrency=1)])


def test_work_that_does_not_fit_is_refused_before_the_start(pool: EnginePool, catalog: Catalog) -> None:
    def make(workload: Workload, subject: str = "graph", **options: Any) -> PerformanceMonitor:
        engine = catalog["light"].engine.model_copy(update=options)
        models = Catalog([catalog["light"].model_copy(update={"engine": engine})])
        targets = make_targets(subject, [], catalog=models, model="light", pool=pool)
        return PerformanceMonitor(targets, [Load(workload, concurrency=1)])

    make(Synthetic(4032, 64))
    make(Questions(["?"], max_tokens=5000))  # nobody knows before it is rendered
    make(Synthetic(5000, 64), "http://127.0.0.1:9")
    make(Synthetic(5000, 64), max_model_len=5064)
    make(Synthetic(5000, 64), vllm={"max_model_len": 5064})
    make(Synthetic(5000, 64), vllm={"max_model_len": "auto"})
    wrongs: list[tuple[Workload, dict[str, Any]]] = [
        (Synthetic(4033, 64), {}),
        (Synthetic(3000, 64, vary=0.5), {}),
        (AgentTurns(turns=50), {}),
        (Synthetic(128, 64), {"max_model_len": 128}),
        (Synthetic(128, 64), {"vllm": {"max_model_len": 128}}),
        (Synthetic(128, 64), {"kind": "transformers", "max_model_len": 128, "vllm": {"max_model_len": 9999}}),
    ]
    for workload, options in wrongs:
        with pytest.raises(errors.WorkloadError, match="has room for") as caught:
            make(workload, **options)
        assert "max_model_len" in caught.value.hint
    assert FakeEngine.started == []


def test_raw_is_refused_where_there_is_no_vllm(pool: EnginePool, catalog: Catalog) -> None:
    spec = catalog["light"]
    models = Catalog([spec.model_copy(update={"engine": spec.engine.model_copy(update={"kind": "transformers"})})])
    for subject, against in (("graph", ["raw"]), ("raw", [])):
        with pytest.raises(errors.BenchmarkError, match="does not run in vLLM"):
            make_targets(subject, against, catalog=models, model="light", pool=pool)
    assert len(make_targets("raw", ["transformers"], catalog=catalog, model="light", pool=pool)) == 2


def test_engines_that_are_loaded_together_share_the_memory(pool: EnginePool, catalog: Catalog) -> None:
    targets: list[Any] = make_targets(
        "graph", ["raw", "unquantised", "transformers"], catalog=catalog, model="light", pool=pool
    )
    shares = [target.spec.engine.gpu_memory_utilization for target in targets]
    assert shares == [0.267] * 4  # three engines: raw drives that of the graph
    alone: list[Any] = make_targets("graph", ["raw"], catalog=catalog, model="light", pool=pool)
    assert [target.spec.engine.gpu_memory_utilization for target in alone] == [0.8, 0.8]


def test_a_server_that_is_not_there_is_an_error_with_a_hint(pool: EnginePool, catalog: Catalog) -> None:
    targets = make_targets("http://127.0.0.1:9", [], catalog=catalog, model=None, pool=pool)
    with pytest.raises(errors.BenchmarkError, match="does not list its models") as caught:
        PerformanceMonitor(targets, [questions(concurrency=1)]).run()
    assert "Check that it runs" in caught.value.hint
