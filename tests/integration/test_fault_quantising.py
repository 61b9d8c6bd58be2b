"""A catalog entry that is quantised at its first use, on a full disk, and in a program that is killed meanwhile."""

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import psutil
import pytest

from chancellor.checkpoints import inspect_checkpoint
from tests.integration.faults import HEAD, run
from tests.tiny import make_model

pytestmark = pytest.mark.engine

ENTRY = 'model = spec("tiny", model.source).model_copy(update={"scheme": "int8"})\n'


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("quantising") / "model", context=4096)


def small_disk(folder: Path) -> list[str]:
    """Return the command that runs a program with a disk of 16 MiB at `folder`, or nothing if none may be made."""
    mount = f'mount -t tmpfs -o size=16m none "{folder}" && exec "$@"'
    for unshare in (["unshare", "--mount"], ["unshare", "--user", "--map-root-user", "--mount"]):
        command = [*unshare, "sh", "-c", mount, "sh"]
        try:
            if subprocess.run([*command, "true"], capture_output=True, check=False, timeout=60).returncode == 0:
                return command
        except FileNotFoundError:
            break
    return []


def test_a_disk_that_is_full_while_it_is_quantised(model: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    cache.mkdir()
    under = small_disk(cache)
    found = run(
        ENTRY
        + textwrap.dedent(
            f"""
            import resource
            from pathlib import Path
            from chancellor import progress
            from chancellor.settings import settings
            cache, small = settings().cache_dir, {bool(under)}
            limit = resource.getrlimit(resource.RLIMIT_FSIZE)

            def fill(step):
                if step["stage"] != "quantize":
                    resource.setrlimit(resource.RLIMIT_FSIZE, limit)
                elif step["completed"] == 1 and not small:
                    resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, limit[1]))
                elif step["completed"] == 1:
                    with suppress(OSError), open(cache / "filler", "wb", buffering=0) as filler:
                        while filler.write(bytes(4096)):
                            pass

            settle("thread")
            with progress.listening(fill):
                deltas = list(pool.generate(model, request(max_tokens=20), Ladder(FallbackOptions())))
            found["tokens"] = sum(len(delta.token_ids) for delta in deltas)
            found["scheme"], found["steps"] = deltas[-1].quantization, deltas[-1].fallbacks
            found["rests"] = [file.name for file in (cache / "checkpoints").iterdir() if file.suffix != ".lock"]
            """
        ),
        model,
        still=["unquantised"],
        under=under,
        CHANCELLOR_CACHE_DIR=str(cache),
    )
    (step,) = found["steps"]
    assert (step["step"], step["cause"]) == ("unquantised", "scheme")
    assert ("No space left on device" if under else "File too large") in step["reason"]
    assert (found["tokens"], found["scheme"], found["rests"]) == (20, None, [])


def test_a_program_that_is_killed_while_it_quantises(model: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    quantising = textwrap.dedent(
        """
        from chancellor import progress

        def hold(step):
            if step["stage"] == "quantize" and step["completed"]:
                print("writing", flush=True)
                time.sleep(600)

        with progress.listening(hold):
            list(pool.generate(model, request(max_tokens=5), Ladder(FallbackOptions())))
        """
    )
    script = HEAD.format(model=str(model)) + ENTRY + quantising
    environment = {**os.environ, "CHANCELLOR_CACHE_DIR": str(cache)}
    with subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, env=environment
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "writing\n"
        children = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(signal.SIGKILL)
    assert psutil.wait_procs(children, timeout=60)[1] == []
    (partial,) = (cache / "checkpoints").glob(".*.partial")
    found = run(
        ENTRY
        + textwrap.dedent(
            """
            settle("thread")
            deltas = list(pool.generate(model, request(max_tokens=20), Ladder(FallbackOptions())))
            found["tokens"] = sum(len(delta.token_ids) for delta in deltas)
            found["scheme"], found["steps"] = deltas[-1].quantization, deltas[-1].fallbacks
            """
        ),
        model,
        CHANCELLOR_CACHE_DIR=str(cache),
    )
    assert (found["tokens"], found["scheme"], found["steps"]) == (20, "int8", [])
    (made,) = (file for file in (cache / "checkpoints").iterdir() if file.suffix != ".lock")
    assert made.name == partial.name.removeprefix(".").removesuffix(".partial")
    inspect_checkpoint(made)
