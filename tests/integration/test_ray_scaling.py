"""One replica, two under load, and one again, by Ray's own autoscaling; with plain transformers: they start soonest."""

import asyncio
import json
import signal
from collections.abc import Iterator
from typing import Any, Final

import httpx
import pytest

from tests.integration.ray_cluster import Cluster

CATALOG = """
[[models]]
name = "light"
source = "shape:nano"
trinity = 97
engine = { kind = "transformers", dtype = "float32", max_model_len = 512 }
"""
# Impatient: the defaults wait half a minute before there are more, and ten before there are fewer.
CONFIG = """
applications:
  - name: default
    route_prefix: /
    import_path: chancellor.server.ray_app:build
    args: {{ catalog: {catalog}, replicas: 1, max_replicas: 2, routers: 1, preload: light, drain_s: 30 }}
    deployments:
      - name: Engines
        autoscaling_config:
          {{ min_replicas: 1, max_replicas: 2, target_ongoing_requests: 2, upscale_delay_s: 1, downscale_delay_s: 3,
            metrics_interval_s: 1, look_back_period_s: 3 }}
"""
TOKENS: Final = 48
CALLERS: Final = 5


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    folder = tmp_path_factory.mktemp("scaling")
    (folder / "chancellor.toml").write_text(CATALOG, encoding="utf-8")
    (folder / "serve.yaml").write_text(CONFIG.format(catalog=folder / "chancellor.toml"), encoding="utf-8")
    often = {f"RAY_SERVE_{who}_AUTOSCALING_METRIC_PUSH_INTERVAL_S": "1" for who in ("HANDLE", "REPLICA")}
    with Cluster(tmp_path_factory.mktemp("ray"), str(folder / "serve.yaml"), **often) as cluster:
        yield cluster.ready(1)


class Load:
    """So many callers of streams, each of whom asks again as soon as it is answered."""

    def __init__(self, url: str) -> None:
        self._url = url
        self.callers = CALLERS
        self.answered = 0
        self.lost: list[Any] = []

    async def run(self) -> None:
        async with httpx.AsyncClient(base_url=self._url, timeout=300) as client:
            await asyncio.gather(*(self._caller(client, number) for number in range(CALLERS)))

    async def _caller(self, client: httpx.AsyncClient, number: int) -> None:
        asked = {"model": "light", "messages": [{"role": "user", "content": "Why is the sky blue?"}], "stream": True}
        asked |= {"max_tokens": TOKENS, "ignore_eos": True, "stream_options": {"include_usage": True}}
        while number < self.callers:
            data = []
            async with client.stream("POST", "/v1/chat/completions", json=asked) as response:
                async for line in response.aiter_lines():
                    data += [line.removeprefix("data: ")] if line.startswith("data: ") else []
            whole = len(data) > 2 and data[-1] == "[DONE]"
            if not whole or json.loads(data[-2])["usage"]["completion_tokens"] != TOKENS:
                self.lost.append((response.status_code, data[-1:]))
            self.answered += 1


@pytest.mark.engine
async def test_replicas_come_and_go_with_the_load(cluster: Cluster) -> None:
    (first,) = cluster.replicas()
    load = Load(cluster.url)
    running = asyncio.create_task(load.run())
    await asyncio.to_thread(cluster.ready, 2)
    both = cluster.replicas()
    assert len(both) == 2
    assert first in both
    until = load.answered + 3 * CALLERS
    while load.answered < until:
        assert not running.done()
        await asyncio.sleep(0.1)
    answered = await asyncio.to_thread(cluster.samples, "chancellor_http_requests_total")
    answering = {
        one.labels["replica"] for one in answered if one.labels.get("status") == "200" and "replica" in one.labels
    }
    assert len(answering) == 2  # the new one takes its share
    load.callers = 1  # who goes on to ask, while one replica goes
    await asyncio.to_thread(cluster.wait_until, lambda: len(cluster.replicas()) == 1 and len(cluster.running()) == 1)
    load.callers = 0
    await running
    assert load.lost == []
    assert cluster.client.post("/v1/completions", json={"model": "light", "prompt": "a"}).status_code == 200


@pytest.mark.engine
def test_metrics_of_a_replica_that_hangs_are_left_out(cluster: Cluster) -> None:
    cluster.client.get("/v1/nothing")
    counted = [one for one in cluster.samples("chancellor_http_requests_total") if "router" in one.labels]
    assert {one.labels["status"] for one in counted} >= {"200", "404"}
    replica = next(iter(cluster.replicas().values()))
    replica.send_signal(signal.SIGSTOP)
    try:
        found = cluster.samples("chancellor_http_requests_total")
    finally:
        replica.send_signal(signal.SIGCONT)
    assert found
    assert not any("replica" in one.labels for one in found)
    cluster.ready(1)


@pytest.mark.engine
def test_the_log_of_a_router_has_what_it_refuses(cluster: Cluster) -> None:
    response = cluster.client.post("/v1/completions", content=b"x" * (5 * 2**20))
    assert response.status_code == 413
    assert response.headers.get_list("x-request-id", split_commas=True)[1:] == []
    cluster.wait_until(lambda: '"status": 413' in cluster.output(), 60)
