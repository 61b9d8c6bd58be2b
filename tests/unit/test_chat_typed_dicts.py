"""TypedDicts with what LangChain reads of them, also where it does not make their schemas."""

from typing import Annotated, Any, NotRequired, TypedDict

import pytest
from langchain_core.utils.function_calling import convert_to_openai_tool
from pydantic import Field

from chancellor import ChatVLLM, errors
from chancellor.chat.options import tools_of
from chancellor.chat.schemas import schema_of
from chancellor.engines import EnginePool
from tests.fakes import FakeEngine, catalog


class Weather(TypedDict):
    """The weather.

    Of a day.

    Args:
        city: the city's name,
            as on maps: in capitals.
        unit (str): C or F.
    """

    city: str
    unit: str


class Rain(Weather):
    """The rain.

    Args:
        city: the city's name.
        depth: in mm.

    Returns:
        Nothing.
    """

    depth: NotRequired[Annotated[int, Field(description="in inches", ge=0)]]


class Bare(TypedDict):
    now: Weather
    later: list[Weather]


class Demanded(TypedDict, total=False):
    """Demanded."""

    a: Annotated[int, ..., "The first."]
    b: Annotated[int, 3, "The second."]


class Mixed(Demanded, total=False):
    """Mixed."""

    c: int


class Tree(TypedDict):
    """A tree."""

    children: list["Tree"]


@pytest.fixture
def model(fake_engine: type[FakeEngine]) -> ChatVLLM:
    return ChatVLLM(model="light", catalog=catalog(), pool=EnginePool(fake_engine))


def function(typed: Any) -> dict[str, Any]:
    (made,) = tools_of([typed])
    found: dict[str, Any] = made["function"]
    return found


@pytest.mark.parametrize("typed", [Weather, Demanded])
def test_langchains_own_conversion_where_that_will_do(typed: Any) -> None:
    assert tools_of([typed]) == [convert_to_openai_tool(typed)]


def test_google_docstrings() -> None:
    found = function(Rain)
    assert found["description"] == "The rain."
    assert found["parameters"]["required"] == ["city", "unit"]
    properties = found["parameters"]["properties"]
    assert {name: one.get("description") for name, one in properties.items()} == {
        "city": "the city's name.",
        "unit": None,
        "depth": "in mm.",
    }
    assert properties["depth"]["minimum"] == 0


def test_descriptions_inside_of_one_without() -> None:
    found = function(Bare)
    assert found["description"] == ""
    properties = found["parameters"]["properties"]
    assert properties["now"] == properties["later"]["items"]
    assert properties["now"]["description"] == "The weather. Of a day."
    assert properties["now"]["properties"]["city"]["description"] == "the city's name, as on maps: in capitals."
    assert properties["now"]["properties"]["unit"]["description"] == "C or F."


def test_langchains_dots_demand_a_key() -> None:
    assert function(Mixed)["parameters"]["required"] == ["a"]
    assert function(Mixed)["parameters"]["properties"]["b"]["default"] == 3


@pytest.mark.parametrize("method", ["json_schema", "function_calling", "json_mode"])
def test_answers_of_a_type_that_holds_itself(model: ChatVLLM, method: str) -> None:
    model.with_structured_output(Tree, method=method, include_raw=True).invoke("hi")
    request = FakeEngine.requests[-1]
    found: Any = request.guide.value if request.guide is not None else request.tools[0]["function"]["parameters"]
    assert found["$defs"]["Tree"]["properties"]["children"]["items"] == {"$ref": "#/$defs/Tree"}


def test_classes_inside_of_functions(model: ChatVLLM) -> None:
    class Leaf(TypedDict):
        """A leaf."""

        leaves: list["Leaf"]  # type: ignore[misc] # mypy takes none at function scope

    class Branch(TypedDict):
        """A branch."""

        leaf: "Leaf"

    assert function(Leaf)["parameters"]["properties"]["leaves"]["items"] == {"$ref": "#/$defs/Leaf"}
    with pytest.raises(errors.InvalidInputError, match="'Leaf' is not defined"):
        tools_of([Branch])
    with pytest.raises(errors.InvalidInputError, match="'Leaf' is not defined"):
        schema_of(Branch)
    with pytest.raises(errors.InvalidInputError, match="'Leaf' is not defined"):
        model.with_structured_output(Branch)


def test_what_pydantic_refuses() -> None:
    def grow(tree: Tree) -> None:
        """Grow."""

    with pytest.raises(errors.InvalidInputError, match="grow"):
        tools_of([grow])
