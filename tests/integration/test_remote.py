"""A model behind vLLM's own server, as an engine of the pool."""

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from chancellor import ModelSpec
from chancellor.catalog import EngineOptions
from chancellor.engines import Delta, EnginePool, GenerationRequest, Guide
from chancellor.engines.vllm_args import process_environment
from chancellor.errors import (
    EngineDiedError,
    EngineStartError,
    GenerationError,
    InvalidInputError,
    PromptTooLongError,
)
from tests.tiny import make_model

pytestmark = pytest.mark.engine

CONTEXT = 4096  # so that an answer that fills it takes long: some callers leave in the middle
SCHEMA = {
    "type": "object",
    "properties": {"color": {"enum": ["red", "green"]}, "big": {"type": "boolean"}},
    "required": ["color", "big"],
    "additionalProperties": False,
}
TOOL = {"type": "function", "function": {"name": "paint", "description": "Paints.", "parameters": SCHEMA}}


class VLLMServer:
    """`vllm serve`, which can be killed and started again on its port."""

    def __init__(self, folder: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self._folder, self._log = make_model(folder / "model", context=CONTEXT), folder / "log"
        self.processes: list[psutil.Process] = []

    def start(self) -> None:
        command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(self._folder)]
        command += ["--served-model-name", "tiny", "--host", "127.0.0.1", "--port", str(self.port)]
        command += ["--dtype", "float32", "--max-model-len", str(CONTEXT), "--enforce-eager", "--max-num-seqs", "8"]
        command += ["--enable-auto-tool-choice", "--tool-call-parser", "hermes", "--api-key", "secret"]
        command += ["--structured-outputs-config", '{"backend": "xgrammar", "disable_any_whitespace": true}']
        environment = {**os.environ, **process_environment(), "VLLM_CPU_KVCACHE_SPACE": "1"}
        environment.pop("VLLM_LOGGING_CONFIG_PATH", None)
        with self._log.open("ab") as output:
            started = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=environment)
        process = psutil.Process(started.pid)
        self.processes = [process]
        deadline = time.monotonic() + 400
        while not self._answers():
            told = self._log.read_text(encoding="utf-8", errors="replace")[-3000:]
            assert started.poll() is None, told
            assert time.monotonic() < deadline, told
            time.sleep(0.5)
        self.processes += process.children(recursive=True)

    def _answers(self) -> bool:
        with suppress(httpx.HTTPError):
            return httpx.get(f"http://127.0.0.1:{self.port}/health").is_success
        return False

    def metric(self, name: str) -> float:
        told = httpx.get(f"http://127.0.0.1:{self.port}/metrics", timeout=60).text.splitlines()
        return sum(float(line.split()[-1]) for line in told if line.startswith(f"vllm:{name}{{"))

    def kill(self) -> None:
        """kill -9, of all its processes."""
        for process in self.processes:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(self.processes, 20)

    def stop_engine(self) -> None:
        """Let its engine stand still, so that it takes requests and makes no token."""
        for process in self.processes[1:]:
            with suppress(psutil.NoSuchProcess):
                process.send_signal(signal.SIGSTOP)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[VLLMServer]:
    server = VLLMServer(tmp_path_factory.mktemp("server"))
    try:
        server.start()
        yield server
    finally:
        server.kill()


@pytest.fixture(scope="module")
def spec(server: VLLMServer) -> Iterator[ModelSpec]:
    os.environ["TINY_KEY"] = "secret"
    url = f"http://127.0.0.1:{server.port}/v1"
    options = EngineOptions(kind="openai", base_url=url, api_key_env="TINY_KEY")
    yield ModelSpec(name="far", source="tiny", trinity=97, engine=options)
    del os.environ["TINY_KEY"]


@pytest.fixture(scope="module")
def pool() -> Iterator[EnginePool]:
    pool = EnginePool()
    yield pool
    pool.close()


def ask(text: str = "What is two plus two?", **options: Any) -> GenerationRequest:
    usual = {"max_tokens": 12, "temperature": 0, "stream": True, "ignore_eos": True}
    return GenerationRequest(**{"messages": [{"role": "user", "content": text}], **usual, **options})


def text_of(deltas: list[Delta]) -> str:
    return "".join(delta.text for delta in deltas)


def test_plain_and_streamed(pool: EnginePool, spec: ModelSpec) -> None:
    [whole] = pool.generate(spec, ask(stream=False))
    streamed = list(pool.generate(spec, ask()))
    assert text_of(streamed) == whole.text != ""
    for last in (whole, streamed[-1]):
        assert (last.finish_reason, last.output_tokens, last.model, last.engine) == ("length", 12, "far", "openai")
        assert last.input_tokens is not None
        assert last.input_tokens > 5
        assert last.inference_time_s
    assert streamed[-1].time_to_first_token_s
    assert len(list(pool.generate(spec, ask(max_tokens=1000)))) > 1  # of twelve, all may come joined
    assert pool.stats()["far"].running == 0


def test_seed_stop_and_penalties(pool: EnginePool, spec: ModelSpec) -> None:
    def answer(**options: Any) -> Delta:
        [whole] = pool.generate(spec, ask(stream=False, **options))
        return whole

    one, two = answer(temperature=1.0, seed=1), answer(temperature=1.0, seed=2)
    assert answer(temperature=1.0, seed=1).text == one.text != two.text
    stop = one.text.strip()[2:4]
    cut = answer(temperature=1.0, seed=1, stop=(stop,))
    assert (cut.finish_reason, cut.text) == ("stop", one.text[: one.text.index(stop)])
    biased = answer(logit_bias=((7, 100.0),), presence_penalty=0.5, frequency_penalty=0.5, logprobs=0)
    assert len({step.token for step in biased.logprobs}) == 1


