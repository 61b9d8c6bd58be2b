"""Tools and schemas as a chat model hands them to its engine."""

import enum
from typing import Annotated, Any, NotRequired, Required, TypedDict

import pytest
import typing_extensions
from langchain_core.tools import BaseTool, InjectedToolArg, StructuredTool, tool
from langchain_core.utils.function_calling import convert_to_openai_tool
from pydantic import BaseModel, Field

from chancellor import ChatVLLM, errors
from chancellor.chat.options import tools_of
from chancellor.chat.schemas import schema_of
from chancellor.engines import EnginePool
from tests.fakes import FakeEngine, catalog


class Tree(BaseModel):
    """A tree of numbers."""

    value: float
    children: list["Tree"] = Field(description="Smaller ones.")


class Wood(BaseModel):
    """A wood."""

    tallest: Tree = Field(description="The tallest of them.")
    place: str


WOOD = Wood.model_json_schema()


class Knot(BaseModel):
    """A knot that holds itself by way of another."""

    rope: "Rope | None" = None


class Rope(BaseModel):
    knot: Knot | None = None


Knot.model_rebuild()


def plant(tree: Tree, place: str) -> str:
    """Plant a tree.

    Args:
        tree: which one.
        place: where.
    """
    return ""


@tool
def plant_secretly(tree: Tree, secret: Annotated[str, InjectedToolArg]) -> str:
    """Plant a tree."""
    return secret


class Planting(BaseTool):
    name: str = "planting"
    description: str = "Plant a wood."
    args_schema: Any = Wood

    def _run(self, **_: Any) -> str:
        return ""


class Person(TypedDict):
    """A person."""

    name: Annotated[str, ..., "What others call them."]
    age: NotRequired[int]
    friend: "NotRequired[Person | None]"


class Hints(typing_extensions.TypedDict, total=False):
    """Hints."""

    word: Required[str]
    pages: list[Person]
    score: Annotated[int, 3, "From 1 to 5."]


class Plain(TypedDict):
    """A plain one."""

    word: Annotated[str, ..., "A word."]


class Color(enum.Enum):
    RED = "red"


TREE = {
    "type": "object",
    "description": "A tree of numbers.",
    "properties": {
        "value": {"type": "number"},
        "children": {"type": "array", "items": {"$ref": "#/$defs/Tree"}, "description": "Smaller ones."},
    },
    "required": ["value", "children"],
}
"""A reference, not an empty schema in its place."""


@pytest.fixture
def model(fake_engine: type[FakeEngine]) -> ChatVLLM:
    return ChatVLLM(model="light", catalog=catalog(), pool=EnginePool(fake_engine))


@pytest.mark.parametrize(
    ("given", "name", "properties"),
    [
        (Tree, "Tree", TREE["properties"]),
        (Wood, "Wood", {"tallest": {"description": "The tallest of them."}, "place": {"type": "string"}}),
        (Planting(), "planting", {"tallest": {"description": "The tallest of them."}, "place": {"type": "string"}}),
        (plant, "plant", {"tree": {"description": "which one."}, "place": {"type": "string", "description": "where."}}),
        (plant_secretly, "plant_secretly", {"tree": {}}),
        (
            StructuredTool.from_function(lambda **_: "", name="any", description="D.", args_schema=WOOD),
            "any",
            {"tallest": {"description": "The tallest of them."}, "place": {"type": "string"}},
        ),
    ],
    ids=lambda one: one if isinstance(one, str) else "",
)  # fmt: skip
def test_types_that_hold_themselves(model: ChatVLLM, given: Any, name: str, properties: dict[str, Any]) -> None:
    model.bind_tools([given]).invoke("hi")
    (told,) = FakeEngine.requests[-1].tools
    function = told["function"]
    assert (function["name"], function["description"]) == (
        name,
        convert_to_openai_tool(given)["function"]["description"],
    )
    parameters = function["parameters"]
    assert parameters["$defs"] == {"Tree": TREE}
    assert parameters["type"] == "object"
    assert parameters["required"] == list(properties)
    found = parameters["properties"]
    for key in ("tallest", "tree"):
        if key in properties:
            assert found[key].pop("$ref") == "#/$defs/Tree"
    assert found == properties


def test_types_that_hold_each_other() -> None:
    (made,) = tools_of([Knot])
    assert set(made["function"]["parameters"]["$defs"]) == {"Knot", "Rope"}
    assert made["function"]["parameters"]["properties"]["rope"]["anyOf"][0] == {"$ref": "#/$defs/Rope"}


