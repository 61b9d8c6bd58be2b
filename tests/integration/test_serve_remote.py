"""`chancellor serve` before a model on vLLM's own server: callers, the endpoint, that server, and its end."""

import json
import os
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import openai
import psutil
import pytest

from tests.integration.served import Served, wait_until
from tests.integration.test_remote import CONTEXT, VLLMServer

pytestmark = pytest.mark.engine
CHAT = "/v1/chat/completions"
SUM: Any = [{"role": "user", "content": "What is two plus two?"}]
GREEDY: dict[str, Any] = {"temperature": 0, "max_tokens": 12, "extra_body": {"ignore_eos": True}}
LONG: dict[str, Any] = {"messages": SUM, "temperature": 0, "max_tokens": CONTEXT - 60, "ignore_eos": True}


@pytest.fixture(scope="module")
def upstream(tmp_path_factory: pytest.TempPathFactory) -> Iterator[VLLMServer]:
    server = VLLMServer(tmp_path_factory.mktemp("upstream"))
    try:
        server.start()
        yield server
    finally:
        server.kill()


@pytest.fixture(scope="module")
def server(upstream: VLLMServer, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    path = tmp_path_factory.mktemp("serve") / "chancellor.toml"
    url = f"http://127.0.0.1:{upstream.port}/v1"
    far = f'kind = "openai"\nbase_url = "{url}"\napi_key_env = "TINY_KEY"\n'
    here = 'kind = "transformers"\ndtype = "float32"\nmax_model_len = 512\n'
    path.write_text(
        f'[[models]]\nname = "far"\nsource = "tiny"\ntrinity = 99\nparameters = 1_000\n[models.engine]\n{far}\n'
        f'[[models]]\nname = "here"\nsource = "{tiny_model}"\ntrinity = 96\nparameters = 1_000\n[models.engine]\n{here}'
    )
    with Served("--config", str(path), "--preload", "far", TINY_KEY="secret") as server:
        yield server.ready()


@pytest.fixture(scope="module")
def client(server: Served) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=120)


@pytest.fixture(scope="module")
def direct(upstream: VLLMServer) -> openai.OpenAI:
    """A client of the upstream itself."""
    return openai.OpenAI(base_url=f"http://127.0.0.1:{upstream.port}/v1", api_key="secret", max_retries=0, timeout=120)


def test_a_plain_answer(client: openai.OpenAI, direct: openai.OpenAI) -> None:
    raw = client.chat.completions.with_raw_response.create(model="far", messages=SUM, **GREEDY)
    answer, theirs = raw.parse(), direct.chat.completions.create(model="tiny", messages=SUM, **GREEDY)
    assert (answer.model, raw.headers["x-chancellor-model"]) == ("far", "far")
    assert answer.choices[0].message.content == theirs.choices[0].message.content != ""
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage is not None
    assert theirs.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (theirs.usage.prompt_tokens, 12)


def test_a_stream(client: openai.OpenAI) -> None:
    whole = client.chat.completions.create(model="far", messages=SUM, **GREEDY)
    options: Any = {"stream": True, "stream_options": {"include_usage": True}}
    chunks: Any = list(client.chat.completions.create(model="far", messages=SUM, **GREEDY, **options))
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].message.content
    assert {chunk.model for chunk in chunks} == {"far"}
    assert chunks[-1].usage.completion_tokens == 12
    # On a busy machine some tokens come joined, but not nearly all of so many.
    longer: Any = {**GREEDY, "max_tokens": 1000}
    assert len(list(client.chat.completions.create(model="far", messages=SUM, stream=True, **longer))) > 4


def test_two_answers_have_two_seeds(client: openai.OpenAI) -> None:
    def texts(**more: Any) -> list[str | None]:
        answer = client.chat.completions.create(model="far", messages=SUM, **{**GREEDY, "temperature": 1.0, **more})
        return [choice.message.content for choice in answer.choices]

    both = texts(n=2, seed=5)
    assert both == [*texts(seed=5), *texts(seed=6)]
    assert both[0] != both[1]


def test_a_raw_completion(client: openai.OpenAI, direct: openai.OpenAI) -> None:
    prompt = "The quick brown fox"
    theirs = direct.completions.create(model="tiny", prompt=prompt, **GREEDY).choices[0].text
    assert client.completions.create(model="far", prompt=prompt, **GREEDY).choices[0].text == theirs
    pieces = client.completions.create(model="far", prompt=prompt, **GREEDY, stream=True)
    assert "".join(piece.choices[0].text for piece in pieces if piece.choices) == theirs


