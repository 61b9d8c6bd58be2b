"""`chancellor doctor` as a user runs it, with real imports."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.engine


def doctor(*arguments: str) -> tuple[int, dict[str, Any]]:
    made = subprocess.run(
        [sys.executable, "-m", "chancellor.cli", "doctor", "--json", *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=400,
    )
    assert "Traceback" not in made.stderr
    return made.returncode, json.loads(made.stdout)  # nothing else is on stdout


def test_this_environment_is_well() -> None:
    code, report = doctor()
    assert (code, report["ok"]) == (0, True), [check for check in report["checks"] if check["status"] == "error"]
    for check in report["checks"]:
        assert set(check) == {"section", "check", "status", "message", "fix"}
        assert (check["fix"] is None) == (check["status"] == "ok")
    found = {(check["section"], check["check"]) for check in report["checks"]}
    for package in ("vllm", "torch", "torchao", "transformers"):
        assert ("versions", f"import-{package}") in found
    assert ("model smollm2-135m-int8", "weights") in found
    assert {"python", "torch", "torchao", "transformers", "chancellor"} <= set(report["versions"])


def test_what_the_real_packages_refuse(tiny_model: Path, tmp_path: Path) -> None:
    from torchao.core.config import config_to_dict
    from torchao.quantization import Int8DynamicActivationInt8WeightConfig as Int8

    def variant(name: str, **changed: Any) -> None:
        folder = tmp_path / name
        folder.mkdir()
        for file in tiny_model.iterdir():
            (folder / file.name).write_bytes(file.read_bytes())
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        (folder / "config.json").write_text(json.dumps(config | changed), encoding="utf-8")

    old = config_to_dict(Int8(set_inductor_config=False, version=2))
    old["_version"] = old["_data"]["version"] = 1
    variant("plain")
    variant("version1", quantization_config={"quant_method": "torchao", "quant_type": {"default": old}})
    variant("unknown", architectures=["NoSuchForCausalLM"])
    rows = {
        "plain": 'scheme = "int8"\nengine = { tool_parser = "hermez" }',
        "version1": "",
        "unknown": "",
    }
    catalog = tmp_path / "chancellor.toml"
    text = "\n".join(
        f'[[models]]\nname = "{name}"\nsource = "{name}"\ntrinity = 96\n{row}' for name, row in rows.items()
    )
    catalog.write_text(text, encoding="utf-8")
    code, report = doctor("--config", str(catalog))
    assert (code, report["ok"]) == (1, False)
    errors = {check["section"]: check for check in report["checks"] if check["status"] == "error"}
    assert {section: check["check"] for section, check in errors.items()} == {
        "model plain": "tool-parser",
        "model version1": "weights",
        "model unknown": "architecture",
    }
    assert "hermes" in errors["model plain"]["fix"]
    assert "chancellor quantize" in errors["model version1"]["fix"]
