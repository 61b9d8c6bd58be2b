"""vLLM's parsers of calls and of thoughts: however an answer is cut into deltas, it reads as the whole does."""

import json
from collections.abc import Callable
from copy import copy
from typing import Any

import pytest

from chancellor import errors
from chancellor.engines import Delta, GenerationRequest
from chancellor.engines.answers import plan_of
from chancellor.engines.answers.vllm_parsers import VLLMCalls
from tests.vocabularies import deltas, demo_tokenizer, tiny_tokenizer

WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Get the weather.",
        "parameters": {
            "type": "object",
            "properties": {"place": {"type": "string"}, "days": {"type": "integer"}},
            "required": ["place", "days"],
        },
    },
}
NOW = {"type": "function", "function": {"name": "now", "description": "Tell the time."}}
PARIS: dict[str, Any] = {"place": 'Paris, {the} "6th" 🌦', "days": 12}
ROME: dict[str, Any] = {"place": "Rome", "days": 3}
THINK = ("<think>", "</think>")


def call(arguments: dict[str, Any], name: str = "weather", key: str = "arguments") -> str:
    return json.dumps({"name": name, key: arguments}, ensure_ascii=False)


def tagged(text: str) -> str:
    return f"<tool_call>\n{text}\n</tool_call>"


def xml(arguments: dict[str, Any], name: str = "weather") -> str:
    listed = "".join(f"<parameter={key}>\n{value}\n</parameter>\n" for key, value in arguments.items())
    return tagged(f"<function={name}>\n{listed}</function>")


TOKENIZERS: dict[str, Callable[[], Any]] = {
    "llama3_json": lambda: tiny_tokenizer("<|python_tag|>"),
    "mistral": lambda: tiny_tokenizer("[TOOL_CALLS]", "[ARGS]"),
    "mistral before v11": lambda: tiny_tokenizer("[TOOL_CALLS]"),
    "hermes": demo_tokenizer,
    "qwen3_coder": lambda: tiny_tokenizer("<tool_call>", "</tool_call>", *THINK),
}
"""With the tokens that each parser looks for; the demo model's has none of them."""
W, N = ("weather", PARIS), ("now", dict[str, Any]())
CALLS = [
    ("llama3_json", call(PARIS, key="parameters"), [W]),
    ("llama3_json", f"<|python_tag|>{call(PARIS)}", [W]),
    ("llama3_json", f"{call(PARIS)}; {call(ROME)}", [W, ("weather", ROME)]),
    ("llama3_json", call({}, "now"), [N]),
    ("mistral", f"[TOOL_CALLS]weather[ARGS]{json.dumps(PARIS)}", [W]),
    ("mistral", f"[TOOL_CALLS]weather{json.dumps(PARIS)}[TOOL_CALLS]now{{}}", [W, N]),
    ("mistral before v11", f"[TOOL_CALLS] [{call(PARIS)}, {call(ROME)}]", [W, ("weather", ROME)]),
    ("hermes", tagged(call(PARIS)), [W]),
    ("hermes", f"{tagged(call(PARIS))}\n{tagged(call({}, 'now'))}", [W, N]),
    ("qwen3_coder", xml(PARIS), [W]),
    ("qwen3_coder", f"{xml(PARIS)}\n{xml(ROME)}\n{xml({}, 'now')}", [W, ("weather", ROME), N]),
]
SIZES = [1, 3, 0, None]
"""Tokens a delta: 0 stands for all of them, None for an answer that is not streamed."""


def request(**more: Any) -> GenerationRequest:
    return GenerationRequest([{"role": "user", "content": "hi"}], **more)


def gathered(read: list[Delta]) -> tuple[str, str, list[tuple[str, str]], str | None]:
    """Return text, thoughts, calls and finish reason, as whoever gets the deltas puts them together."""
    calls: dict[int, tuple[str, str, str]] = {}
    for piece in (piece for delta in read for piece in delta.tool_calls):
        number, name, arguments = calls.get(piece.index, ("", "", ""))
        calls[piece.index] = number + (piece.id or ""), name + (piece.name or ""), arguments + piece.arguments
    assert len({number for number, _, _ in calls.values()} - {""}) == len(calls)  # each has an id of its own
    text, thoughts = "".join(one.text for one in read), "".join(one.reasoning for one in read)
    return text, thoughts, [(name, arguments) for _, name, arguments in calls.values()], read[-1].finish_reason


def is_json(text: str) -> bool:
    try:
        json.loads(text)
    except ValueError:
        return False
    return True


