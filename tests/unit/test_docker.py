"""What of the images can be checked without building them: the files, the flags of pip, the entry point."""

import fnmatch
import http.server
import json
import os
import re
import shlex
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from chancellor.server import ServeOptions

ROOT = Path(__file__).parents[2]
IMAGES = ["cpu", "cuda"]
ENTRYPOINT = ROOT / "docker/entrypoint.sh"
FOR_THE_EYE = {"--quiet", "--progress-bar", "--no-cache-dir", "--editable", "--index-url"}


def instructions(image: str) -> list[str]:
    """Return the image's instructions, each on a line."""
    text = (ROOT / f"docker/{image}.Dockerfile").read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    return "\n".join(lines).replace("\\\n", " ").splitlines()


def copied(image: str) -> list[str]:
    """Return what is copied out of the repository."""
    found = [line.split()[1:] for line in instructions(image) if line.startswith("COPY ") and "--from=" not in line]
    return [name for words in found for name in [word for word in words if not word.startswith("--")][:-1]]


def ignored(path: str) -> bool:
    """Return whether .dockerignore keeps a path out: the last pattern that it, or a folder above it, matches says."""
    parts, kept_out = Path(path).parts, False
    for line in (ROOT / ".dockerignore").read_text(encoding="utf-8").split():
        pattern = line.removeprefix("!")
        above = ["/".join(parts[: number + 1]) for number in range(len(parts))]
        names = parts if pattern.startswith("**/") else above
        if any(fnmatch.fnmatchcase(name, pattern.removeprefix("**/")) for name in names):
            kept_out = not line.startswith("!")
    return kept_out


def pip_flags(text: str) -> dict[str, set[str]]:
    """Return the flags that decide what is installed, by what pip installs: `.`, torch, or a requirements file."""
    found: dict[str, set[str]] = {}
    for command in re.findall(r"\bpip install ([^|&;}\n]+)", text):
        words = shlex.split(command.partition("#")[0])
        flags = {word for word in words if word.startswith("--")} - FOR_THE_EYE
        targets = [word for word in words if word in (".", "$torch") or word.startswith("requirements/")]
        for target in targets:
            found.setdefault(target, set()).update(flags)
    return found


@pytest.mark.parametrize("image", IMAGES)
def test_what_is_copied_is_there_and_not_kept_out(image: str) -> None:
    assert {"requirements/", "pyproject.toml", "chancellor/", "nodes/", "graphs/"} <= set(copied(image))
    for name in copied(image):
        assert (ROOT / name).exists(), name
        assert not ignored(name), name
        for path in [path for path in (ROOT / name).rglob("*.py") if "__pycache__" not in path.parts]:
            assert not ignored(str(path.relative_to(ROOT))), path
    for name in (
        ".git/config",
        ".venv/pyvenv.cfg",
        "docs/serving.md",
        "chancellor/__pycache__/x.pyc",
        "tests/fakes.py",
    ):
        assert ignored(name), name


@pytest.mark.parametrize("image", IMAGES)
def test_what_setuptools_wants_is_copied(image: str) -> None:
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    wanted = {*re.findall(r'^readme = "(.+)"', project, re.MULTILINE), "LICENSE"}
    links = {path.readlink().name + "/" for path in (ROOT / "chancellor").iterdir() if path.is_symlink()}
    assert wanted | links <= set(copied(image))


@pytest.mark.parametrize("image", IMAGES)
def test_the_locks_are_installed_as_make_does(image: str) -> None:
    flags = pip_flags("\n".join(instructions(image)))
    by_make = pip_flags((ROOT / "requirements/install.sh").read_text(encoding="utf-8").replace('"$torch"', "$torch"))
    assert flags.pop(f"requirements/{image}.txt") == by_make.pop("requirements/cpu.txt") == {"--no-deps"}
    if image == "cpu":
        assert flags.pop("$torch") == by_make["$torch"]
    by_make.pop("$torch")
    assert flags == by_make
    for name in {*flags, f"requirements/{image}.txt"} - {"."}:
        assert (ROOT / name).is_file()


