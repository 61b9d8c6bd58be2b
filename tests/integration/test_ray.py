"""The endpoint on Ray Serve: two replicas with engines of their own, and what happens when they die."""

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import httpx
import psutil
import pytest
import yaml  # type: ignore[import-untyped]

from chancellor.engines import EnginePool
from chancellor.server import ServeOptions, create_app
from tests.fakes import FakeEngine
from tests.integration.ray_cluster import Cluster, title

APP = "chancellor.server.ray_app"
CATALOG = """
[[models]]
name = "light"
source = "shape:nano"
tier = "light"
trinity = 96.5
engine = { dtype = "float32", kv_cache_gib = 0.25, max_model_len = 2048 }

[[models]]
name = "strong"
source = "shape:nano"
tier = "strong"
trinity = 98
engine = { kind = "transformers", dtype = "float32", max_model_len = 512 }

[[models]]
name = "rejected"
source = "shape:nano"
trinity = 90
"""
QUESTIONS: Final = (
    "What is 2+2?",
    "Design a distributed cache",
    "Explain how a database keeps its indexes, and compare two ways of doing it.",
    "Wie spät ist es in Tōkyō, wenn in Berlin die Sonne untergeht? Ist es dort dann schon Morgen?",
    "Tell me, please, " + "and tell me more, " * 30,
)
CLIENTS: Final = 16
TOKENS: Final = 96


@pytest.fixture(scope="module")
def catalog(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("catalog") / "chancellor.toml"
    path.write_text(CATALOG, encoding="utf-8")
    return path


def ask(text: str, **more: Any) -> dict[str, Any]:
    return {"model": "chancellor", "messages": [{"role": "user", "content": text}], "max_tokens": 1, **more}


def chosen(response: httpx.Response) -> dict[str, str]:
    assert response.status_code == 200, response.text
    return {name: value for name, value in response.headers.items() if name.startswith("x-chancellor-")}


def built(catalog: Path, **options: str) -> dict[str, dict[str, Any]]:
    """Return the deployments as `serve build` writes them."""
    variables = {f"CHANCELLOR_RAY_{name.upper()}": value for name, value in options.items()}
    path = catalog.with_name("serve.yaml")
    command = [sys.executable, "-m", "ray.serve.scripts", "build", f"{APP}:app", "-o", str(path)]
    made = subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "RAY_USAGE_STATS_ENABLED": "0", "CHANCELLOR_RAY_CATALOG": str(catalog), **variables},
        timeout=300,
    )
    assert made.returncode == 0, made.stderr
    (application,) = yaml.safe_load(path.read_text(encoding="utf-8"))["applications"]
    assert application["import_path"] == f"{APP}:app"
    return {one["name"]: one for one in application["deployments"]}


def test_serve_build(catalog: Path) -> None:
    fixed = built(catalog, replicas="2")["Engines"]
    assert fixed["num_replicas"] == 2
    assert fixed["max_ongoing_requests"] == 256
    # Both on one machine without a GPU: half of the budget for each.
    assert fixed["ray_actor_options"]["runtime_env"]["env_vars"] == {"CHANCELLOR_MEMORY_SHARE": "0.4000"}
    grown = built(catalog, replicas="2", max_replicas="8", gpus="1", max_ongoing_requests="64", routers="3")
    scaling = grown["Engines"]["autoscaling_config"]
    assert (scaling["min_replicas"], scaling["max_replicas"], scaling["target_ongoing_requests"]) == (2, 8, 32)
    assert grown["Engines"]["ray_actor_options"] == {"num_cpus": 1, "num_gpus": 1}  # a GPU of its own
    assert grown["Router"]["num_replicas"] == 3


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory, catalog: Path) -> Iterator[Cluster]:
    arguments = [f"catalog={catalog}", "replicas=2", "routers=1", "preload=light", "drain_s=30"]
    with Cluster(tmp_path_factory.mktemp("ray"), f"{APP}:build", *arguments) as cluster:
        yield cluster.ready(2)


