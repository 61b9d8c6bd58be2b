"""What the README shows is what there is; its Python is run by tests/integration/test_readme.py."""

import re
from pathlib import Path

import pytest

from chancellor import Catalog, create_chancellor
from chancellor.catalog import EngineOptions
from chancellor.quantization.schemes import SCHEMES

README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def test_the_picture_is_drawn_from_the_graph() -> None:
    drawn = create_chancellor(Catalog.demo()).compile().get_graph().draw_mermaid()
    assert blocks("mermaid") == [drawn.strip() + "\n"]


def test_the_catalog_is_one(tmp_path: Path) -> None:
    path = tmp_path / "chancellor.toml"
    (text,) = blocks("toml")
    path.write_text(text, encoding="utf-8")
    catalog = Catalog.load(path)
    assert [spec.name for spec in catalog.eligible()] == ["light", "strong"]
    assert catalog["strong"].engine == EngineOptions()


def test_the_schemes_are_all_there() -> None:
    for scheme in SCHEMES.values():
        assert f"| `{scheme.name}` |" in README
        assert f"`{scheme.torchao_type}`" in README


@pytest.mark.parametrize("target", re.findall(r"^    make ([a-z-]+)", README, re.MULTILINE))
def test_the_make_targets_exist(target: str) -> None:
    makefile = (Path(__file__).parents[2] / "Makefile").read_text(encoding="utf-8")
    assert re.search(rf"^{target}:", makefile, re.MULTILINE)
