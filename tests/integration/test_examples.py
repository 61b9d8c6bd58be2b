"""Every example runs, and prints what it is there to show. They share the process's engines, as one program would."""

import os
import re
import runpy
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from chancellor import Catalog
from chancellor.engines import default_pool
from chancellor.engines.hardware import default_dtype
from chancellor.engines.vllm_args import process_environment
from chancellor.quantization.prepare import prepare
from tests.integration.conftest import INT8, PLAIN
from tests.integration.studio import Studio
from tests.integration.test_processes import write_catalog

pytestmark = pytest.mark.engine

EXAMPLES = Path(__file__).parents[2] / "examples"
Run = Callable[[], list[str]]


@pytest.fixture(scope="module", autouse=True)
def engines() -> Iterator[None]:
    """The examples' engines are no longer needed after the last of them."""
    yield
    default_pool().close()


@pytest.fixture
def run(
    request: pytest.FixtureRequest,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> Run:
    """Runs the example that the test is named after, where no catalog file lies, and returns the lines it prints."""
    example = EXAMPLES / f"{request.function.__name__.removeprefix('test_')}.py"
    monkeypatch.chdir(tmp_path)

    def run() -> list[str]:
        runpy.run_path(str(example), run_name="__main__")
        assert list(tmp_path.iterdir()) == []  # it leaves nothing behind
        return capsys.readouterr().out.splitlines()

    return run


def test_each_example_has_a_test() -> None:
    tested = {name.removeprefix("test_") for name in globals() if name.startswith("test_")}
    assert {file.stem for file in EXAMPLES.glob("*.py")} == tested - {"each_example_has_a_test", "each_says_how"}


def test_each_says_how() -> None:
    for file in EXAMPLES.glob("*.py"):
        assert f" python examples/{file.name}\n" in file.read_text(encoding="utf-8"), file.name


def test_embed(run: Run) -> None:
    lines = run()
    assert lines[0] == "Dear Ada,"
    assert "France" in lines[2]
    assert lines[-2:] == ["Your help desk", f"({INT8}: low complexity: the light model)"]


def test_single_node(run: Run) -> None:
    easy, hard = run()
    assert easy == "When do you open? -> for now (low complexity: the light model)"
    assert hard.endswith("-> for the night (high complexity: the strong model)")


def test_swap_analyzer(run: Run) -> None:
    assert run() == [
        f"Name a colour. no hard subject -> {INT8}",
        f"Design a distributed cache. about a cache -> {PLAIN}",
    ]


def test_swap_selection(run: Run) -> None:
    assert run() == [
        f"paying=False: {INT8}, cheap is good enough",
        f"paying=True: {PLAIN}, a hard question of a paying customer",
    ]


def test_swap_generation(run: Run) -> None:
    answer, metrics = run()
    assert "12 euros" in answer
    assert re.fullmatch(r"[1-9]\d* tokens in \d+\.\d\d s", metrics)


def test_swap_metrics(run: Run) -> None:
    answer, bill = run()
    assert answer
    assert 0 < float(bill.removesuffix(" cents")) < 0.001


def test_stream(run: Run) -> None:
    lines = [line for line in run() if line]
    assert lines[: len(lines) // 2] == lines[len(lines) // 2 :]  # sync and async, greedy
    assert lines[:2] == ["[analyze_complexity]", "[select_model]"]
    assert "France" in "".join(lines[2:-2])
    assert lines[-2:] == ["[generate]", "[record_metrics]"]


def test_agent(run: Run) -> None:
    easy, hard = " ".join(run()).split("human: ")[1:]
    for text, model, reason in (
        (easy, INT8, "low complexity: the light model"),
        (hard, PLAIN, "high complexity: the strong model"),
    ):
        assert re.search(rf"{model} \({reason}\): +add{{'a': \d+, 'b': \d+}} tool: \d+ ", text)
        assert re.search(rf"{model} \(it goes on with its tools' results\): .*\w", text)
    assert "add{'a': 3, 'b': 4} tool: 7 " in easy


def test_tool_graph(run: Run) -> None:
    lines = run()
    assert [line.split(":")[0] for line in lines[:3]] == ["human", "ai", "tool"]
    assert "'name': 'multiply', 'args': {'a': 6, 'b': 7}" in lines[1]
    assert lines[2] == "tool: 42"
    assert "42" in lines[3].removeprefix("ai: ")


def test_structured(run: Run) -> None:
    (review,) = run()
    assert re.fullmatch(r"Review\(product=['\"].{,30}['\"], sentiment='(positive|negative)'\)", review)


def test_conversation(run: Run) -> None:
    lines = run()
    assert lines[0] == f"What is 2+2? -> generate waits, with {INT8}"
    assert lines[1].startswith("2 messages: ")
    assert lines[2] == f"And 3+3? -> generate waits, with {INT8}"
    assert lines[3].startswith("4 messages: ")
    assert re.match(rf"Once more, with {PLAIN}: \w", lines[4])


def test_remote(run: Run, server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_BASE_URL", server)
    lines = "\n".join(run())
    assert re.match(rf"What is 2\+2\? -> {INT8} \(vllm\)\n.*\w", lines)
    assert re.search(r"sky looks blue\. -> on the server \(openai\)\n.*\w", lines)


def test_studio(run: Run, studio: Studio, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LANGGRAPH_URL", str(studio.client.http.client.base_url))
    lines = run()
    starting = [line for line in lines if line.startswith("tiny: ")]
    assert starting[-1].startswith("tiny: ready")
    nodes = [line for line in lines if re.fullmatch(r"\[\w+\]", line)]
    assert nodes == ["[analyze_complexity]", "[select_model]", "[generate]", "[record_metrics]"]
    assert re.fullmatch(r"\(tiny, [1-9]\d* tokens\)", lines[-1])
    assert [one["name"] for one in studio.client.assistants.search()] == ["chancellor"]  # it tidies up


@pytest.fixture
def studio(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Studio]:
    catalog = write_catalog(tmp_path_factory.mktemp("catalog"), tiny_model)
    server = Studio(tmp_path_factory.mktemp("studio"), catalog)
    try:
        yield server
        server.check()
    finally:
        server.close()


@pytest.fixture
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server of vLLM's, started as the example says."""
    dtype = default_dtype()
    folder = prepare(Catalog.demo()[INT8], dtype).folder
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(folder)]
    command += ["--served-model-name", "smollm2", "--host", "127.0.0.1", "--port", str(port)]
    command += ["--dtype", dtype, "--max-model-len", "512", "--enforce-eager"]
    environment = {**os.environ, **process_environment(), "VLLM_CPU_KVCACHE_SPACE": "1"}
    environment.pop("VLLM_LOGGING_CONFIG_PATH", None)
    log = tmp_path_factory.mktemp("server") / "log"
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=environment)
    try:
        deadline = time.monotonic() + 400
        while not answers(f"http://127.0.0.1:{port}/health"):
            assert process.poll() is None, log.read_text(encoding="utf-8", errors="replace")[-3000:]
            assert time.monotonic() < deadline, log.read_text(encoding="utf-8", errors="replace")[-3000:]
            time.sleep(0.5)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.terminate()
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(60)


def answers(url: str) -> bool:
    try:
        return httpx.get(url, timeout=10).is_success
    except httpx.HTTPError:
        return False
