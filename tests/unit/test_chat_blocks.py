"""Histories of other providers: of content blocks, the text is read."""

from typing import Any

import pytest
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, ToolMessage

from chancellor import errors
from chancellor.chat.messages import to_engine

TEXT = {"type": "text", "text": "Let me see."}
CALL = {"name": "add", "args": {"a": 1}, "id": "1"}
SAID = [{"type": "function", "id": "1", "function": {"name": "add", "arguments": '{"a": 1}'}}]


@pytest.mark.parametrize(
    "block",
    [
        {"type": "tool_use", "id": "1", "name": "add", "input": {"a": 1}},
        {"type": "tool_use", "id": "1", "name": "add", "partial_json": '{"a": 1}'},
        {"type": "function_call", "call_id": "1", "name": "add", "arguments": '{"a": 1}', "id": "fc_1"},
        {"type": "function_call", "call_id": "1"},
        {"type": "tool_call", **CALL},
        {"type": "tool_call_chunk", "name": "add", "args": '{"a"', "id": "1", "index": 0},
        {"type": "invalid_tool_call", "name": "add", "args": "{", "id": "2", "error": "cut off"},
        {"type": "reasoning", "reasoning": "One and one."},
        {"type": "reasoning", "id": "rs_1", "summary": [{"type": "summary_text", "text": "One."}]},
        {"type": "thinking", "thinking": "One and one.", "signature": "x"},
        {"type": "redacted_thinking", "data": "x"},
        {"type": "reasoning_content", "reasoning_content": {"text": "One and one."}},
        {"type": "server_tool_use", "id": "s", "name": "web_search", "input": {"query": "1+1"}},
        {"type": "server_tool_call", "id": "s", "name": "web_search", "args": {"query": "1+1"}},
        {"type": "server_tool_call_chunk", "id": "s", "name": "web_search", "args": "{"},
        {"type": "server_tool_result", "tool_call_id": "s", "status": "success", "output": []},
        {"type": "web_search_tool_result", "tool_use_id": "s", "content": [{"type": "web_search_result"}]},
        {"type": "web_search_call", "id": "ws", "status": "completed"},
        {"type": "image_generation_call", "id": "ig", "result": "AAAA"},
        {"type": "code_execution_output", "text": "2"},
        {"type": "reasoning", "text": "One and one."},
        {"type": "non_standard", "value": {"type": "code_interpreter_call", "code": "1+1"}},
    ],
    ids=lambda block: block["type"],
)
def test_calls_and_thoughts_are_no_content(block: dict[str, Any]) -> None:
    (told,) = to_engine([AIMessage([TEXT, block], tool_calls=[CALL])])
    assert told == {"role": "assistant", "content": "Let me see.", "tool_calls": SAID}
    (told,) = to_engine([AIMessage([block], tool_calls=[CALL])])
    assert told == {"role": "assistant", "content": "", "tool_calls": SAID}


def test_calls_that_are_only_content_are_calls() -> None:
    for block in (
        {"type": "tool_use", "id": "1", "name": "add", "input": {"a": 1}},
        {"type": "function_call", "call_id": "1", "name": "add", "arguments": '{"a": 1}'},
    ):
        (told,) = to_engine([AIMessage([TEXT, block])])
        assert (told["content"], told["tool_calls"]) == ("Let me see.", SAID)


@pytest.mark.parametrize(
    "content",
    [
        ["Let me see."],
        [TEXT],
        [{**TEXT, "annotations": [], "id": "msg_1", "index": 0}],
        [{"text": "Let me see."}],
        [{"type": "output_text", "text": "Let me see."}],
        [{"type": "text-plain", "text": "Let me see.", "mime_type": "text/plain"}],
        [{"type": "refusal", "refusal": "Let me see."}],
        [{"type": "non_standard", "value": {"type": "refusal", "refusal": "Let me see."}}],
    ],
    ids=str,
)
def test_text_in_every_form(content: list[Any]) -> None:
    assert to_engine([AIMessage(content)]) == [{"role": "assistant", "content": "Let me see."}]


def test_a_users_text_in_every_form() -> None:
    for kind in ({}, {"type": "text"}, {"type": "input_text"}, {"type": "text-plain"}, {"type": "guard"}):
        assert to_engine([HumanMessage([{**kind, "text": "Hi."}])]) == [{"role": "user", "content": "Hi."}]


def test_a_refusal_beside_the_content() -> None:
    told = to_engine([AIMessage("", additional_kwargs={"refusal": "I will not."})])
    assert told == [{"role": "assistant", "content": "I will not."}]


@pytest.mark.parametrize(
    ("block", "kind"),
    [
        ({"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}, "an image"),
        ({"type": "image", "base64": "AAAA", "mime_type": "image/png"}, "an image"),
        ({"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AAAA"}}, "an image"),
        ({"type": "input_image", "image_url": "data:image/png;base64,AAAA"}, "an image"),
        ({"image": {"format": "png", "source": {"bytes": b"A"}}}, "an image"),
        ({"type": "non_standard", "value": {"image": {"format": "png"}}}, "an image"),
        ({"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}}, "audio"),
        ({"type": "audio", "base64": "AAAA", "mime_type": "audio/wav"}, "audio"),
        ({"type": "video", "url": "http://127.0.0.1/a.mp4"}, "a video"),
        ({"type": "file", "file": {"file_id": "1"}}, "a file"),
        ({"type": "document", "source": {"type": "url", "url": "http://127.0.0.1/a.pdf"}}, "a file"),
    ],
    ids=str,
)
def test_what_is_no_text_is_named(block: dict[str, Any], kind: str) -> None:
    messages: list[BaseMessage] = [
        HumanMessage([TEXT, block]),
        AIMessage([TEXT, block]),
        ToolMessage([TEXT, block], tool_call_id="1"),
        HumanMessage([{"type": "tool_result", "tool_use_id": "1", "content": [block]}]),
    ]
    for message in messages:
        with pytest.raises(errors.InvalidInputError, match=f"other than text: {kind}.\n.*leave images"):
            to_engine([message])


def test_blocks_that_cannot_be_read() -> None:
    with pytest.raises(
        errors.InvalidInputError, match="a block of type 'guard'"
    ):  # to leave it out changes the question
        to_engine([HumanMessage([TEXT, {"type": "guard"}])])
    with pytest.raises(errors.InvalidInputError, match="tool_use_id"):
        to_engine([HumanMessage([{"type": "tool_result", "content": "3"}])])


def test_results_of_tools_in_anthropics_form() -> None:
    result = {"type": "tool_result", "tool_use_id": "1", "content": [{"type": "text", "text": "3"}]}
    call = AIMessage([{"type": "tool_use", "id": "1", "name": "add", "input": {"a": 1}}])
    _, *told = to_engine([call, HumanMessage([result])])
    assert {"role": "tool", "tool_call_id": "1", "content": "3"} in told


def test_json_is_text() -> None:
    block: Any = {"type": "json", "json": {"a": 1}}
    messages: list[BaseMessage] = [HumanMessage([block]), ToolMessage([block, TEXT], tool_call_id="1")]
    assert [one["content"] for one in to_engine(messages)] == ['{"a": 1}', '{"a": 1}\nLet me see.']