@pytest.mark.engine
async def test_the_choice_is_that_of_the_endpoint_itself(cluster: Cluster, catalog: Path) -> None:
    app = create_app(catalog, ServeOptions(preload=("none",)), pool=EnginePool(FakeEngine))
    transport = httpx.ASGITransport(app)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://localhost") as direct,
        httpx.AsyncClient(base_url=cluster.url, timeout=300) as through_ray,
    ):
        models = set()
        for question in QUESTIONS:
            for policy in ("trinity", "light", "strong"):
                for stream in (False, True):
                    asked = ask(question, stream=stream, chancellor={"policy": policy})
                    here = await direct.post("/v1/chat/completions", json=asked)
                    there = await through_ray.post("/v1/chat/completions", json=asked)
                    assert chosen(there) == chosen(here)
                    assert there.headers.get_list("x-request-id", split_commas=True)[1:] == []
                    models.add(there.headers["x-chancellor-model"])
        assert models == {"light", "strong"}
        for wrong in ({}, ask("x", model="rejected"), ask("x", model="none"), ask("x", temperature=9)):
            here = await direct.post("/v1/chat/completions", json=wrong)
            there = await through_ray.post("/v1/chat/completions", json=wrong)
            assert (there.status_code, there.json()) == (here.status_code, here.json())
        assert (await through_ray.get("/v1/models/light")).json()["chancellor"]["state"] == "ready"


