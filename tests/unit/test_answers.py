"""Between a request and what a model reads and writes: tools, guides, reasoning."""

import itertools
import json
import random
from typing import Any

import pytest

from chancellor import errors
from chancellor.engines import Delta, GenerationRequest, Guide, ToolCallPiece
from chancellor.engines.answers import plan_of
from chancellor.engines.answers.calls import CLOSE, OPEN, FirstCall, TaggedCalls, as_text
from chancellor.engines.answers.schemas import bounded, tight

ADD = {
    "type": "function",
    "function": {
        "name": "add",
        "description": "Add two numbers.",
        "parameters": {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]},
    },
}
NOW = {"type": "function", "function": {"name": "now", "description": "Tell the time."}}
ONE = f'{OPEN}\n{{"name": "add", "arguments": {{"a": 1}}}}\n{CLOSE}'
TWO = f'{OPEN}{{"arguments": {{"b": "x}}</"}}, "name": "now"}}{CLOSE}'


class Tokenizer:
    """One without a vocabulary: only its template counts here."""

    def __init__(self, template: str | None = "{{ messages }}") -> None:
        self.chat_template = template


KNOWS = Tokenizer("{{ messages }} {{ tools }}")


def read(text: str, cuts: list[int]) -> tuple[str, dict[int, tuple[Any, str]], str | None]:
    """Feed a text in pieces; return what is left of it, the calls by index, and the finish reason."""
    reader, shown, calls = TaggedCalls(), "", dict[int, tuple[Any, str]]()
    bounds = [0, *cuts, len(text)]
    last = Delta("")
    for start, end in itertools.pairwise(bounds):
        last = reader.read(Delta(text[start:end], finish_reason="stop" if end == len(text) else None))
        shown += last.text
        for piece in last.tool_calls:
            name, arguments = calls.get(piece.index, (None, ""))
            calls[piece.index] = piece.name or name, arguments + piece.arguments
    return shown, calls, last.finish_reason


@pytest.mark.parametrize(
    ("text", "shown", "calls"),
    [
        ("Four.", "Four.", {}),
        ("a < b <tool", "a < b <tool", {}),
        (ONE, "", {0: ("add", {"a": 1})}),
        (f"Let me see.\n{ONE}", "Let me see.", {0: ("add", {"a": 1})}),
        (f"{ONE}\n{TWO}", "", {0: ("add", {"a": 1}), 1: ("now", {"b": "x}</"})}),
        (ONE.replace(": ", " : \n "), "", {0: ("add", {"a": 1})}),
    ],
)
def test_calls_are_read_whatever_the_pieces(text: str, shown: str, calls: dict[int, Any]) -> None:
    draw = random.Random(0)
    splits = [[], list(range(1, len(text)))]
    splits += [sorted(draw.sample(range(1, len(text)), min(4, len(text) - 1))) for _ in range(60)]
    for cuts in splits:
        left, found, reason = read(text, cuts)
        assert left == shown
        assert {index: (name, json.loads(arguments)) for index, (name, arguments) in found.items()} == calls
        assert found == read(text, [])[1]  # white space and all
        assert reason == ("tool_calls" if calls else "stop")


def test_a_call_that_is_cut_off_keeps_what_there_is() -> None:
    for text in (ONE[:-20], f"{OPEN}oops{CLOSE}", f"{OPEN}oops"):
        reader = TaggedCalls()
        delta = reader.read(Delta(text, finish_reason="length"))
        assert delta.finish_reason == "length"
        assert delta.tool_calls[0].id is not None
        with pytest.raises(ValueError, match="line 1"):
            json.loads("".join(piece.arguments for piece in delta.tool_calls))


def test_a_call_that_lacks_its_closing_tag_only_is_whole() -> None:
    for end in range(len(ONE) - len("}\n" + CLOSE), len(ONE)):
        reader = TaggedCalls()
        deltas = [reader.read(Delta(text)) for text in ONE[: end - 1]]
        deltas.append(reader.read(Delta(ONE[end - 1 : end], finish_reason="length")))
        pieces = [piece.arguments for delta in deltas for piece in delta.tool_calls]
        assert json.loads("".join(pieces)) == {"a": 1}
        assert deltas[-1].finish_reason == "tool_calls"


def test_templates_that_know_no_tools_are_told_in_words() -> None:
    history: list[dict[str, Any]] = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "1+1?"},
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [{"id": "1", "type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}],
        },
        {"role": "tool", "tool_call_id": "1", "content": "2"},
    ]
    told = as_text(history, [ADD])
    assert [one["role"] for one in told] == ["system", "user", "assistant", "user"]
    assert told[0]["content"].startswith("Be brief.\n\n")
    assert "Add two numbers." in told[0]["content"]
    assert told[2]["content"] == ONE
    assert told[3]["content"] == "<tool_response>\n2\n</tool_response>"
    assert as_text(history, [])[0]["content"] == "Be brief."
    assert as_text([], [ADD])[0]["role"] == "system"
    # A template that knows tools gets them as they are, with the arguments as an object.
    plan = plan_of(GenerationRequest(history, tools=(ADD,)), KNOWS)
    assert plan.tools == [ADD]
    assert plan.messages[2]["tool_calls"][0]["function"]["arguments"] == {"a": 1}
    assert plan.messages[2]["content"] == ""


def request(**more: Any) -> GenerationRequest:
    return GenerationRequest([{"role": "user", "content": "hi"}], **more)


