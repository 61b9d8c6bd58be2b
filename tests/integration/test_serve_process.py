"""`chancellor serve` where vLLM cannot be imported: transformers answer. And how such a server ends."""

import asyncio
import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.integration.crowd import Crowd
from tests.integration.served import Served, wait_until
from tests.integration.test_serve import CITY, TOOL
from tests.tiny import make_model
from tests.unit.test_cli import catalog, fails, run

pytestmark = pytest.mark.engine
ASKED: dict[str, Any] = {
    "model": "chancellor",
    "messages": [{"role": "user", "content": "What is two plus two?"}],
    "temperature": 0,
    "max_tokens": 8,
    "ignore_eos": True,
}
PLACE = {"type": "object", "properties": {"city": CITY}, "required": ["city"], "additionalProperties": False}


@pytest.fixture(scope="module")
def arguments(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("serve")
    model = make_model(folder / "tiny", context=4096)
    path = folder / "chancellor.toml"
    entry = f'name = "tiny"\nsource = "{model}"\ntrinity = 96\n[models.engine]\ndtype = "float32"\n'
    path.write_text(f"[[models]]\n{entry}")
    return ["--config", str(path)]


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Where the import of vLLM fails, as with libraries that do not fit."""
    folder = tmp_path_factory.mktemp("forbidden")
    (folder / "vllm").mkdir()
    (folder / "vllm" / "__init__.py").write_text('raise ImportError("libtorch_cpu.so: undefined symbol")\n')
    return {"PYTHONPATH": os.pathsep.join(filter(None, [str(folder), os.environ.get("PYTHONPATH")]))}


@pytest.fixture(scope="module")
def server(arguments: list[str], environment: dict[str, str]) -> Iterator[Served]:
    with Served(*arguments, **environment) as server:
        yield server.ready()


def post(server: Served, path: str = "/v1/chat/completions", **fields: Any) -> httpx.Response:
    return httpx.post(f"{server.url}{path}", json=fields, timeout=120)


def test_the_same_routes_are_served_by_transformers(server: Served) -> None:
    answer = post(server, **ASKED, chancellor={"decision": True})
    assert answer.status_code == 200, answer.text
    body = answer.json()
    assert (body["model"], answer.headers["x-chancellor-model"]) == ("tiny", "tiny")
    assert body["usage"]["completion_tokens"] == 8
    metrics = body["chancellor"]["metrics"]
    assert metrics["engine"] == "transformers"
    assert [step["step"] for step in metrics["fallbacks"]] == ["transformers"]
    assert "undefined symbol" in metrics["fallbacks"][0]["reason"]
    text = body["choices"][0]["message"]["content"]
    streamed = post(server, **ASKED, stream=True, chancellor={"decision": True}).text
    *chunks, told, done = [line.removeprefix("data: ") for line in streamed.split("\n\n") if line]
    assert done == "[DONE]"
    assert json.loads(told)["chancellor"]["metrics"]["engine"] == "transformers"
    assert "".join(json.loads(one)["choices"][0]["delta"].get("content", "") for one in chunks) == text
    named = post(server, **{**ASKED, "model": "tiny"})
    assert named.json()["choices"][0]["message"]["content"] == text


def test_what_else_transformers_do(server: Served) -> None:
    asked = {**ASKED, "model": "tiny"}
    noted = post(server, **asked, logprobs=True, top_logprobs=2, n=2).json()["choices"]
    assert len(noted) == 2
    assert all(len(choice["logprobs"]["content"]) == 8 for choice in noted)
    chosen = post(server, **{**asked, "ignore_eos": False}, structured_outputs={"choice": ["four", "five"]}).json()
    assert chosen["choices"][0]["message"]["content"] in ("four", "five")
    raw = {"model": "tiny", "max_tokens": 6, "temperature": 0, "ignore_eos": True}
    biased = post(server, "/v1/completions", **raw, prompt="The quick brown fox", logit_bias={"70": 100}, logprobs=0)
    tokens = biased.json()["choices"][0]["logprobs"]["tokens"]
    assert len(tokens) == 6
    assert len(set(tokens)) == 1
    several = post(server, "/v1/completions", **raw, prompt=[[70, 71], [72]]).json()
    assert [choice["finish_reason"] for choice in several["choices"]] == ["length", "length"]
    assert several["usage"]["prompt_tokens"] == 3
    for bad in ({"prompt": [1, 999_999]}, {"prompt": "x", "logit_bias": {"999999": 1}}, {"prompt": ""}):
        assert post(server, "/v1/completions", **raw, **bad).status_code == 400
    models = httpx.get(f"{server.url}/v1/models").json()["data"]
    assert [one["id"] for one in models] == ["chancellor", "tiny"]
    assert server.metric("chancellor_requests_total")


def test_tools_and_schemas(server: Served) -> None:
    asked = {**ASKED, "model": "tiny", "ignore_eos": False, "max_tokens": 200}
    message = post(server, **asked, tools=[TOOL], tool_choice="required").json()["choices"][0]["message"]
    (call,) = message["tool_calls"]
    assert call["function"]["name"] == "weather"
    assert json.loads(call["function"]["arguments"])["city"] in CITY["enum"]
    form = {"type": "json_schema", "json_schema": {"name": "place", "strict": True, "schema": PLACE}}
    content = post(server, **asked, response_format=form).json()["choices"][0]["message"]["content"]
    assert json.loads(content)["city"] in CITY["enum"]


def test_more_callers_than_it_takes_hear_when_to_come_again(arguments: list[str], environment: dict[str, str]) -> None:
    with Served(*arguments, "--max-requests", "8", **environment) as server:
        crowd = Crowd(server.ready().url, 60, {"model": "tiny", "temperature": 0}, patient=True)
        asyncio.run(crowd.come())
        assert crowd.statuses == {200, 429}
        assert set(crowd.counts) == {"answered", "refused"}, crowd.counts
        assert crowd.counts["answered"] >= 8
        assert post(server, **ASKED).status_code == 200


def test_a_second_signal_ends_it_at_once(server: Served) -> None:
    endless = {**ASKED, "max_tokens": 3900, "stream": True}
    with httpx.stream("POST", f"{server.url}/v1/chat/completions", json=endless, timeout=120) as answer:
        lines = answer.iter_lines()
        assert next(lines).startswith("data: ")
        server.end(signal.SIGTERM, signal.SIGTERM)
        with pytest.raises(httpx.RemoteProtocolError):
            list(lines)  # it was cut off
    assert not any("Traceback" in line for line in server.lines), server.errors()


def test_an_engine_that_does_not_start_ends_it(tmp_path: Path, environment: dict[str, str]) -> None:
    entry = f'name = "gone"\nsource = "{tmp_path / "gone"}"\ntrinity = 99\nparameters = 5'
    fails(run("serve", "--port", "0", "--config", catalog(tmp_path, entry), cwd=None, **environment), "gone")


def test_a_signal_while_its_engine_starts(arguments: list[str], environment: dict[str, str]) -> None:
    with Served(*arguments, "--preload", "tiny", **environment) as server:
        assert httpx.get(f"{server.url}/ready", timeout=60).json()["status"] == "starting"
        wait_until(server.children, 180)
        assert server.end(signal.SIGTERM) == 0
    assert not any("Ready" in line for line in server.lines)
    assert not any("Traceback" in line for line in server.lines), server.errors()
