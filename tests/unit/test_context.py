from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import pytest
from pydantic import BaseModel

from chancellor.context import Context
from chancellor.errors import InvalidContextError


def test_defaults_are_the_tickets() -> None:
    context = Context()
    assert (context.temperature, context.max_tokens, context.model) == (0.7, 512, None)


@pytest.mark.parametrize(
    ("wrong", "field"),
    [
        ({"temprature": 0}, "temprature"),
        ({"temperature": 3}, "temperature"),
        ({"temperature": "warm"}, "temperature"),
        ({"max_tokens": 0}, "max_tokens"),
    ],
)
def test_a_wrong_field_is_named_and_the_right_ones_listed(wrong: dict[str, object], field: str) -> None:
    with pytest.raises(InvalidContextError) as caught:
        Context(**wrong)
    assert field in caught.value.message
    assert "max_tokens" in caught.value.hint


@dataclass
class Carrier:
    """The form of context that LangGraph's documents show."""

    model: str = "gpt"
    chancellor: Any = None


class Pydantic(BaseModel):
    chancellor: dict[str, Any]


def test_what_langgraph_hands_over() -> None:
    @dataclass
    class Foreign:
        model: str = "gpt"

    own = Context(temperature=0.1)
    assert Context.of(own) is own
    assert Context.of(None) == Context()
    assert Context.of({"model": "openai/gpt-5", "temperature": 9}) == Context()
    assert Context.of({"model": "openai/gpt-5", "chancellor": {"temperature": 0.1}}) == own
    assert Context.of({"chancellor": own}) is own
    assert Context.of(Foreign()) == Context()
    assert Context.of(Carrier()) == Context()
    assert Context.of(Carrier(chancellor={"temperature": 0.1})) == own
    assert Context.of(Carrier(chancellor=own)) is own
    assert Context.of(Pydantic(chancellor={"temperature": 0.1})) == own
    assert Context.of(MappingProxyType({"chancellor": own})) is own
    with pytest.raises(InvalidContextError, match="temprature"):
        Context.of(Carrier(chancellor={"temprature": 0}))


def test_a_subclass_is_kept() -> None:
    class Mine(Context):
        colour: str = "blue"

    assert Context.of(Mine(colour="red")) == Mine(colour="red")
    assert Context.of({"chancellor": Mine(colour="red")}) == Mine(colour="red")
    assert Mine.of({"chancellor": {"colour": "red", "seed": 1}}) == Mine(colour="red", seed=1)
    found = Mine.of({"chancellor": Context(seed=1)})
    assert found == Mine(seed=1)
    assert found.model_fields_set == {"seed"}
    assert Mine.of(Context(seed=1)) == Mine(seed=1)


@pytest.mark.parametrize("wrong", ["fast", b"fast", 5, 0.5, True, ["fast"]])
def test_what_has_no_fields_is_no_context(wrong: object) -> None:
    for given in (wrong, {"chancellor": wrong}, Carrier(chancellor=wrong)):
        with pytest.raises(InvalidContextError, match="context of this run: it has no fields"):
            Context.of(given)


def test_fields_are_tagged_for_studio() -> None:
    properties = Context.model_json_schema()["properties"]
    assert properties["model"]["langgraph_nodes"] == ["select_model"]
    assert properties["temperature"]["langgraph_nodes"] == ["generate"]
