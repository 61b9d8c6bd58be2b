"""The command line as a user meets it: in a process of its own."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.tiny import write_safetensors


def run(*arguments: str, cwd: Path | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "chancellor.cli", *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=180,
        cwd=cwd,
        env={**os.environ, "COLUMNS": "200", **environment},
    )


def fails(made: subprocess.CompletedProcess[str], *words: str) -> None:
    """Exit code 2, nothing on stdout, the words and no traceback on stderr."""
    assert made.returncode == 2, made.stderr
    assert made.stdout == ""
    assert "Traceback" not in made.stderr
    for word in words:
        assert word in made.stderr


def catalog(folder: Path, *models: str) -> str:
    path = folder / "chancellor.toml"
    path.write_text("\n".join(f"[[models]]\n{model}" for model in models), encoding="utf-8")
    return str(path)


def test_help_names_the_commands() -> None:
    made = run("--help")
    assert made.returncode == 0
    for command in ("ask", "models", "quantize"):
        assert command in made.stdout


@pytest.mark.parametrize("question", ["", "   ", "\n"])
def test_an_empty_question(question: str) -> None:
    fails(run("ask", question), "The question is empty", "What is 2+2?")


def test_an_unknown_and_a_rejected_model() -> None:
    fails(run("ask", "--model", "gpt", "hello"), "no model 'gpt'", "smollm2-135m-int8")
    fails(run("ask", "--model", "smollm2-135m-int8wo", "hello"), "rejected", "below the minimum of 95")


@pytest.mark.parametrize(
    ("option", "value", "word"),
    [
        ("--temperature", "9", "temperature"),
        ("--max-tokens", "0", "max_tokens"),
        ("--policy", "coin", "trinity, light"),
    ],
)
def test_options_out_of_range(option: str, value: str, word: str) -> None:
    fails(run("ask", option, value, "hello"), word)


def test_catalogs_that_do_not_do(tmp_path: Path) -> None:
    broken = tmp_path / "broken.toml"
    broken.write_text("models = [", encoding="utf-8")
    fails(run("ask", "--config", str(broken), "hello"), "not valid TOML", "README")
    fails(run("ask", "--config", str(tmp_path / "absent.toml"), "hello"), "cannot be read")
    fails(run("ask", "--config", catalog(tmp_path), "hello"), "empty")
    poor = catalog(tmp_path, 'name = "x"\nsource = "org/x"\ntrinity = 10')
    fails(run("ask", "--config", poor, "hello"), "Every model", "x: Trinity score 10")
    odd = catalog(tmp_path, 'name = "x"\nsource = "org/x"\ntrinity = 96\nscheme = "int3"')
    fails(run("ask", "--config", odd, "hello"), "no scheme 'int3'", "int8, int8wo")
    fails(run("models", cwd=tmp_path), "no scheme 'int3'")  # ./chancellor.toml is found


def test_checkpoints_that_do_not_do(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    entry = f'name = "x"\nsource = "{folder}"\ntrinity = 96'
    fails(run("ask", "--config", catalog(tmp_path, entry), "hello"), "no config.json")
    (folder / "config.json").write_text('{"model_type": "llama"}', encoding="utf-8")
    write_safetensors(folder / "model.safetensors", {"a": [9]})
    (folder / "model.safetensors").write_bytes(b"\x08\0\0\0\0\0\0\0")
    fails(run("ask", "--config", catalog(tmp_path, entry), "hello"), "model.safetensors", "cut short")
    absent = catalog(tmp_path, 'name = "x"\nsource = "./absent"\ntrinity = 96')
    fails(run("ask", "--config", absent, "hello"), "no file or folder")
    offline = catalog(tmp_path, 'name = "x"\nsource = "org/x"\ntrinity = 96')
    fails(run("ask", "--config", offline, "hello"), "not on this machine", "local folder")


def test_a_missing_extra(tmp_path: Path) -> None:
    for name in ("vllm", "transformers"):  # without the one, the other would answer
        text = f"raise ImportError('not here', name='{name}')"
        (tmp_path / f"{name}.py").write_text(text, encoding="utf-8")
    made = run("ask", "hello", PYTHONPATH=str(tmp_path))
    fails(made, "'vllm' is not installed", "pip install 'chancellor[cpu]'")


def test_models_lists_scores_and_reasons() -> None:
    made = run("models")
    assert made.returncode == 0
    for word in (
        "smollm2-135m-int8",
        "96.66",
        "balanced",
        "135 M",
        "eligible",
        "smollm2-135m-int8wo is rejected: Trinity score 91",
    ):
        assert word in made.stdout
    listed = json.loads(run("models", "--json").stdout)["models"]
    assert [model["name"] for model in listed] == ["smollm2-135m-int8", "smollm2-135m", "smollm2-135m-int8wo"]
    assert listed[0]["parameters"] == 134_515_008
    assert listed[0]["pillars"]["truth"] == 96
    assert listed[2]["rejected"]


def test_quantize(tiny_model: Path, tmp_path: Path) -> None:
    made = run("quantize", str(tiny_model), str(tmp_path / "q"), "--scheme", "int8wo", "--json")
    assert made.returncode == 0, made.stderr
    manifest = json.loads(made.stdout)
    assert (manifest["scheme"], manifest["quantized_layers"]) == ("int8wo", 14)
    assert (tmp_path / "q" / "chancellor.json").exists()
    fails(run("quantize", str(tiny_model), str(tmp_path / "q")), "exists already")
    fails(run("quantize", str(tmp_path / "absent"), str(tmp_path / "r")), "no file or folder")
    assert run("quantize", str(tiny_model), str(tmp_path / "r"), "--scheme", "int3").returncode == 2
    text = run("quantize", str(tiny_model), str(tmp_path / "s"))
    assert "14 layers as int8" in text.stdout
    assert "Failed to load" not in text.stdout + text.stderr  # what libraries print goes to the log
