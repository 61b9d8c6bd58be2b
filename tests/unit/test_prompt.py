"""Prompts, made with a real tokenizer; the sampling parameters are vLLM's own."""

import threading
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from chancellor.engines import GenerationRequest
from chancellor.engines.answers import Plan, plan_of
from chancellor.engines.prompt import RAW_STOP, prompt_ahead, prompt_of, render
from chancellor.engines.vllm_requests import sampling_params
from chancellor.errors import InvalidInputError
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
    with pytest.raises(InvalidInputError, match="only assistants here"):
        render(reader, MESSAGES)


async def test_a_raw_prompt_is_what_it_is(tmp_path: Path) -> None:
    reader = tokenizer(tmp_path)
    text = GenerationRequest(prompt="What is two plus two?")
    prompt = prompt_of(reader, text, [])
    assert (reader.decode(prompt.token_ids), prompt.stop) == ("What is two plus two?", ())
    ids = GenerationRequest(prompt=tuple(prompt.token_ids))
    assert prompt_of(reader, ids, []) == await prompt_ahead(reader, ids, [], None) == prompt
    for wrong in (GenerationRequest(prompt=()), GenerationRequest(prompt=(0, 10**6))):
        with pytest.raises(InvalidInputError):
            prompt_of(reader, wrong, [])
    with pytest.raises(InvalidInputError, match="1000000 is none"):
        prompt_of(reader, GenerationRequest(MESSAGES, logit_bias=((10**6, 1.0),)), MESSAGES)


async def test_a_long_prompt_is_read_beside_the_loop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reader, threads = tokenizer(tmp_path), []
    encode = reader.encode

    def noted(text: str) -> Any:
        threads.append(threading.current_thread())
        return encode(text)

    monkeypatch.setattr(reader, "encode", noted)
    for text in ("short", "long " * 10_000):
        request = GenerationRequest(prompt=text)
        assert await prompt_ahead(reader, request, [], None) == prompt_of(reader, request, [])
    here = threading.current_thread()
    assert [one is here for one in threads] == [True, True, False, True]


def test_a_raw_prompt_has_no_thoughts(tmp_path: Path) -> None:
    reader = tokenizer(tmp_path)
    assert plan_of(GenerationRequest(prompt="x"), reader, reasoning_parser="no such parser").readers == []
