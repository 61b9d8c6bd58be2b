"""Which vLLM engines are started so that they can sleep, and how they are told to."""

import asyncio
import sys
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from chancellor.engines import vllm_args
from chancellor.engines.sleep import may_sleep
from chancellor.engines.vllm import VLLMEngine
from chancellor.errors import EngineDiedError
from chancellor.quantization.prepare import Prepared
from tests.entries import LLAMA, spec

DENSE: dict[str, Any] = {"num_hidden_layers": 2, "hidden_size": 64, "num_attention_heads": 4}


def allowed(
    *, scheme: str | None = "int8", dtype: str = "bfloat16", ranks: int = 1, more: Any = None, **engine: Any
) -> bool:
    config = {**DENSE, **(more or {})}
    return may_sleep(spec(LLAMA, None, **engine), config, scheme=scheme, dtype=dtype, ranks=ranks)


@pytest.mark.parametrize("scheme", [None, "int8"])
def test_what_is_known_to_be_sound_may_sleep(scheme: str | None) -> None:
    assert allowed(scheme=scheme)
    assert allowed(scheme=scheme, sleep=True)
    assert not allowed(scheme=scheme, sleep=False)


@pytest.mark.parametrize(
    "asked",
    [
        {"scheme": "int8wo"},
        {"scheme": "compressed-tensors"},
        {"dtype": "float16"},
        {"dtype": "float32"},
        {"vllm": {"dtype": "float32"}},
        {"vllm": {"hf_overrides": {"num_hidden_layers": 1}}},
        {"vllm": {"quantization": "fp8"}},
        {"vllm": {"speculative_config": {"model": "x"}}},
    ],
)
def test_what_has_not_been_seen_sleeps_only_if_it_is_asked_to(asked: dict[str, Any]) -> None:
    assert not allowed(**asked)
    assert allowed(**asked, sleep=True)


@pytest.mark.parametrize(
    "asked",
    [
        {"ranks": 2},
        {"vllm": {"tensor_parallel_size": 2}},
        {"vllm": {"pipeline_parallel_size": 2}},
        {"vllm": {"kv_cache_dtype": "fp8_e4m3"}},
        {"vllm": {"enable_lora": True}},
        {"vllm": {"enable_sleep_mode": False}},
        {"more": {"num_experts": 8}},
        {"kernels": "torchao"},
        {"kind": "transformers"},
    ],
)
def test_what_cannot_sleep_does_not_even_if_it_is_asked_to(asked: dict[str, Any]) -> None:
    assert not allowed(**asked)
    assert not allowed(**asked, sleep=True)


@pytest.mark.parametrize("name", ["PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF"])
def test_growing_segments_cannot_sleep(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(name, "max_split_size_mb:64, expandable_segments: True")
    assert not allowed(sleep=True)
    monkeypatch.setenv(name, "expandable_segments:False")
    assert allowed()


@pytest.mark.parametrize(
    ("gpus", "sleep", "told"), [(1, None, True), (1, False, False), (2, None, False), (0, True, False)]
)
def test_vllm_is_told_at_its_start(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, gpus: int, sleep: bool | None, told: bool
) -> None:
    (tmp_path / "config.json").write_text('{"num_hidden_layers": 2, "hidden_size": 64, "num_attention_heads": 4}')
    fake = SimpleNamespace(AsyncEngineArgs=lambda **arguments: arguments)
    monkeypatch.setitem(sys.modules, "vllm.engine.arg_utils", fake)
    monkeypatch.setattr(vllm_args, "gpu_count", lambda: gpus)
    prepared = Prepared(tmp_path, None, None, 1)
    arguments: Any = vllm_args.engine_args(spec(str(tmp_path), sleep=sleep), prepared, "bfloat16")
    assert arguments.get("enable_sleep_mode", False) is told


class Asked:
    """Notes what it is asked."""

    def __init__(self, woken: bool | None = None, *, mode: bool = True) -> None:
        self.model_config = SimpleNamespace(enable_sleep_mode=mode)
        self.woken = woken
        self.calls: list[Any] = []

    async def sleep(self, level: int = 0) -> None:
        self.calls.append(level)

    async def wake_up(self, tags: list[str] | None = None) -> bool | None:
        self.calls.append(tags)
        return self.woken


@pytest.mark.parametrize("woken", [None, True])
def test_it_sleeps_and_wakes_as_a_whole(woken: bool | None) -> None:
    engine, llm = VLLMEngine(spec()), Asked(woken)
    assert not engine.can_sleep
    engine._llm = llm
    assert engine.can_sleep
    asyncio.run(engine.sleep())
    asyncio.run(engine.wake())
    assert llm.calls == [1, None]


def test_half_a_wake_is_none() -> None:
    engine = VLLMEngine(spec())
    engine._llm = Asked(woken=False)
    with pytest.raises(EngineDiedError, match="as a whole"):
        asyncio.run(engine.wake())


def test_without_the_mode_it_cannot_sleep() -> None:
    engine = VLLMEngine(spec())
    engine._llm = Asked(mode=False)
    assert not engine.can_sleep


@pytest.mark.parametrize("moment", ["awake", "falling asleep", "asleep", "half awake", "awake again"])
def test_one_that_sleeps_is_killed_and_not_asked_to_end(monkeypatch: pytest.MonkeyPatch, moment: str) -> None:
    ends: list[str] = []
    llm: Any = Asked(woken=moment != "half awake")
    llm.output_handler, llm.shutdown = None, lambda **_: ends.append("asked")
    engine = VLLMEngine(spec())
    engine._llm = llm
    monkeypatch.setattr(engine, "_fail", lambda _: None)
    monkeypatch.setattr(engine._processes, "kill", lambda: ends.append("killed"))

    async def never(level: int = 0) -> None:
        await asyncio.Event().wait()

    async def scenario() -> None:
        if moment == "falling asleep":
            llm.sleep = never
            falling = asyncio.create_task(engine.sleep())
            await asyncio.sleep(0)
            falling.cancel()
        elif moment != "awake":
            await engine.sleep()
        if "awake" in moment and moment != "awake":
            with suppress(EngineDiedError):
                await engine.wake()
        await engine.close()

    asyncio.run(scenario())
    assert ends == (["asked"] if moment in ("awake", "awake again") else ["killed", "asked"])
