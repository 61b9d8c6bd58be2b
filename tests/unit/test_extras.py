"""The extras of pyproject.toml bring what the parts that need them import."""

import ast
import json
import re
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def names(requirements: list[str]) -> set[str]:
    """Return what the requirements name, those of our own extras included."""
    found: set[str] = set()
    for requirement in requirements:
        match = re.match(r"([\w.-]+)(?:\[([\w,-]+)\])?", requirement)
        assert match, requirement
        name, extras = match[1].lower(), match[2]
        if name == PROJECT["name"]:
            for extra in extras.split(","):
                found |= names(PROJECT["optional-dependencies"][extra])
        else:
            found.add(name)
    return found


def lacking(paths: list[Path], brought: set[str]) -> set[str]:
    """Return which modules the files import, when they are imported, that are of none of the packages."""
    modules: set[str] = set()
    for path in paths:
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.Import):
                modules |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                modules.add(node.module.partition(".")[0])
    known = packages_distributions()
    others = modules - set(sys.stdlib_module_names) - {"chancellor"}
    return {one for one in others if not brought & {name.lower().replace("_", "-") for name in known[one]}}


def test_serve_brings_what_the_endpoint_imports() -> None:
    files = [path for path in (ROOT / "chancellor/server").glob("*.py") if not path.name.startswith("ray_")]
    brought = names(PROJECT["dependencies"]) | names(PROJECT["optional-dependencies"]["serve"])
    assert lacking(files, brought) <= {"starlette", "typing_extensions"}  # FastAPI is made of them
    assert lacking(files, names(PROJECT["dependencies"])) >= {"fastapi", "uvicorn", "openai", "prometheus_client"}


def test_studio_brings_what_langgraph_json_mounts() -> None:
    mounted = json.loads((ROOT / "langgraph.json").read_text(encoding="utf-8"))["http"]["app"]
    path = ROOT / mounted.partition(":")[0]
    assert "chancellor.server" in path.read_text(encoding="utf-8")
    extras = PROJECT["optional-dependencies"]
    assert names(extras["serve"]) <= names(extras["studio"])


def test_the_locks_have_what_the_extras_ask_for() -> None:
    for lock, left_out in (("cpu.txt", {"vllm"}), ("cuda.txt", {"cpu", "studio", "dev"})):
        lines = (ROOT / "requirements" / lock).read_text(encoding="utf-8").splitlines()
        locked = {line.partition("==")[0].partition("[")[0].lower() for line in lines if "==" in line}
        for extra in set(PROJECT["optional-dependencies"]) - left_out:
            assert names(PROJECT["optional-dependencies"][extra]) <= locked, (lock, extra)
