"""Metrics of requests and engines, by the real client."""

import threading

import pytest
from prometheus_client import CollectorRegistry

from chancellor.engines import EnginePool, EngineStats
from chancellor.errors import EngineDiedError, EngineStartError
from chancellor.telemetry import PrometheusExporter, prometheus, requests
from tests.fakes import FakeEngine
from tests.unit.telemetry.tools import BEST, LIGHT, MODEL, Talkative, request, sample, samples, until


def test_the_metrics_of_requests(pool: EnginePool, fake_engine: type[FakeEngine]) -> None:
    registry = CollectorRegistry()
    with PrometheusExporter(registry, pool):
        for _ in range(2):
            list(pool.generate(LIGHT, request()))
        list(pool.generate(BEST, request()))
        with pytest.raises(EngineDiedError):
            list(pool.generate(LIGHT, request("die")))
        fake_engine.fail_starts = 1
        with pytest.raises(EngineStartError):
            list(pool.generate(LIGHT, request()))
        assert sample(registry, "requests_total", outcome="stop", **MODEL) == 2
        assert sample(registry, "requests_total", outcome="EngineDiedError", **MODEL) == 1
        assert sample(registry, "requests_total", outcome="EngineStartError", **{**MODEL, "engine": "none"}) == 1
        assert sample(registry, "requests_total", outcome="stop", model="best", engine="fake", quantization="none") == 1
        assert sample(registry, "request_duration_seconds_sum", **MODEL) == 1.0
        assert sample(registry, "request_duration_seconds_count", **MODEL) == 2
        assert sample(registry, "request_duration_seconds_bucket", le="0.64", **MODEL) == 2
        assert sample(registry, "time_to_first_token_seconds_sum", **MODEL) == pytest.approx(0.2)
        assert sample(registry, "time_per_output_token_seconds_sum", **MODEL) == pytest.approx(0.4)
        assert sample(registry, "input_tokens_total", **MODEL) == 6
        assert sample(registry, "output_tokens_total", **MODEL) == 6
        assert sample(registry, "cached_tokens_total", **MODEL) == 2
        # What the fake does not tell is not there, not zero.
        assert not [name for name, _ in samples(registry) if name.startswith("chancellor_queue_time")]


def test_each_engine_shows(pool: EnginePool) -> None:
    registry = CollectorRegistry()
    with PrometheusExporter(registry, pool):
        pool.start(LIGHT)
        pool.start(BEST)
        for model in ("light", "best"):
            assert sample(registry, "engine_requests_running", model=model) == 2
            assert sample(registry, "engine_requests_waiting", model=model) == 1
            assert sample(registry, "engine_requests_running_peak", model=model) == 4
            assert sample(registry, "engine_output_tokens_total", model=model) == 100
            assert sample(registry, "engine_prefix_cache_queries_total", model=model) == 60
            assert sample(registry, "engine_prefix_cache_hits_total", model=model) is None
            assert sample(registry, "engine_preemptions_total", model=model) == 0
        assert sample(registry, "engine_kv_cache_usage_ratio", model="light") == 0.5
        assert sample(registry, "engine_kv_cache_usage_ratio", model="best") is None


def test_a_scrape_waits_for_no_engine_and_starts_no_thread(pool: EnginePool) -> None:
    registry, Talkative.may_start = CollectorRegistry(), threading.Event()
    with PrometheusExporter(registry, pool):
        before = set(threading.enumerate())
        assert samples(registry) == {}
        assert not any(thread.name == "chancellor-engines" for thread in set(threading.enumerate()) - before)
        starter = threading.Thread(target=pool.start, args=(LIGHT,))
        starter.start()
        until(lambda: pool._residents._all)
        assert samples(registry) == {}
        assert not FakeEngine.started
        Talkative.may_start.set()
        starter.join()
        assert sample(registry, "engine_requests_running", model="light") == 2


@pytest.mark.parametrize("stuck", [True, False])
def test_engines_that_do_not_tell_leave_the_rest(
    pool: EnginePool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, stuck: bool
) -> None:
    released = threading.Event()

    def stats() -> dict[str, EngineStats]:
        if stuck:
            released.wait()
        raise RuntimeError("Event loop is closed")

    monkeypatch.setattr(prometheus, "_SCRAPE_S", 0.05 if stuck else 30.0)
    monkeypatch.setattr(pool, "stats", stats)
    registry = CollectorRegistry()
    with PrometheusExporter(registry, pool):
        list(pool.generate(LIGHT, request()))
        assert sample(registry, "requests_total", outcome="stop", **MODEL) == 1
    assert ("did not tell within" in caplog.text) == stuck
    released.set()


def test_the_exporter_comes_and_goes_as_one(pool: EnginePool) -> None:
    registry = CollectorRegistry(auto_describe=True)
    exporter = PrometheusExporter(registry, pool)
    before = requests._sinks
    with pytest.raises(ValueError, match="Duplicated"):
        PrometheusExporter(registry, pool)
    assert requests._sinks == before
    list(pool.generate(LIGHT, request()))
    assert samples(registry)
    exporter.close()
    exporter.close()
    assert samples(registry) == {}
    assert len(requests._sinks) == len(before) - 1
    with PrometheusExporter(registry, pool):
        assert sample(registry, "requests_total", outcome="stop", **MODEL) is None