def called(name: str, text: str, size: int | None, reason: str = "stop") -> tuple[str, list[tuple[str, str]], Any]:
    """Return text, calls and finish reason of an answer, read by the parser of that name."""
    tokenizer = TOKENIZERS[name]()
    reader = VLLMCalls(name.split()[0], tokenizer, request(tools=(WEATHER, NOW), stream=size is not None))
    ids = tokenizer.encode(text, add_special_tokens=False)
    cut = deltas(tokenizer, ids, size or len(ids), reason=reason, skip_special_tokens=reader.skip_special_tokens)
    shown, _, calls, reason_then = gathered([reader.read(delta) for delta in cut])
    return shown, calls, reason_then


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("name", "text", "calls"), CALLS)
def test_calls(name: str, text: str, calls: list[Any], size: int | None) -> None:
    shown, found, reason = called(name, text, size)
    assert [(one, json.loads(arguments)) for one, arguments in found] == calls
    assert (shown.strip(), reason) == ("", "tool_calls")


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("name", "text", "calls"), CALLS)
def test_calls_that_are_cut_off_never_look_whole(name: str, text: str, calls: list[Any], size: int | None) -> None:
    tokenizer = TOKENIZERS[name]()
    ids = tokenizer.encode(text, add_special_tokens=False)
    for end in range(1, len(ids), 2):
        _, found, reason = called(name, tokenizer.decode(ids[:end]), size, "length")
        assert reason == "length"
        for (one, arguments), (whole, values) in zip(found, calls, strict=False):
            assert whole.startswith(one)
            assert not is_json(arguments) or json.loads(arguments) == values


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", TOKENIZERS)
@pytest.mark.parametrize("text", ["Four, I think: 2 < 4.", "a <", '{"no": "call"}'])
def test_an_answer_that_is_no_call_stays(name: str, text: str, size: int | None) -> None:
    assert called(name, text, size) == (text, [], "stop")
    assert called(name, text, size, "length") == (text, [], "length")


def thought(
    name: str, tokenizer: Any, text: str, size: int | None, *, tools: bool = False, **sampling: Any
) -> list[Delta]:
    """Return an answer as it is read with that parser of thoughts."""
    asked = request(tools=(WEATHER, NOW) if tools else (), stream=size is not None)
    plan = plan_of(asked, tokenizer, reasoning_parser=name)
    ids = tokenizer.encode(text, add_special_tokens=False)
    sampling["skip_special_tokens"] = plan.skip_special_tokens
    return [plan.read(delta) for delta in deltas(tokenizer, ids, size or len(ids), **sampling)]


@pytest.mark.parametrize("stop", [(), ("</answer> and so on",)])  # text that may begin a stop text is kept back
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", ["deepseek_r1", "qwen3"])
@pytest.mark.parametrize(
    ("text", "reasoning", "answer"),
    [
        ("<think>Two and\ntwo 🤔.</think>\n\nFour.", "Two and\ntwo 🤔.", "\n\nFour."),
        ("Two and two.</think>Four.", "Two and two.", "Four."),  # where the template has begun the thoughts
        ("<think></think>Four.", "", "Four."),
        ("<think>Two and", "Two and", ""),
        ("Two and", "Two and", ""),
    ],
)
def test_thoughts_are_kept_apart(
    name: str, text: str, reasoning: str, answer: str, size: int | None, stop: tuple[str, ...]
) -> None:
    tokenizer = tiny_tokenizer("<tool_call>", "</tool_call>", *THINK)
    read = thought(name, tokenizer, text, size, stop=list(stop))
    shown, thoughts, calls, reason = gathered(read)
    assert (shown, thoughts, calls, reason) == (answer, reasoning, [], "stop")
    assert [one for delta in read for one in delta.token_ids] == tokenizer.encode(text)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", ["deepseek_r1", "qwen3"])
@pytest.mark.parametrize(
    ("template", "calls"),  # read by vLLM's parser, and by ours
    [
        ("{{ tools }} <function=", f"{xml(PARIS)}\n{xml(ROME)}"),
        ("{{ tools }}", f"{tagged(call(PARIS))}{tagged(call(ROME))}"),
    ],
)
def test_calls_after_thoughts(name: str, template: str, calls: str, size: int | None) -> None:
    tokenizer = copy(tiny_tokenizer("<tool_call>", "</tool_call>", *THINK))
    tokenizer.chat_template = template
    text = f"<think>Is {call(ROME)} the one?</think>\n{calls}"
    shown, thoughts, found, reason = gathered(thought(name, tokenizer, text, size, tools=True))
    assert (shown.strip(), thoughts, reason) == ("", f"Is {call(ROME)} the one?", "tool_calls")
    assert [(one, json.loads(arguments)) for one, arguments in found] == [W, ("weather", ROME)]


def test_parsers_that_do_not_fit() -> None:
    tokenizer = copy(tiny_tokenizer())
    tokenizer.chat_template = "{{ tools }}"
    asked = request(tools=(WEATHER,))
    with pytest.raises(errors.UnknownChoiceError, match="llama3_json"):
        plan_of(asked, tokenizer, tool_parser="llama3")
    with pytest.raises(errors.UnknownChoiceError, match="deepseek_r1"):
        plan_of(asked, tokenizer, reasoning_parser="r1")
    with pytest.raises(errors.InvalidInputError, match=r"does not go with this model's tokenizer.*python_tag"):
        plan_of(asked, tokenizer, tool_parser="llama3_json")
    with pytest.raises(errors.InvalidInputError, match="'deepseek_r1' does not go with this model's tokenizer"):
        plan_of(asked, tokenizer, reasoning_parser="deepseek_r1")
