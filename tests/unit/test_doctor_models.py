"""The doctor's checks of entries, engines and servers, each on one that is ill in one way."""

import http.server
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest

from chancellor.catalog import ModelSpec
from chancellor.doctor import Finding, engines, entries, servers
from chancellor.doctor.finding import collect
from tests.findings import CUDA, TORCH, configure, one, spec, write_llama


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_llama(tmp_path / "model")


def torchao(kind: str, version: int = 2, **data: Any) -> dict[str, Any]:
    return {"quant_method": "torchao", "quant_type": {"default": {"_type": kind, "_version": version, "_data": data}}}


class TestEntries:
    def source(self, spec: ModelSpec) -> Finding:
        return one((found for found in entries.look(spec, "bfloat16").findings if found.status != "ok"), "source")

    def test_a_good_one(self, model: Path) -> None:
        entry = entries.look(spec(model), "float32")
        assert not entry.broken
        assert (entry.folder, entry.dtype, entry.architectures) == (model, "float32", ["LlamaForCausalLM"])
        assert one(engines.template(entry), "chat-template").status == "ok"

    def test_files_that_are_broken_or_unsafe(self, model: Path) -> None:
        weights = model / "model.safetensors"
        whole = weights.read_bytes()
        weights.write_bytes(whole[:-1])
        assert "should have" in self.source(spec(model)).message
        weights.unlink()
        (model / "pytorch_model.bin").write_bytes(b"")
        assert "allow_pickle" in (self.source(spec(model)).fix or "")
        (model / "pytorch_model.bin").unlink()
        assert "holds no weights" in self.source(spec(model)).message
        weights.write_bytes(whole)
        configure(model, auto_map={"AutoModel": "own.Code"})
        assert "trust_remote_code" in (self.source(spec(model)).fix or "")
        (model / "config.json").write_text("{", encoding="utf-8")
        assert "not readable JSON" in self.source(spec(model)).message

    def test_quantised_ones_that_would_answer_wrongly(self, model: Path) -> None:
        per_tensor: dict[str, Any] = {"granularity": [{"_type": "PerTensor", "_version": 1, "_data": {}}]}
        configure(model, quantization_config=torchao("Float8DynamicActivationFloat8WeightConfig", **per_tensor))
        assert "one scale per tensor" in self.source(spec(model)).message
        configure(model, quantization_config={"quant_method": "torchao", "quant_type": "int8_weight_only"})
        assert "old TorchAO" in self.source(spec(model)).message
        configure(model, quantization_config=torchao("Int8WeightOnlyConfig"))
        assert "asks for scheme 'int8'" in self.source(spec(model, scheme="int8")).message

    def test_sources_that_are_not_there(self, monkeypatch: pytest.MonkeyPatch) -> None:
        assert self.source(spec("./absent")).status == "error"
        assert "pip install --no-deps no-such-package" in (self.source(spec("package:no-such-package")).fix or "")
        assert "llama-3.1-8b" in (self.source(spec("shape:none")).fix or "")
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
        assert self.source(spec("org/absent")).status == "error"
        monkeypatch.delenv("HF_HUB_OFFLINE")
        found = self.source(spec("org/absent", revision="abc"))
        assert (found.status, found.fix) == ("warning", "hf download org/absent --revision abc")

    def test_without_a_tokenizer_or_a_template(self, model: Path) -> None:
        (model / "chat_template.jinja").unlink()
        assert one(engines.template(entries.look(spec(model), "float32")), "chat-template").status == "warning"
        for path in model.glob("tokenizer*"):
            path.unlink()
        assert "no tokenizer" in self.source(spec(model)).message
        assert one(engines.template(entries.look(spec(model, scheme="int8"), "float32")), "tokenizer").status == "error"