def test_all_others_are_as_langchain_makes_them() -> None:
    @tool
    def add(a: int, b: Annotated[int, "The second."]) -> int:
        """Add two numbers."""
        return a + b

    class Inner(BaseModel):
        word: str

    class Pair(BaseModel):
        """A pair."""

        first: Inner
        second: int = Field(default=3, description="One more.")

    for given in (add, Pair, Plain, {"name": "x", "parameters": {}}):
        assert tools_of([given]) == [convert_to_openai_tool(given)]


def test_structured_output_by_a_call_of_such_a_type(model: ChatVLLM) -> None:
    model.with_structured_output(Tree, method="function_calling", include_raw=True).invoke("hi")
    request = FakeEngine.requests[-1]
    assert request.tool_choice == "Tree"
    assert request.tools[0]["function"]["parameters"]["properties"] == TREE["properties"]


@pytest.mark.parametrize("method", ["json_schema", "function_calling"])
def test_typed_dicts_with_keys_that_may_be_left_out(model: ChatVLLM, method: str) -> None:
    def asked(typed: Any) -> dict[str, Any]:
        model.with_structured_output(typed, method=method, include_raw=True).invoke("hi")
        request = FakeEngine.requests[-1]
        if method == "json_schema":
            assert request.guide is not None
            found: dict[str, Any] = request.guide.value
            return found["$defs"]["Person"] | found if "$ref" in found else found
        assert request.tool_choice == typed.__name__
        parameters: dict[str, Any] = request.tools[0]["function"]["parameters"]
        return parameters

    person = asked(Person)
    assert person["required"] == ["name"]
    assert person["properties"]["name"]["description"] == "What others call them."
    assert person["properties"]["age"]["type"] == "integer"
    assert person["properties"]["friend"]["anyOf"][0] == {"$ref": "#/$defs/Person"}
    hints = asked(Hints)
    assert hints["required"] == ["word"]
    assert hints["properties"]["pages"]["items"] == {"$ref": "#/$defs/Person"}
    assert {"default": 3, "description": "From 1 to 5."}.items() <= hints["properties"]["score"].items()


def test_a_typed_dict_comes_back_as_a_dict(model: ChatVLLM) -> None:
    asked = model.with_structured_output(Person, method="function_calling")
    assert asked.invoke('call Person {"name": "Ada"}') == {"name": "Ada"}


def test_a_typed_dict_without_a_docstring_has_no_description() -> None:
    class Bare(TypedDict):
        word: str

    assert "description" not in schema_of(Bare)  # LangChain's is that of dict


@pytest.mark.parametrize("schema", [Color, int, dict, list])
@pytest.mark.parametrize("method", ["json_schema", "function_calling", "json_mode"])
def test_what_is_no_schema(model: ChatVLLM, schema: Any, method: str) -> None:
    hint = "structured_outputs" if schema is Color else "says nothing"
    with pytest.raises(errors.InvalidInputError, match=hint):
        model.with_structured_output(schema, method=method)


def test_one_call_at_most(model: ChatVLLM) -> None:
    def asked(**more: Any) -> tuple[bool, bool]:
        model.bind_tools([plant], **more).invoke("hi")
        request = FakeEngine.requests[-1]
        return request.parallel_tool_calls, request.single_tool_call

    assert asked() == (False, False)
    assert asked(parallel_tool_calls=True) == (True, False)
    assert asked(parallel_tool_calls=False) == (False, True)


@pytest.mark.parametrize(
    ("choice", "wanted"),
    [
        ({"type": "any"}, "required"),
        ({"type": "required"}, "required"),
        ({"type": "any", "disable_parallel_tool_use": True}, "required"),  # Anthropic's
        ({"type": "none"}, "none"),
        ({"type": "auto"}, "auto"),
        ({"type": "tool", "name": "plant"}, "plant"),
        ({"type": "function", "name": "plant"}, "plant"),
        ({"type": "function", "function": {"name": "plant"}}, "plant"),
        ({"name": "plant"}, "plant"),
        ("any", "required"),
        (True, "required"),
        (False, "auto"),
        (None, "auto"),
    ],
    ids=str,
)
def test_tool_choices_of_every_form(model: ChatVLLM, choice: Any, wanted: str) -> None:
    model.bind_tools([plant], tool_choice=choice).invoke("hi")
    assert FakeEngine.requests[-1].tool_choice == wanted
    model.invoke("hi", tools=[plant], tool_choice=choice)
    assert FakeEngine.requests[-1].tool_choice == wanted