def tag(guide: Guide | None) -> dict[str, Any]:
    assert guide is not None
    assert guide.kind == "structural_tag"
    form: dict[str, Any] = json.loads(guide.value)["format"]
    return form


def test_what_binds_the_answer() -> None:
    both = (ADD, NOW)
    assert plan_of(request(), Tokenizer()).guide is None
    assert plan_of(request(tools=both, tool_choice="none"), Tokenizer()).readers == []
    auto = tag(plan_of(request(tools=both), Tokenizer()).guide)
    assert (auto["type"], auto["triggers"], len(auto["tags"])) == ("triggered_tags", [OPEN], 2)
    forced = tag(plan_of(request(tools=both, tool_choice="required"), Tokenizer()).guide)
    assert (forced["at_least_one"], forced["stop_after_first"], len(forced["tags"])) == (True, True, 2)
    assert auto["stop_after_first"] is False
    assert tag(plan_of(request(tools=both, parallel_tool_calls=True), KNOWS).guide)["stop_after_first"] is False
    single = tag(plan_of(request(tools=both, single_tool_call=True), Tokenizer()).guide)
    assert single["stop_after_first"] is True
    several = tag(plan_of(request(tools=both, tool_choice="required", parallel_tool_calls=True), KNOWS).guide)
    assert several["stop_after_first"] is False
    named = tag(plan_of(request(tools=both, tool_choice="now"), Tokenizer()).guide)
    assert [one["begin"] for one in named["tags"]] == [f'{OPEN}\n{{"name": "now", "arguments": ']
    schema = Guide("json_schema", {"type": "object", "properties": {"n": {"type": "integer"}}})
    either = tag(plan_of(request(tools=both, guide=schema), Tokenizer()).guide)
    assert [one["type"] for one in either["elements"]] == ["json_schema", "tags_with_separator"]
    assert either["elements"][1]["stop_after_first"] is False
    either = tag(plan_of(request(tools=both, guide=schema, single_tool_call=True), Tokenizer()).guide)
    assert either["elements"][1]["stop_after_first"] is True


def test_a_guide_for_one_call_at_most_ends_with_it() -> None:
    from xgrammar import Grammar
    from xgrammar.testing import _is_grammar_accept_string as accepted

    answers = ("Four.", ONE, f"Let me see.\n{ONE}", f"{ONE}\n{ONE}", f"{ONE} Four.")
    for single, wanted in ((False, [True] * 5), (True, [True, True, True, False, False])):
        guide = plan_of(request(tools=(ADD, NOW), single_tool_call=single), KNOWS).guide
        assert guide is not None
        grammar = Grammar.from_structural_tag(guide.value)
        assert [accepted(grammar, answer) for answer in answers] == wanted


def test_calls_after_the_first_are_left_out_where_no_guide_ends_the_answer() -> None:
    reader = FirstCall()
    pieces = (ToolCallPiece(0, arguments="}"), ToolCallPiece(1, "call_2", "now"))
    assert reader.read(Delta("a", tool_calls=pieces)) == Delta("a", tool_calls=pieces[:1])
    assert reader.read(Delta("", tool_calls=pieces[:1])) == Delta("", tool_calls=pieces[:1])


def test_what_cannot_be_asked_for_together() -> None:
    with pytest.raises(errors.UnknownChoiceError, match="no tool 'sub'"):
        plan_of(request(tools=(ADD,), tool_choice="sub"), Tokenizer())
    with pytest.raises(errors.InvalidInputError, match="forced tool call"):
        plan_of(request(tools=(ADD,), tool_choice="add", guide=Guide("json_object")), Tokenizer())
    with pytest.raises(errors.InvalidInputError, match="guide by regex"):
        plan_of(request(tools=(ADD,), guide=Guide("regex", "a")), Tokenizer())


def test_numbers_get_limits_and_keep_their_own() -> None:
    schema = {
        "type": "object",
        "properties": {
            "n": {"type": "integer"},
            "own": {"type": "integer", "minimum": 3},
            "one": {"enum": [1, 2]},
            "list": {"type": "array", "items": {"$ref": "#/$defs/x"}},
        },
        "$defs": {"x": {"type": ["number", "null"]}},
    }
    made = bounded(schema)
    assert made["properties"]["n"]["minimum"] == -(made["properties"]["n"]["maximum"])
    assert made["properties"]["own"]["minimum"] == 3
    assert made["properties"]["one"] == {"enum": [1, 2]}
    assert made["$defs"]["x"]["maximum"] == 10**15
    assert "maximum" not in schema["properties"]["n"]  # type: ignore[index]


def test_a_tight_schema_fits_into_its_tokens() -> None:
    schema = {
        "$ref": "#/$defs/tree",
        "$defs": {
            "tree": {
                "type": "object",
                "properties": {
                    "name": {"type": "string"},
                    "code": {"type": "string", "pattern": "a+"},
                    "short": {"type": "string", "maxLength": 3},
                    "children": {"type": "array", "items": {"$ref": "#/$defs/tree"}},
                    "tags": {"type": "array", "items": {"type": "string"}, "minItems": 5},
                    "more": {"type": "object", "additionalProperties": {"type": "integer"}},
                },
            }
        },
    }
    made = tight(schema, 120)["$defs"]["tree"]["properties"]
    assert made["name"]["maxLength"] == 20  # three open texts share half of the tokens
    assert "maxLength" not in made["code"]
    assert made["short"]["maxLength"] == 3
    assert made["children"]["maxItems"] == 0  # they would have children, too
    assert made["tags"]["maxItems"] == 5
    assert made["more"]["maxProperties"] == 3
