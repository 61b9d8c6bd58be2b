from pathlib import Path

import pytest

from chancellor import Catalog, ModelSpec, Pillars, errors
from chancellor.settings import settings

GOOD = """
minimum_trinity_score = 95.0
[[models]]
name = "a"
source = "org/a"
revision = "abc"
scheme = "int8"
tier = "light"
trinity = { truth = 96, goodness = 96, beauty = 96, serenity = 96, eternity = 96 }
[models.engine]
max_model_len = 2048
vllm = { max_num_seqs = 8 }
[[models]]
name = "b"
source = "org/b"
trinity = 94.9
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "chancellor.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_a_complete_file(tmp_path: Path) -> None:
    catalog = Catalog.load(write(tmp_path, GOOD))
    assert list(catalog) == ["a", "b"]
    assert catalog["a"].trinity_score == 96
    assert catalog["a"].engine.max_model_len == 2048
    assert catalog["a"].engine.gpu_memory_utilization == 0.8
    assert [spec.name for spec in catalog.eligible()] == ["a"]
    assert catalog.rejection(catalog["b"]) == "Trinity score 94.9 is below the minimum of 95"
    with pytest.raises(errors.ModelRejectedError, match=r"94\.9"):
        catalog.usable("b")


def test_the_demo_has_a_light_a_strong_and_a_rejected_model() -> None:
    catalog = Catalog.demo()
    assert catalog["smollm2-135m-int8"].tier == "light"
    assert catalog["smollm2-135m"].tier == "strong"
    assert [name for name in catalog if catalog.rejection(catalog[name])] == ["smollm2-135m-int8wo"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("models = [", "not valid TOML"),
        ('[[models]]\nname = "a"\nsource = "org/a"', "models.0.trinity"),
        ('[[models]]\nname = "a"\nsource = "org/a"\ntrinity = 101', "models.0.trinity"),
        ('[[models]]\nname = "a"\nsource = "org/a"\ntrinity = 96\nshceme = "int8"', "shceme"),
        ('[[models]]\nname = "a"\nsource = "org/a"\ntrinity = 96\n[models.engine]\nmax_len = 1', "max_len"),
        ('model = "a"', "model"),
        ('[[models]]\nname = "a"\nsource = "o/a"\ntrinity = 96\n' * 2, "named 'a'"),
    ],
)
def test_a_malformed_file_names_the_place(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(errors.CatalogFileError, match=words):
        Catalog.load(write(tmp_path, text))


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(errors.CatalogFileError, match="cannot be read"):
        Catalog.load(tmp_path / "none.toml")


def test_an_unknown_scheme_lists_the_schemes() -> None:
    with pytest.raises(errors.UnknownChoiceError, match="int8, int8wo"):
        ModelSpec(name="a", source="org/a", trinity=96, scheme="int3")


def test_empty_and_all_rejected() -> None:
    with pytest.raises(errors.NoEligibleModelError, match="empty"):
        Catalog([]).eligible()
    with pytest.raises(errors.NoEligibleModelError, match="x: Trinity score 50"):
        Catalog([ModelSpec(name="x", source="org/x", trinity=50)]).eligible()


def test_unknown_model_lists_the_known_ones() -> None:
    with pytest.raises(errors.UnknownModelError, match="smollm2-135m-int8"):
        Catalog.demo()["gpt"]
    assert "gpt" not in Catalog.demo()
    assert Catalog.demo().get("gpt") is None


def test_the_minimum_is_a_setting() -> None:
    spec = ModelSpec(name="x", source="org/x", trinity=50)
    assert Catalog([spec], minimum_trinity_score=50).eligible() == [spec]


def test_paths_are_relative_to_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "model").mkdir()
    path = write(tmp_path, '[[models]]\nname = "a"\nsource = "./model"\ntrinity = 96')
    monkeypatch.chdir("/")
    assert Path(Catalog.load(path)["a"].source) == tmp_path / "model"


def test_which_file_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert Catalog.load() == Catalog.demo()
    local = write(tmp_path, GOOD)
    assert list(Catalog.load()) == ["a", "b"]
    other = tmp_path / "other.toml"
    other.write_text('[[models]]\nname = "c"\nsource = "org/c"\ntrinity = 96', encoding="utf-8")
    monkeypatch.setenv("CHANCELLOR_CONFIG", str(other))
    settings.cache_clear()
    try:
        assert list(Catalog.load()) == ["c"]
        assert list(Catalog.load(local)) == ["a", "b"]  # an explicit argument wins over the environment
    finally:
        monkeypatch.undo()
        settings.cache_clear()


def test_pillars_make_the_score() -> None:
    pillars = Pillars(truth=100, goodness=100, beauty=90, serenity=90, eternity=90)
    assert ModelSpec(name="a", source="org/a", trinity=pillars).trinity_score == pillars.score