class Load:
    """So many callers at once, in turn streamed and not, each of whom asks again as soon as it is answered."""

    def __init__(self, url: str) -> None:
        self._client = httpx.AsyncClient(base_url=url, timeout=300, limits=httpx.Limits(max_connections=CLIENTS))
        self.whole = self.streams = 0
        self.flowing: set[int] = set()
        """Callers of whose streams something has come, and not yet all."""
        self.broken: list[dict[str, Any]] = []
        self.lost: list[str] = []
        self.over = False

    async def plain(self) -> None:
        response = await self._client.post("/v1/chat/completions", json=self._asked())
        if response.status_code != 200 or response.json()["usage"]["completion_tokens"] != TOKENS:
            self.lost.append(f"{response.status_code} {response.text}")
        self.whole += 1

    async def streamed(self, number: int) -> None:
        asked = self._asked(stream=True, stream_options={"include_usage": True})
        pieces: list[str] = []
        try:
            async with self._client.stream("POST", "/v1/chat/completions", json=asked) as response:
                async for line in response.aiter_lines():
                    self.flowing.add(number)
                    pieces += [line.removeprefix("data: ")] if line.startswith("data: ") else []
                    if response.status_code != 200:
                        self.lost.append(f"{response.status_code} {line}")
        except httpx.HTTPError as error:
            self.lost.append(f"{type(error).__name__} after {len(pieces)} pieces")
            return
        finally:
            self.flowing.discard(number)
        self.streams += 1
        if pieces and pieces[-1] == "[DONE]":
            usage = json.loads(pieces[-2])["usage"]
            if usage["completion_tokens"] != TOKENS:
                self.lost.append(f"{usage}")
        elif len(pieces) > 1 and "error" in json.loads(pieces[-1]):
            self.broken.append(json.loads(pieces[-1])["error"])  # what had begun cannot go on elsewhere, and says so
        else:
            self.lost.append(f"a stream ends after {pieces[-1:]}")

    def _asked(self, **more: Any) -> dict[str, Any]:
        return ask("Why is the sky blue?", model="light", ignore_eos=True, **more) | {"max_tokens": TOKENS}

    async def _caller(self, number: int) -> None:
        while not self.over:
            # Neighbours are alike: the router deals them out in turn, and each replica is to have both kinds.
            await (self.streamed(number) if number // 2 % 2 else self.plain())

    async def run(self) -> None:
        async with self._client:
            await asyncio.gather(*(self._caller(number) for number in range(CLIENTS)))


@pytest.mark.engine
async def test_a_replica_that_is_killed_loses_nothing_that_had_not_begun(cluster: Cluster) -> None:
    before = cluster.replicas()
    assert len(before) == 2
    assert all(one.environ()["CHANCELLOR_MEMORY_SHARE"] == "0.4000" for one in before.values())
    victim = next(iter(before.values()))
    orphans = victim.children(recursive=True)
    assert any("EngineCore" in title(one) for one in orphans)
    load = Load(cluster.url)
    running = asyncio.create_task(load.run())

    async def wait_for(number: int) -> None:
        while load.whole + load.streams < number:
            assert not running.done()
            await asyncio.sleep(0.05)

    await wait_for(CLIENTS)
    # Each has something to lose; in between, one may have answered all that it had.
    await asyncio.to_thread(cluster.wait_until, lambda: all(cluster.running().values()))
    while len(load.flowing) < CLIENTS // 2 - 1:  # streams, too
        assert not running.done()
        await asyncio.sleep(0.01)
    victim.send_signal(signal.SIGKILL)
    await wait_for(3 * CLIENTS)
    back = await asyncio.to_thread(cluster.ready, 2)
    (new,) = (pid for pid in back.replicas() if pid not in before)
    await wait_for(load.whole + load.streams + 3 * CLIENTS)
    load.over = True
    await running
    assert load.lost == []
    assert load.broken  # else nothing was under way, and nothing was shown
    assert all(error["code"] == "replica_died" for error in load.broken)
    assert len(load.broken) <= CLIENTS / 2
    assert "it had not begun to answer is asked again" in cluster.output()
    assert psutil.wait_procs(orphans, timeout=60)[1] == []
    answered = cluster.samples("chancellor_http_requests_total")
    answering = {one.labels["replica"] for one in answered if "replica" in one.labels and one.value}
    assert answering == set(cluster.running())  # the new one, too
    assert new in cluster.replicas()


@pytest.mark.engine
def test_an_engine_that_dies_is_started_again_in_its_replica(cluster: Cluster) -> None:
    before = cluster.ready(2).replicas()
    replica = next(iter(before.values()))
    (engine,) = (one for one in replica.children() if "EngineCore" in title(one))
    engine.kill()
    psutil.wait_procs([engine], timeout=30)

    def mended() -> bool:  # nobody asks: Ray's look at the replica's health has it started
        return any("EngineCore" in title(one) for one in replica.children())

    cluster.wait_until(mended)
    assert set(cluster.replicas()) == set(before)
    for _ in range(4):
        assert cluster.client.post("/v1/chat/completions", json=ask("What is 2+2?")).status_code == 200


@pytest.mark.engine
def test_a_caller_who_hangs_up_frees_the_engine(cluster: Cluster) -> None:
    def cancelled() -> float:
        found = cluster.samples("chancellor_requests_total")
        return sum(one.value for one in found if one.labels["outcome"] == "cancelled")

    before = cancelled()
    asked = ask("Why is the sky blue?", stream=True, ignore_eos=True) | {"max_tokens": 1500}
    with cluster.client.stream("POST", "/v1/chat/completions", json=asked) as response:
        next(response.iter_lines())
    cluster.wait_until(lambda: cancelled() == before + 1, 60)
    cluster.wait_until(lambda: not any(cluster.running().values()), 60)


@pytest.mark.engine
def test_what_is_under_way_is_answered_before_the_end(cluster: Cluster) -> None:
    replicas = cluster.replicas()
    processes = [*replicas.values(), *(child for one in replicas.values() for child in one.children(recursive=True))]
    asked = ask("Why is the sky blue?", stream=True, ignore_eos=True) | {"max_tokens": 400}
    with cluster.client.stream("POST", "/v1/chat/completions", json=asked) as response:
        lines = response.iter_lines()
        next(lines)
        cluster.delete()
        assert [line for line in lines if line][-1] == "data: [DONE]"
    cluster.wait_until(lambda: "deleted" in cluster.output(), 120)
    assert psutil.wait_procs(processes, timeout=60)[1] == []
    assert cluster.client.post("/v1/chat/completions", json=asked).status_code == 404
