"""TorchAO's weights on vLLM's kernels: single layers, parallel layers, whole models, and a server without our code."""

import json
import os
import signal
import subprocess
import sys
import time
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from torchao.core.config import config_to_dict
from torchao.quantization import FqnToConfig

from chancellor import Catalog, ModelSpec
from chancellor.engines import EnginePool, GenerationRequest
from chancellor.engines.hardware import default_dtype
from chancellor.engines.vllm_args import process_environment
from chancellor.quantization import SCHEMES, prepare, quantize
from tests.integration.ports import free_port
from tests.tiny import make_model

pytestmark = pytest.mark.engine

PROBE = {"worker_extension_cls": "tests.integration.probe.Probe"}
INT8_KERNEL, INT4_KERNEL = "CPUInt8ScaledMMLinearKernel", "CPUWNA16LinearKernel"


def run(module: str, *arguments: str, **environment: str) -> None:
    command = [sys.executable, "-m", f"tests.integration.{module}", *arguments]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=400, check=False, env={**os.environ, **environment}
    )
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.parametrize(
    ("dtype", "schemes", "more"),
    [
        ("bfloat16", "int8,int4wo", []),
        ("bfloat16", "int8,int4wo", ["--without-amx"]),
        ("float32", "int8", []),
        ("float16", "int8,int4wo", []),
    ],
)
def test_every_layer_is_within_the_error_of_its_scheme(
    tmp_path: Path, dtype: str, schemes: str, more: list[str]
) -> None:
    seed = int.from_bytes(os.urandom(2))
    run("kernel_errors", "--schemes", schemes, "--dtype", dtype, "--seed", str(seed), "--json", f"{tmp_path}/x", *more)
    found = json.loads((tmp_path / "x").read_text("utf-8"))
    assert {row["scheme"] for row in found} == set(schemes.split(","))
    assert {(row["at_load"], row["bias"]) for row in found} == {(a, b) for a in (True, False) for b in (True, False)}
    bad = [row for row in found if not (row["finite"] and row["worst"] < 1)]
    assert not bad, f"seed {seed}: {bad[:3]}"


def test_parallel_layers_on_two_ranks(tmp_path: Path) -> None:
    run("parallel_layers", "--ranks", "2", "--schemes", "int8,int4wo", "--json", f"{tmp_path}/x")
    found = json.loads((tmp_path / "x").read_text("utf-8"))
    assert len(found) == 2 * 2 * 8 * 2
    assert not [row for row in found if not row["worst"] < 1]


@pytest.fixture(scope="module")
def pool() -> Iterator[EnginePool]:
    pool = EnginePool()
    yield pool
    pool.close()


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("tiny") / "model", hidden=256, heads=4, kv_heads=2, tied=True)


def spec(name: str, source: object, *, scheme: str | None = None, **engine: Any) -> ModelSpec:
    options = {"dtype": "float16", "max_model_len": 128, **engine, "vllm": {**PROBE, **engine.get("vllm", {})}}
    return ModelSpec.model_validate(
        {"name": name, "source": str(source), "scheme": scheme, "trinity": 96, "engine": options}
    )


async def kernels(pool: EnginePool, model: ModelSpec) -> dict[str, int]:
    engine = await pool.aengine(model)
    found: list[dict[str, int]] = await pool.arun(engine.inner().collective_rpc("linear_kernels"))
    return found[0]


def weights_bytes(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))


async def text(pool: EnginePool, model: ModelSpec) -> str:
    request = GenerationRequest(
        messages=[{"role": "user", "content": "What is two plus two?"}], max_tokens=24, temperature=0, ignore_eos=True
    )
    return "".join([delta.text async for delta in pool.agenerate(model, request)])


async def test_at_load_gives_what_the_checkpoint_gives(pool: EnginePool, tiny: Path) -> None:
    written = spec("written", tiny, scheme="int8")
    at_load = spec("at-load", tiny, vllm={"quantization": "torchao-int8"})
    head = spec("head", tiny, scheme="int8", quantize_lm_head=True)
    stock = spec("stock", tiny, scheme="int8", kernels="torchao")
    answers = {}
    for model in (written, at_load, head, stock):
        answers[model.name] = await text(pool, model)
        found = await kernels(pool, model)
        layers = "none, Int8Tensor" if model is stock else INT8_KERNEL
        output = INT8_KERNEL if model is head else "none, Parameter"
        assert found == {layers: 8, f"head: {output}": 1}, model.name
        await pool.astop(model)
    assert answers["written"] == answers["at-load"]


async def test_rules_for_single_layers(pool: EnginePool, tiny: Path, tmp_path: Path) -> None:
    rules = FqnToConfig(
        OrderedDict(
            {
                "model.layers.0.mlp.down_proj": None,
                r"re:model\.layers\.1\.self_attn\.(q|k|v)_proj": SCHEMES["int4wo"].config(),
                "_default": SCHEMES["int8"].config(),
            }
        )
    )
    file = tmp_path / "rules.json"
    file.write_text(json.dumps(config_to_dict(rules)), encoding="utf-8")
    options = {"quantization": "torchao", "hf_overrides": {"quantization_config_file": str(file)}}
    model = spec("mixed", tiny, vllm=options)
    assert await text(pool, model)
    found = await kernels(pool, model)
    assert found == {INT8_KERNEL: 6, INT4_KERNEL: 1, "none, Parameter": 1, "head: none, Parameter": 1}
    await pool.astop(model)


async def test_an_int4_checkpoint(pool: EnginePool, tiny: Path, tmp_path: Path) -> None:
    folder = quantize(str(tiny), tmp_path / "int4", "int4wo", dtype="float16")
    model = spec("int4", folder)
    assert prepare(model, "float16").scheme == "int4wo"
    assert len(await text(pool, model)) > 0
    assert await kernels(pool, model) == {INT4_KERNEL: 8, "head: none, Parameter": 1}
    await pool.astop(model)
    assert weights_bytes(folder) < 0.5 * weights_bytes(tiny)


def test_a_server_of_vllm_that_knows_nothing_of_us(catalog: Catalog) -> None:
    """`vllm serve CHECKPOINT`: the plug-in is found by its entry point."""
    dtype = default_dtype()  # with AMX, bfloat16 has a kernel of its own
    folder = prepare(catalog["smollm2-135m-int8"], dtype).folder
    port = free_port()
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(folder)]
    command += ["--dtype", dtype, "--max-model-len", "512", "--enforce-eager"]
    command += ["--host", "127.0.0.1", "--served-model-name", "smol"]
    environment = {**process_environment(), "VLLM_CPU_KVCACHE_SPACE": "1"}
    for ours in ("VLLM_LOGGING_CONFIG_PATH",):
        environment.pop(ours, None)
    server = subprocess.Popen(
        [*command, "--port", str(port)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, **environment},
        start_new_session=True,
    )
    try:
        question = {"model": "smol", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 8}
        deadline = time.monotonic() + 400
        while True:
            assert server.poll() is None, server.communicate()[0][-3000:]
            assert time.monotonic() < deadline
            try:
                answer = httpx.post(f"http://127.0.0.1:{port}/v1/chat/completions", json=question, timeout=60)
                break
            except httpx.TransportError:
                time.sleep(1)
        assert answer.json()["choices"][0]["message"]["content"]
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        output = server.communicate(timeout=120)[0]
    assert "Selected CPUInt8ScaledMMLinearKernel for torchao int8" in output
