"""What is measured, over the fake engine; tests/integration/test_bench.py measures real ones."""

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest
from langchain_core.language_models.fake_chat_models import GenericFakeChatModel
from langchain_core.messages import AIMessage, ToolMessage

from chancellor import Catalog, ChatModels, create_chancellor, errors
from chancellor.bench import AgentTurns, Load, PerformanceMonitor, Questions, Synthetic, Workload
from chancellor.bench.against import make_targets
from chancellor.bench.targets.base import Target
from chancellor.engines import EnginePool
from chancellor.nodes import generation_node
from tests import fakes
from tests.fakes import FakeEngine
from tests.scripted import Scripted, questions


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