def test_logprobs(pool: EnginePool, spec: ModelSpec) -> None:
    for request in (ask(logprobs=2), ask(messages=[], prompt="The quick brown", logprobs=2)):
        deltas = list(pool.generate(spec, request))
        steps = [step for delta in deltas for step in delta.logprobs]
        assert len(steps) == 12
        for step in steps:
            assert step.logprob <= 0
            assert step.token in dict(step.top_tokens)
            if request.prompt is None:  # a raw completion has one figure for all tokens of the same text
                assert step.logprob == step.top_tokens[0][1]  # greedy
                assert len(step.top_tokens) >= 2


def test_raw_prompt(pool: EnginePool, spec: ModelSpec) -> None:
    [text] = pool.generate(spec, ask(messages=[], prompt="The quick brown fox", stream=False))
    assert text.output_tokens == 12
    ids = list(pool.generate(spec, ask(messages=[], prompt=(5, 6, 7))))
    assert (ids[-1].input_tokens, ids[-1].output_tokens) == (3, 12)
    with pytest.raises(InvalidInputError):
        list(pool.generate(spec, ask(messages=[], prompt=(10_000_000,))))


@pytest.mark.parametrize("stream", [True, False])
def test_guides(pool: EnginePool, spec: ModelSpec, stream: bool) -> None:
    def answer(guide: Guide) -> str:
        request = ask(guide=guide, stream=stream, max_tokens=100, ignore_eos=False)
        deltas = list(pool.generate(spec, request))
        assert deltas[-1].finish_reason == "stop"
        return text_of(deltas)

    painted = json.loads(answer(Guide("json_schema", SCHEMA)))
    assert painted["color"] in ("red", "green")
    assert isinstance(painted["big"], bool)
    assert answer(Guide("choice", ("yes", "no"))) in ("yes", "no")
    assert answer(Guide("regex", "[ab]{3}")) in {f"{a}{b}{c}" for a in "ab" for b in "ab" for c in "ab"}
    assert answer(Guide("grammar", 'root ::= "x" | "y"')) in ("x", "y")


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("choice", ["required", "paint"])
def test_forced_tools(pool: EnginePool, spec: ModelSpec, stream: bool, choice: str) -> None:
    request = ask(tools=(TOOL,), tool_choice=choice, stream=stream, max_tokens=200, ignore_eos=False)
    deltas = list(pool.generate(spec, request))
    pieces = [piece for delta in deltas for piece in delta.tool_calls]
    assert pieces[0].name == "paint"
    assert pieces[0].id
    # vLLM's server holds only the arguments of functions that are "strict" to their schema.
    json.loads("".join(piece.arguments for piece in pieces if piece.index == 0))
    assert deltas[-1].finish_reason == "tool_calls"


def test_tools_that_the_model_may_call(pool: EnginePool, spec: ModelSpec) -> None:
    deltas = list(pool.generate(spec, ask(tools=(TOOL,))))
    assert deltas[-1].output_tokens == 12


def test_refused(pool: EnginePool, spec: ModelSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(PromptTooLongError, match=f"{CONTEXT}"):
        list(pool.generate(spec, ask("word " * 2 * CONTEXT)))
    with pytest.raises(InvalidInputError):
        list(pool.generate(spec, ask(guide=Guide("regex", "["))))
    nameless = spec.model_copy(update={"source": "huge"})
    with pytest.raises(EngineStartError, match=r"(?s)has no model 'huge'.*It has: tiny"):
        list(pool.generate(nameless, ask()))
    monkeypatch.setenv("TINY_KEY", "wrong")
    keyless = spec.model_copy(update={"engine": spec.engine.model_copy(update={"max_queue": 7})})
    with pytest.raises(EngineStartError, match=r"(?s)does not take the key \(401\).*TINY_KEY"):
        list(pool.generate(keyless, ask()))


def test_leaving_frees_the_server(pool: EnginePool, spec: ModelSpec, server: VLLMServer) -> None:
    before, wanted = server.metric("generation_tokens_total"), CONTEXT - 50
    deltas = pool.generate(spec, ask(max_tokens=wanted))
    next(deltas)
    deltas.close()
    deadline = time.monotonic() + 60
    while server.metric("num_requests_running") > 0 or pool.stats()["far"].running > 0:
        assert time.monotonic() < deadline
        time.sleep(0.2)
    assert server.metric("generation_tokens_total") - before < wanted


async def test_killed(pool: EnginePool, spec: ModelSpec, server: VLLMServer) -> None:
    deltas = pool.agenerate(spec, ask(max_tokens=CONTEXT - 50, retries=3))
    assert (await anext(deltas)).text
    server.kill()
    with pytest.raises(GenerationError, match="lost in the middle"):
        async for _ in deltas:
            pass
    with pytest.raises((EngineDiedError, EngineStartError)):
        list(pool.generate(spec, ask(retries=1)))

    await asyncio.to_thread(server.start)
    await asyncio.sleep(11)  # a server that did not answer is left alone for ten seconds at most
    assert text_of(list(pool.generate(spec, ask(retries=1))))

    server.stop_engine()
    waiting = asyncio.create_task(asyncio.to_thread(lambda: list(pool.generate(spec, ask(retries=1)))))
    while (await asyncio.to_thread(pool.stats))["far"].running == 0:  # noqa: ASYNC110 - in another thread
        await asyncio.sleep(0.1)
    await asyncio.sleep(1)
    assert not waiting.done()
    server.kill()
    with pytest.raises((EngineDiedError, EngineStartError), match="cannot be reached"):
        await waiting
