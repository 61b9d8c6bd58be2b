import json
import random
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from chancellor import Catalog, ModelSpec, errors, quantize
from chancellor.checkpoints import fetch, find
from chancellor.checkpoints.shapes import Shape, _count, _known
from chancellor.checkpoints.vocabulary import write_tokenizer
from chancellor.engines.prompt import render
from chancellor.engines.vllm_args import _with_options
from chancellor.quantization.prepare import parameters_of, prepare
from chancellor.settings import settings

PUBLISHED = {  # billions of parameters, as the models' pages have them
    "llama-3.1-8b": 8.03,
    "llama-3.1-70b": 70.55,
    "llama-3.2-1b": 1.236,
    "llama-3.2-3b": 3.21,
    "qwen3-0.6b": 0.596,
    "qwen3-4b": 4.02,
    "qwen3-8b": 8.19,
    "mistral-7b-v0.3": 7.25,
    "smollm2-135m": 0.1345,
}
ENGLISH = (
    "Explain how a cache works, and compare it with a database. The children went to the market early in the morning, "
    "because their mother wanted fresh fruit for the evening; an unusually friendly shopkeeper gave them some oranges."
)
ODD = "Zürich — 日本語 😀\n\n\tdef f(x):\n        return x**2  # 1234567 <|im_end|>\x00\x7f"
W8A8 = {"quantization_config": {"quant_method": "compressed-tensors", "config_groups": {}}}


def spec(source: str = "shape:nano", **fields: Any) -> ModelSpec:
    return ModelSpec(name="m", source=source, trinity=96, **fields)


def tokenizer(folder: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)


