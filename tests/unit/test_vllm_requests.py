"""From our requests to vLLM's parameters."""

from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer
from vllm.sampling_params import RequestOutputKind

from chancellor.engines import GenerationRequest, Guide
from chancellor.engines.answers import Plan, plan_of
from chancellor.engines.prompt import RAW_STOP, Prompt, render
from chancellor.engines.vllm_requests import sampling_params
from tests.tiny import make_tokenizer

MESSAGES: list[dict[str, Any]] = [{"role": "user", "content": "What is two plus two?"}]
ADD = {"type": "function", "function": {"name": "add", "description": "Add.", "parameters": {"type": "object"}}}


def test_nothing_comes_before_the_end_where_nobody_streams() -> None:
    for stream, kind in ((False, RequestOutputKind.FINAL_ONLY), (True, RequestOutputKind.DELTA)):
        asked = GenerationRequest(MESSAGES, stream=stream)
        assert sampling_params(asked, Prompt([1]), Plan(MESSAGES)).output_kind is kind


@pytest.mark.parametrize(
    "more",
    [
        {"guide": Guide("json_schema", {"type": "object", "properties": {"a": {"type": "string"}}})},
        {"guide": Guide("json_object")},
        {"guide": Guide("regex", "a###b")},
        {"guide": Guide("choice", ["a\n\nb"])},
        {"tools": (ADD,), "tool_choice": "add"},
    ],
)
def test_the_stop_texts_of_raw_completion_do_not_cut_guided_answers(more: Any, tmp_path: Path) -> None:
    make_tokenizer(tmp_path, template=None)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    asked = GenerationRequest(MESSAGES, **more)
    plan, prompt = plan_of(asked, tokenizer), render(tokenizer, MESSAGES)
    assert prompt.stop == RAW_STOP
    assert sampling_params(asked, prompt, plan).stop == []
    asked = GenerationRequest(MESSAGES, stop=("###",), **more)
    assert sampling_params(asked, prompt, plan_of(asked, tokenizer)).stop == ["###"]  # as it was asked for
    asked = GenerationRequest(MESSAGES)
    assert sampling_params(asked, prompt, plan_of(asked, tokenizer)).stop == list(RAW_STOP)