def test_vllms_own_sampling_reaches_it(client: openai.OpenAI) -> None:
    greedy = client.chat.completions.create(model="far", messages=SUM, **GREEDY).choices[0].message.content
    for few in ({"top_k": 1}, {"min_p": 1.0}):
        asked: Any = {**GREEDY, "temperature": 2.0, "extra_body": {"ignore_eos": True, **few}}
        assert client.chat.completions.create(model="far", messages=SUM, **asked).choices[0].message.content == greedy
    asked = {**GREEDY, "extra_body": {"ignore_eos": True, "repetition_penalty": 1.9}}
    assert client.chat.completions.create(model="far", messages=SUM, **asked).choices[0].message.content != greedy


def test_the_upstreams_refusal(client: openai.OpenAI, upstream: VLLMServer) -> None:
    with pytest.raises(openai.BadRequestError) as long:
        client.chat.completions.create(model="far", messages=[{"role": "user", "content": "word " * 2 * CONTEXT}])
    assert long.value.code == "context_length_exceeded"
    assert str(upstream.port) not in str(long.value)


def test_a_caller_who_hangs_up_frees_the_upstream(server: Served, upstream: VLLMServer) -> None:
    before = upstream.metric("generation_tokens_total")
    with httpx.stream("POST", f"{server.url}{CHAT}", json={"model": "far", "stream": True, **LONG}, timeout=120) as one:
        next(one.iter_lines())
    wait_until(lambda: upstream.metric("num_requests_running") == 0, 60)
    assert upstream.metric("generation_tokens_total") - before < LONG["max_tokens"]

    # Not streamed: its engine stands still until the caller has gone.
    before = upstream.metric("generation_tokens_total")
    upstream.stop_engine()
    try:
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(f"{server.url}{CHAT}", json={"model": "far", **LONG}, timeout=2)
        wait_until(lambda: _running(server) == 0, 60)
    finally:
        _continue(upstream)
    wait_until(lambda: upstream.metric("num_requests_running") == 0, 60)
    assert upstream.metric("generation_tokens_total") - before < LONG["max_tokens"]


def test_an_upstream_that_is_killed(server: Served, upstream: VLLMServer) -> None:
    """Before the first token, by SIGKILL: by name there is no answer, and the Chancellor finds another."""

    def ask(model: str, stream: bool) -> httpx.Response:
        body = {"model": model, "stream": stream, **LONG, "max_tokens": 8, "chancellor": {"decision": True}}
        return httpx.post(f"{server.url}{CHAT}", json=body, timeout=200)

    upstream.stop_engine()
    asked = [(model, stream) for model in ("far", "chancellor") for stream in (False, True)]
    with ThreadPoolExecutor(len(asked)) as threads:
        waiting = [threads.submit(ask, *one) for one in asked]
        wait_until(lambda: _running(server) == len(asked), 60)
        time.sleep(1)
        assert not any(one.done() for one in waiting)
        upstream.kill()
        answers = [one.result() for one in waiting]
    for (model, stream), answer in zip(asked, answers, strict=True):
        assert str(upstream.port) not in answer.text
        if model == "far":
            assert answer.status_code == 503
            assert answer.json()["error"]["code"] in ("engine_died", "engine_unavailable")
            assert "x-chancellor-model" not in answer.headers
            continue
        assert answer.status_code == 200
        assert answer.headers["x-chancellor-model"] == "here"
        told = json.loads(answer.text.split("\n\n")[-3].removeprefix("data: ")) if stream else answer.json()
        assert told["model"] == "here"
        assert told["chancellor"]["decision"]["model"] == "far"
        assert [step["step"] for step in told["chancellor"]["metrics"]["fallbacks"]][-1] == "other_model"
    ready = httpx.get(f"{server.url}/ready", timeout=60)
    assert str(upstream.port) not in ready.text


def _running(server: Served) -> float:
    return sum(server.metric("chancellor_http_requests_running").values()) - 1  # without this very look


def _continue(upstream: VLLMServer) -> None:
    for process in upstream.processes[1:]:
        with suppress(psutil.NoSuchProcess):
            os.kill(process.pid, signal.SIGCONT)