def config_file(folder: Path, **changes: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "config.json"
    path.write_text(json.dumps({**Shape.of("shape:nano").config, **changes}), encoding="utf-8")
    return path


@pytest.mark.parametrize("name", _known())
def test_the_parameters_are_those_of_the_published_model(name: str) -> None:
    shape = Shape.of(f"shape:{name}")
    assert _count(shape) == shape.parameters() == shape.known_parameters
    if name != "nano":
        assert shape.parameters() / 1e9 == pytest.approx(PUBLISHED[name], rel=0.002)


def test_counting_a_named_shape_imports_no_torch() -> None:
    code = (
        "import sys; from chancellor import ModelSpec; from chancellor.quantization.prepare import parameters_of;"
        "print(parameters_of(ModelSpec(name='m', source='shape:llama-3.1-70b', trinity=96)), 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["70553706496", "False"]
    assert not list(settings().cache_dir.glob("shapes/llama-3.1-70b*"))


@pytest.mark.parametrize("name", ["nano", "smollm2-135m", "mistral-7b-v0.3", "llama-3.2-1b", "qwen3-0.6b"])
def test_the_tokenizer_has_a_text_for_every_id(name: str) -> None:
    shape = Shape.of(f"shape:{name}")
    encoder = tokenizer(shape.folder())
    size = shape.config["vocab_size"]
    assert len(encoder) == encoder.vocab_size == size
    texts = encoder.batch_decode([[token] for token in range(size)])
    assert all(texts)
    assert encoder.eos_token_id == shape.config["eos_token_id"]
    assert encoder.bos_token_id == shape.config["bos_token_id"]
    assert encoder.model_max_length == shape.config["max_position_embeddings"]


@pytest.mark.parametrize("name", ["nano", "llama-3.2-1b"])
def test_any_text_can_be_encoded_and_english_is_short(name: str) -> None:
    encoder = tokenizer(Shape.of(f"shape:{name}").folder())
    for text in (ENGLISH, ODD):
        assert encoder.decode(encoder.encode(text)) == text
    assert len(encoder.encode(ENGLISH)) < len(ENGLISH) / 3.5


def test_what_a_random_model_says_is_decoded_as_it_comes() -> None:
    from tokenizers.decoders import DecodeStream

    encoder = tokenizer(Shape.of("shape:nano").folder())
    rng = random.Random(1)
    half = encoder.encode("€")[0]  # a byte that is no character yet
    for said in ([rng.randrange(len(encoder)) for _ in range(5000)], [half] * 500):
        stream = DecodeStream(skip_special_tokens=True)
        text = "".join(stream.step(encoder._tokenizer, token) or "" for token in said)
        assert encoder.decode(said, skip_special_tokens=True).startswith(text)
        assert len(text) > 20_000 or len(set(said)) == 1


def test_the_chat_template() -> None:
    encoder = tokenizer(Shape.of("shape:nano").folder())
    roles = ("system", "user", "assistant", "user")
    prompt = render(encoder, [{"role": role, "content": f"What is {role}?"} for role in roles])
    assert prompt.stop == ()
    text = encoder.decode(prompt.token_ids)
    assert text.startswith("<|im_start|>system\nWhat is system?<|im_end|>\n<|im_start|>user\n")
    assert text.endswith("What is user?<|im_end|>\n<|im_start|>assistant\n")
    assert prompt.token_ids.count(encoder.eos_token_id) == 4


@pytest.mark.parametrize(
    ("size", "bos", "eos"), [(512, None, None), (512, 0, 0), (1000, 1, 999), (700, 5000, -1), (2048, 2047, 2046)]
)
def test_tokenizers_of_any_size(tmp_path: Path, size: int, bos: int | None, eos: int | None) -> None:
    write_tokenizer(tmp_path, size, bos=bos, eos=eos, max_length=64)
    encoder = tokenizer(tmp_path)
    assert len(encoder) == size
    assert all(encoder.batch_decode([[token] for token in range(size)]))
    assert encoder.decode(encoder.encode(ODD)) == ODD
    assert encoder.eos_token_id == (eos if eos is not None and 0 <= eos < size else 0)


def test_the_same_shape_is_the_same_folder(tmp_path: Path) -> None:
    path = config_file(tmp_path / "mine", hidden_size=512)
    folder = Shape.of(f"shape:{path}").folder()
    written = {file.name: file.read_bytes() for file in folder.iterdir()}
    assert set(written) == {"config.json", "tokenizer.json", "tokenizer_config.json"}
    for file in folder.iterdir():
        file.unlink()
    folder.rmdir()
    threads = [threading.Thread(target=lambda: fetch(f"shape:{path}")) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == written
    assert not list(folder.parent.glob(".*"))
    config_file(tmp_path / "mine", hidden_size=256)
    assert Shape.of(f"shape:{path}").folder() != folder


def test_a_config_of_ones_own(tmp_path: Path) -> None:
    path = config_file(tmp_path, num_hidden_layers=4, auto_map={"AutoConfig": "evil.Config"})
    layer = (_count(Shape.of(f"shape:{path}")) - Shape.of("shape:nano").parameters()) // 2
    assert layer == 256 * 256 * 2 + 256 * 128 * 2 + 3 * 256 * 512 + 2 * 256
    assert parameters_of(spec(f"shape:{path}")) == 9_569_536 + 2 * layer
    found = find(f"shape:{path}")
    assert found is not None
    assert "auto_map" not in json.loads((found.path / "config.json").read_text())
    (tmp_path / "chancellor.toml").write_text(
        '[[models]]\nname = "m"\nsource = "shape:config.json"\ntrinity = 96\n', encoding="utf-8"
    )
    assert Catalog.load(tmp_path / "chancellor.toml")["m"].source == f"shape:{path}"


def test_wrong_shapes(tmp_path: Path) -> None:
    with pytest.raises(errors.SourceNotFoundError, match=r"There are: llama-3\.1-8b, .*, nano;"):
        find("shape:llama-9")
    with pytest.raises(errors.SourceNotFoundError, match=r"no shape .*absent\.json"):
        fetch(f"shape:{tmp_path / 'absent.json'}")
    for changes in ({"vocab_size": 300}, {"vocab_size": None}, {"vocab_size": "many"}):
        with pytest.raises(errors.BrokenCheckpointError, match="vocab_size"):
            fetch(f"shape:{config_file(tmp_path, **changes)}")
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(errors.BrokenCheckpointError, match="JSON object"):
        fetch(f"shape:{tmp_path / 'config.json'}")
    with pytest.raises(errors.BrokenCheckpointError, match="cannot build"):
        parameters_of(spec(f"shape:{config_file(tmp_path, model_type='no-such-model')}"))


def test_a_cache_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "shapes").write_text("a file, where the folder should be")
    monkeypatch.setattr(
        "chancellor.checkpoints.shapes.settings", lambda: settings().model_copy(update={"cache_dir": tmp_path})
    )
    with pytest.raises(errors.BrokenCheckpointError, match="CHANCELLOR_CACHE_DIR"):
        fetch("shape:nano")


def test_prepare() -> None:
    prepared = prepare(spec(), "float32")
    assert (prepared.random_weights, prepared.scheme, prepared.quantize_at_load) == (True, None, None)
    assert (prepared.dtype, prepared.parameters) == (None, 9_569_536)
    prepared = prepare(spec(scheme="int8", parameters=7), "float32")
    assert (prepared.random_weights, prepared.scheme, prepared.quantize_at_load) == (True, "int8", "int8")
    assert prepared.parameters == 7
    own = {"vllm": {"hf_overrides": W8A8}}
    prepared = prepare(spec(engine=own), "float32")
    assert (prepared.scheme, prepared.quantize_at_load) == ("compressed-tensors", None)
    assert prepare(spec(engine={"vllm": {"quantization": "fp8"}}), "float32").scheme == "fp8"
    with pytest.raises(errors.QuantizationError, match="'compressed-tensors'"):
        prepare(spec(scheme="int8", engine=own), "float32")


def test_a_config_that_is_quantised_already(tmp_path: Path) -> None:
    path = config_file(tmp_path, **W8A8)
    assert prepare(spec(f"shape:{path}"), "float32").scheme == "compressed-tensors"
    assert parameters_of(spec(f"shape:{path}")) == 9_569_536
    with pytest.raises(errors.QuantizationError, match="asks for scheme 'int8'"):
        prepare(spec(f"shape:{path}", scheme="int8"), "float32")


def test_there_is_nothing_to_quantise(tmp_path: Path) -> None:
    with pytest.raises(errors.QuantizationError, match=r"shape:nano has no weights.*\n.*catalog"):
        quantize("shape:nano", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_users_options_win_and_are_left_alone() -> None:
    ours = {"a": 1, "additional_config": {"chancellor": {"kernels": "torchao"}}}
    options = {"a": 2, "hf_overrides": {"deep": {"x": 1}}, "additional_config": {"other": {"y": 1}}}
    arguments = _with_options(ours, options)
    assert arguments["a"] == 2
    assert arguments["additional_config"] == {"chancellor": {"kernels": "torchao"}, "other": {"y": 1}}
    arguments["hf_overrides"]["deep"]["x"] = 2  # as vLLM does
    assert options["hf_overrides"] == {"deep": {"x": 1}}
    assert _with_options({"a": 1}, {"hf_overrides": W8A8}) == {"a": 1, "hf_overrides": W8A8}


def test_the_catalog_for_an_h100() -> None:
    catalog = Catalog.load(Path(__file__).parents[2] / "bench" / "catalogs" / "h100.toml")
    assert {parameters_of(one) for one in catalog.values()} == {8_030_261_248}
    schemes = {one.name: prepare(one, "bfloat16").scheme for one in catalog.values()}
    own = "compressed-tensors"
    assert schemes == {
        "bf16": None,
        "int8-singly": "int8",
        **{scheme: scheme for scheme in ("int8", "int8wo", "fp8", "int4wo", "int4fp8")},
        **{f"{scheme}-lm-head": scheme for scheme in ("int8", "fp8", "int4wo", "int4fp8")},
        **{f"stock-{scheme}": scheme for scheme in ("int8", "int8wo", "fp8")},
        "vllm-int8-w8a8": own,
        "vllm-w8a16": own,
        "vllm-w4a16": own,
    }