class TestEngines:
    facts: ClassVar[dict[str, dict[str, Any]]] = {
        "transformers": {"version": "5", "architectures": ["OldForCausalLM", "LlamaForCausalLM"]},
        "vllm": {
            "version": "0.32.0",
            "architectures": {
                "LlamaForCausalLM": "vllm",
                "OldForCausalLM": "until 0.23.0",
                "BertModel": "pooling",
                "CwmForCausalLM": "transformers",
                "MegaForCausalLM": None,
            },
            "tool_parsers": ["hermes", "mistral"],
            "reasoning_parsers": ["qwen3", "mistral"],
        },
    }

    def architecture(self, model: Path, name: str, **options: Any) -> Finding:
        configure(model, architectures=[name])
        return one(engines.architecture(entries.look(spec(model, **options), "float32"), self.facts), "architecture")

    def test_architectures(self, model: Path) -> None:
        assert self.architecture(model, "LlamaForCausalLM").status == "ok"
        assert self.architecture(model, "CwmForCausalLM").status == "ok"
        old = self.architecture(model, "OldForCausalLM")
        assert (old.status, old.fix) == ("error", 'Set kind = "transformers" under [models.engine]')
        assert self.architecture(model, "OldForCausalLM", kind="transformers").status == "ok"
        assert "pip install --upgrade vllm" in (self.architecture(model, "MegaForCausalLM").fix or "")
        assert self.architecture(model, "MegaForCausalLM", kind="transformers").status == "error"
        assert "no text" in self.architecture(model, "BertModel").message
        configure(model, architectures=None)
        nameless = entries.look(spec(model), "float32")
        assert one(engines.architecture(nameless, self.facts), "architecture").status == "error"
        assert list(engines.architecture(nameless, {})) != []
        configure(model)
        assert list(engines.architecture(entries.look(spec(model), "float32"), {})) == []  # vLLM cannot be asked

    def test_parsers(self) -> None:
        wrong = list(engines.parsers(spec("x", tool_parser="mistrall", reasoning_parser="none"), self.facts))
        assert one(wrong, "tool-parser").fix == 'Set tool_parser under [models.engine] to "mistral"'
        assert one(wrong, "reasoning-parser").status == "error"
        right = engines.parsers(spec("x", tool_parser="hermes", reasoning_parser="qwen3"), self.facts)
        assert [found.status for found in right] == ["ok"]

    def test_context(self, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("VLLM_ALLOW_LONG_MAX_MODEL_LEN", raising=False)

        def look(**options: Any) -> list[str]:
            return [found.status for found in engines.context(entries.look(spec(model, **options), "float32"))]

        assert look() == []  # the default of 4096 is no wish
        assert look(max_model_len=513) == ["warning"]
        assert look(vllm={"max_model_len": 513}) == ["error"]
        assert look(vllm={"max_model_len": 512}) == []
        configure(model, rope_scaling={"rope_type": "linear", "factor": 4.0})
        assert look(vllm={"max_model_len": 2048}) == []
        assert look(vllm={"max_model_len": 2049}) == ["error"]

    def test_what_compiling_needs(self, monkeypatch: pytest.MonkeyPatch) -> None:
        compiled = entries.Entry(spec("x", enforce_eager=False), "bfloat16")
        monkeypatch.setattr(
            engines, "why_not_compile", lambda dtype: (f"there is no C++ compiler for {dtype}", "Get one")
        )
        found = one(engines.compiler(compiled, {"torch": TORCH}), "compiler")
        assert found.status == "warning"
        assert "no C++ compiler for bfloat16" in found.message
        assert list(engines.compiler(compiled, {"torch": CUDA})) == []
        assert list(engines.compiler(entries.Entry(spec("x"), "bfloat16"), {"torch": TORCH})) == []
        monkeypatch.setattr(engines, "why_not_compile", lambda _: None)
        assert one(engines.compiler(compiled, {"torch": TORCH}), "compiler").status == "ok"

    def test_what_the_plug_in_says_of_weights(self, model: Path) -> None:
        entry = entries.look(spec(model, scheme="fp8"), "float32")
        asked = engines.questions([entry], on_gpu=False)
        assert asked["architectures"] == ["LlamaForCausalLM"]
        assert (asked["weights"]["x"]["inputs"], asked["weights"]["x"]["scheme"]) == (128, "fp8")
        for answer, status in (
            ({"refusal": "float8 needs another GPU (8.9). Here, use int8."}, "error"),
            ({"without_kernel": ["Int8WeightOnlyConfig"]}, "warning"),
            ({"without_kernel": []}, "ok"),
        ):
            found = one(engines.weights(entry, {"vllm": {"weights": {"x": answer}}}), "weights")
            assert found.status == status
        refused = engines.weights(
            entry, {"vllm": {"weights": {"x": {"refusal": "float8 needs more. Here, use int8."}}}}
        )
        assert one(refused, "weights").fix == "Here, use int8"


class TestServers:
    @pytest.fixture
    def answering(self) -> Iterator[Callable[[int, bytes], str]]:
        servers_: list[http.server.HTTPServer] = []

        def answer(status: int, body: bytes) -> str:
            class Handler(http.server.BaseHTTPRequestHandler):
                def do_GET(self) -> None:
                    self.send_response(status)
                    self.end_headers()
                    self.wfile.write(body)

                def log_message(self, *_: object) -> None:
                    pass

            server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
            servers_.append(server)
            threading.Thread(target=server.serve_forever, daemon=True).start()
            return f"http://127.0.0.1:{server.server_port}/v1"

        yield answer
        for server in servers_:
            server.shutdown()
            server.server_close()

    @pytest.mark.parametrize(
        ("status", "body", "expected", "word"),
        [
            (200, b'{"data": [{"id": "gpt"}]}', "ok", "has the model"),
            (200, b'{"data": [{"id": "other"}]}', "warning", "no model 'gpt', but other"),
            (200, b"hello", "ok", "answers"),
            (401, b"", "warning", "wants a key"),
            (404, b"", "warning", "404"),
        ],
    )
    def test_what_they_answer(self, answering: Any, status: int, body: bytes, expected: str, word: str) -> None:
        found = one(servers.server(spec("gpt", kind="openai", base_url=answering(status, body))), "server")
        assert found.status == expected
        assert word in found.message

    def test_one_that_does_not(self, monkeypatch: pytest.MonkeyPatch) -> None:
        assert (
            one(servers.server(spec("gpt", kind="openai", base_url="http://127.0.0.1:9/v1")), "server").status
            == "warning"
        )
        monkeypatch.delenv("NO_SUCH_KEY", raising=False)
        keyless = spec("gpt", kind="openai", base_url="http://127.0.0.1:9/v1", api_key_env="NO_SUCH_KEY")
        assert "NO_SUCH_KEY" in (one(collect("server", lambda: servers.server(keyless)), "server").fix or "")
