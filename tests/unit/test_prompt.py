"""Prompts, made with a real tokenizer; the sampling parameters are vLLM's own."""

from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from chancellor.engines import GenerationRequest
from chancellor.engines.answers import Plan
from chancellor.engines.prompt import RAW_STOP, render
from chancellor.engines.vllm_requests import sampling_params
from chancellor.errors import GenerationError
from tests.tiny import make_tokenizer

MESSAGES: list[dict[str, Any]] = [{"role": "user", "content": "What is two plus two?"}]


def tokenizer(folder: Path, **options: Any) -> Any:
    make_tokenizer(folder, **options)
    return AutoTokenizer.from_pretrained(folder)


def test_chat_goes_through_the_models_own_template(tmp_path: Path) -> None:
    reader = tokenizer(tmp_path)
    prompt = render(reader, MESSAGES)
    assert prompt.stop == ()
    assert reader.decode(prompt.token_ids) == "<|user|>What is two plus two?<|end|><|assistant|>"
    assert sampling_params(GenerationRequest(MESSAGES), prompt, Plan([])).stop == []


def test_without_a_template_it_is_a_raw_completion_that_a_blank_line_ends(tmp_path: Path) -> None:
    reader = tokenizer(tmp_path, template=None)
    prompt = render(reader, MESSAGES)
    assert prompt.stop == RAW_STOP
    assert reader.decode(prompt.token_ids) == "What is two plus two?"
    assert sampling_params(GenerationRequest(MESSAGES), prompt, Plan([])).stop == list(RAW_STOP)
    assert sampling_params(GenerationRequest(MESSAGES, stop=("x",)), prompt, Plan([])).stop == ["x"]


def test_a_template_that_refuses_says_so(tmp_path: Path) -> None:
    reader = tokenizer(tmp_path, template="{{ raise_exception('only assistants here') }}")
    with pytest.raises(GenerationError, match="only assistants here"):
        render(reader, MESSAGES)