def test_torch_comes_from_where_make_takes_it() -> None:
    (index,) = (line.partition("=")[2] for line in instructions("cpu") if line.startswith("ARG TORCH_INDEX="))
    assert f"--index-url {index} " in (ROOT / "requirements/install.sh").read_text(encoding="utf-8")


@pytest.mark.parametrize("image", IMAGES)
def test_the_image_serves_as_nobody_in_particular(image: str) -> None:
    lines = instructions(image)
    assert 'ENTRYPOINT ["tini", "--", "chancellor-entrypoint"]' in lines
    assert 'CMD ["serve", "--host", "0.0.0.0"]' in lines
    assert f"EXPOSE {ServeOptions().port}" in lines
    (user,) = (line.split()[1] for line in lines if line.startswith("USER "))
    assert user.isdecimal()  # Kubernetes' runAsNonRoot sees nothing in a name
    assert int(user) > 0
    (timeout,) = re.findall(r"--stop-timeout=(\d+)", (ROOT / f"docker/{image}.Dockerfile").read_text(encoding="utf-8"))
    assert int(timeout) > ServeOptions().drain_s + ServeOptions().drain_delay_s


@pytest.mark.parametrize("image", IMAGES)
def test_the_health_check_looks_where_the_server_is(image: str) -> None:
    (line,) = (one for one in instructions(image) if one.startswith("HEALTHCHECK "))
    command = json.loads(line.partition(" CMD ")[2])
    asked: list[tuple[str, str]] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append((self.path, self.headers["host"]))
            self.send_response(200 if self.path == "/health" else 404)
            self.end_headers()

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        port = server.server_address[1]
        thread = threading.Thread(target=server.handle_request)
        thread.start()
        environment = {"CHANCELLOR_SERVE_PORT": str(port)}
        subprocess.run([sys.executable, *command[1:]], env=environment, check=True, timeout=60)
        thread.join(10)
    assert asked == [("/health", f"127.0.0.1:{port}")]
    assert command[0] == "python"
    assert f"'{ServeOptions().port}'" in command[-1]  # where no variable says another


def entered(folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the entry point where `chancellor` only says what it was called with."""
    command = folder / "chancellor"
    command.write_text('#!/bin/sh\nprintf "<%s>" "$@"\n')
    command.chmod(0o755)
    path = f"{folder}{os.pathsep}{os.environ['PATH']}"
    return subprocess.run(
        [ENTRYPOINT, *arguments], env={"PATH": path, **environment}, capture_output=True, text=True, check=False
    )


def test_the_entry_point_serves_nobody_without_keys(tmp_path: Path) -> None:
    assert os.access(ENTRYPOINT, os.X_OK)
    subprocess.run(["sh", "-n", str(ENTRYPOINT)], check=True)
    for environment in ({}, {"CHANCELLOR_SERVE_API_KEYS": ""}):
        made = entered(tmp_path, "serve", "--host", "0.0.0.0", **environment)
        assert (made.returncode, made.stdout) == (64, "")
        assert "CHANCELLOR_SERVE_API_KEYS" in made.stderr


@pytest.mark.parametrize(
    ("arguments", "environment"),
    [
        (["serve"], {"CHANCELLOR_SERVE_API_KEYS": "a,b"}),
        (["serve", "--port", "80"], {"CHANCELLOR_SERVE_API_KEY_FILE": "/keys"}),
        (["serve", "--api-key-file", "a file"], {}),
        (["serve", "--api-key-file=keys"], {}),
        (["ask", "What is 2+2?"], {}),
        (["doctor"], {}),
    ],
)
def test_the_entry_point_hands_on_what_it_was_given(
    tmp_path: Path, arguments: list[str], environment: dict[str, str]
) -> None:
    made = entered(tmp_path, *arguments, **environment)
    assert (made.returncode, made.stdout) == (0, "".join(f"<{one}>" for one in arguments)), made.stderr
