"""What torch.compile needs on a CPU, and what an engine does without it."""

import logging
import sysconfig
from pathlib import Path

import pytest

from chancellor.catalog import EngineOptions, ModelSpec
from chancellor.engines import hardware, vllm_args
from chancellor.engines.hardware import why_not_compile


def test_it_needs_a_compiler_headers_and_a_type_that_the_cpu_has(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def reason(dtype: str) -> str:
        return (why_not_compile(dtype) or ("", ""))[0]

    compiler = tmp_path / "own-c++"
    monkeypatch.setenv("CXX", str(compiler))
    monkeypatch.setattr(hardware, "cpu_has_bfloat16", lambda: False)
    assert reason("float32") == f"there is no C++ compiler ({compiler})"
    compiler.touch(mode=0o755)
    monkeypatch.setattr(sysconfig, "get_path", lambda _: str(tmp_path))
    assert reason("float32") == f"Python's headers are not in {tmp_path}"
    (tmp_path / "Python.h").touch()
    assert why_not_compile("float32") is None
    assert "answered wrongly" in reason("bfloat16")
    monkeypatch.setattr(hardware, "cpu_has_bfloat16", lambda: True)
    assert why_not_compile("bfloat16") is None


@pytest.mark.parametrize(
    ("asked", "on_cpu", "missing", "eager"),
    [
        (None, True, None, True),
        (None, False, None, False),
        (True, False, None, True),
        (False, True, None, False),
        (False, True, "g++", True),
        (False, False, "g++", False),
    ],
)
def test_without_it_an_engine_runs_all_the_same(
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    asked: bool | None,
    on_cpu: bool,
    missing: str | None,
    eager: bool,
) -> None:
    monkeypatch.setattr(vllm_args, "why_not_compile", lambda _: missing and (missing, "Get it"))
    spec = ModelSpec(name="x", source="shape:nano", trinity=96, engine=EngineOptions(enforce_eager=asked))
    with caplog.at_level(logging.WARNING):
        assert vllm_args._eager(spec, "float32", on_cpu=on_cpu) is eager
    assert ("without torch.compile" in caplog.text) is (asked is False and on_cpu and missing is not None)
