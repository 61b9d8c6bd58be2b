"""Programs that use Chancellor, each in a process of its own: they print what they should and leave nothing behind."""

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from tests.tiny import make_model

pytestmark = pytest.mark.engine

# No `if __name__ == "__main__"`: a spawned engine must not run the user's script again.
SCRIPT = """
print("script runs", flush=True)
import chancellor
answer = chancellor.ask("What is 2+2?", catalog={catalog!r}, temperature=0, max_tokens=8)
print(answer.model_used, answer.metrics["engine"], answer.metrics["output_tokens"], flush=True)
{end}
"""


@pytest.fixture(scope="module")
def tiny_catalog(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A catalog of one small model: these tests start engines of their own, which the demo's would make slow."""
    folder = tmp_path_factory.mktemp("catalog")
    return write_catalog(folder, make_model(folder / "model", context=8192))


def write_catalog(folder: Path, model: Path) -> str:
    # float32: vLLM's attention for bfloat16 on AMX dies of an illegal instruction where the linear layers are as
    # small as here (nothing before it asks the kernel for the use of AMX).
    entry = f'[[models]]\nname = "tiny"\nsource = "{model}"\ntrinity = 96\nengine = {{ dtype = "float32" }}\n'
    path = folder / "chancellor.toml"
    path.write_text(entry, encoding="utf-8")
    return str(path)


def descendants(process: subprocess.Popen[str]) -> list[psutil.Process]:
    try:
        return psutil.Process(process.pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def spawned(process: subprocess.Popen[str]) -> bool:
    for one in descendants(process):
        with suppress(psutil.NoSuchProcess):  # a short-lived helper's of some library
            if "spawn_main" in " ".join(one.cmdline()):
                return True
    return False


def all_gone(processes: list[psutil.Process], timeout_s: float = 20) -> bool:
    return not psutil.wait_procs(processes, timeout=timeout_s)[1]


def test_ask_on_the_command_line() -> None:
    command = [sys.executable, "-m", "chancellor.cli", "ask", "What is 2+2?", "--temperature", "0", "--json"]
    made = subprocess.run(command, capture_output=True, text=True, check=False, timeout=400)
    assert made.returncode == 0, made.stderr
    answer = json.loads(made.stdout)
    assert set(answer) == {
        "response",
        "model_used",
        "trinity_score",
        "inference_time",
        "complexity",
        "decision",
        "metrics",
    }
    assert "4" in answer["response"]
    assert answer["model_used"] == "smollm2-135m-int8"
    assert answer["trinity_score"] == 96.66
    assert answer["inference_time"] == answer["metrics"]["inference_time_s"] > 0
    assert answer["metrics"]["gpu_memory_mib"] is None or answer["metrics"]["gpu_memory_mib"] > 0
    assert made.stderr.strip() == ""
    log = max(Path(os.environ["CHANCELLOR_LOG_DIR"]).glob("engine-*.log"), key=lambda path: path.stat().st_mtime)
    assert "Initializing a V1 LLM engine" in log.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("end", "code"),
    [("", 0), ("raise RuntimeError('the user made a mistake')", 1)],
    ids=["end", "exception"],
)
def test_a_script_without_a_main_guard(tiny_catalog: str, tmp_path: Path, end: str, code: int) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT.format(catalog=tiny_catalog, end=end), encoding="utf-8")
    with subprocess.Popen(
        [sys.executable, str(script)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "script runs\n"
        answered = process.stdout.readline()
        engines = descendants(process)
        rest, errors = process.communicate(timeout=120)
    assert answered == "tiny vllm 8\n", errors
    assert rest == ""
    assert process.returncode == code
    assert ("the user made a mistake" in errors) == (code == 1)
    assert "Exception ignored" not in errors
    assert code == 1 or errors == ""
    assert all_gone(engines)


def test_a_model_that_loads_but_cannot_run(tmp_path: Path) -> None:
    model = make_model(tmp_path / "model", hidden=32, heads=2)  # vLLM has no CPU attention for heads of 16
    config = Path(write_catalog(tmp_path, model))
    # Else plain transformers would answer: tests/integration/test_faults.py.
    config.write_text("[fallback]\ntransformers = false\n" + config.read_text(encoding="utf-8"), encoding="utf-8")
    command = [sys.executable, "-m", "chancellor.cli", "ask", "--config", str(config), "hello"]
    made = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert made.returncode == 2, made.stderr
    assert "cannot run it" in made.stderr
    assert "Traceback" not in made.stderr
    log = Path(made.stderr.split("log:")[1].strip())
    assert "head_dim=16" in log.read_text(encoding="utf-8")


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM], ids=["ctrl-c", "sigterm"])
@pytest.mark.parametrize("moment", ["starting", "answering"])
def test_a_signal_ends_everything(tiny_catalog: str, sent: signal.Signals, moment: str) -> None:
    command = [sys.executable, "-m", "chancellor.cli", "ask", "--config", tiny_catalog, "--max-tokens", "8000"]
    command += ["--temperature", "0", "hello"]  # random weights soon repeat themselves, and never end
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        deadline = time.monotonic() + 300  # a busy machine imports slowly
        if moment == "starting":
            while not spawned(process) and time.monotonic() < deadline:
                time.sleep(0.1)
            time.sleep(3)
        else:
            assert process.stdout is not None
            assert process.stdout.read(1)  # the first token
        engines = descendants(process)
        # A terminal sends Ctrl-C to the whole group, a supervisor sends SIGTERM to the one process.
        if sent is signal.SIGINT:
            os.killpg(process.pid, sent)
        else:
            process.send_signal(sent)
        _, errors = process.communicate(timeout=120)
    assert process.returncode == (130 if sent is signal.SIGINT else 143), errors
    assert "Traceback" not in errors
    assert engines
    assert all_gone(engines)
