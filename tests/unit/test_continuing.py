"""Answers that another engine goes on with: wherever it does, the text is that of an answer nothing happened to."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from vllm import SamplingParams

from chancellor.engines import Delta, GenerationRequest, Guide
from chancellor.engines.migration import Migration
from chancellor.engines.vllm_continuing import Continuation
from tests.fakes import FakeEngine, catalog
from tests.vocabularies import deltas, demo_tokenizer

PROMPT = demo_tokenizer().encode("Say something. ")
TEXT = "Ça va 日本語 👩‍👩‍👧 naïve 🌦🤔.\n\n## End ### of it"
JSON = '{"weather": "🌦 日本語", "days": [1, 23, 456]}'
STOPS: list[list[str]] = [[], ["###"], ["語"], ["🌦🤔"], ["👧 n", "never at all, long as it is"], ["\n\n", "##"], ["Ça"]]


def tokens(text: str, *, end: bool) -> list[int]:
    tokenizer = demo_tokenizer()
    ids: list[int] = tokenizer.encode(text)
    return [*ids, tokenizer.eos_token_id] if end else ids


def gone_on(asked: GenerationRequest, ids: list[int], size: int, sampling: dict[str, Any]) -> Iterator[Delta]:
    """Yield what VLLMEngine does when it goes on with an answer: an engine without stop texts, and a Continuation."""
    tokenizer = demo_tokenizer()
    continuation = Continuation(asked, SamplingParams(**sampling), tokenizer, PROMPT, {"engine": "vllm"})
    left, reason = ids[len(asked.answered) :], "stop" if ids[-1] == tokenizer.eos_token_id else "length"
    produced = len(asked.answered)
    for delta in deltas(tokenizer, left, size, reason=reason):
        produced += len(delta.token_ids)
        yield continuation.take(delta, produced, 1.0)
        if continuation.ended:
            return


def followed(asked: GenerationRequest, ids: list[int], dies_after: int, size: int, stop: list[str]) -> list[Delta]:
    """Return what the caller gets of an answer whose engine dies after so many deltas."""
    tokenizer, engine = demo_tokenizer(), FakeEngine(catalog()["light"])
    reason = "stop" if ids[-1] == tokenizer.eos_token_id else "length"
    migration, got = Migration(asked), list[Delta]()
    migration.request(engine)
    for delta in list(deltas(tokenizer, ids, 1, reason=reason, stop=stop))[:dies_after]:
        got += migration.take(delta)
    if migration.finished:
        return got
    assert migration.goes_on()
    request = migration.request(engine)
    new = (
        gone_on(request, ids, size, {"stop": stop})
        if request.answered
        else deltas(tokenizer, ids, size, reason=reason, stop=stop)
    )
    for delta in new:
        got += migration.take(delta)
    return got


def text_of(read: list[Delta]) -> str:
    return "".join(delta.text for delta in read)


@pytest.mark.parametrize("size", [1, 2, 7])
@pytest.mark.parametrize("end", [True, False])
@pytest.mark.parametrize("stop", STOPS)
def test_a_text_goes_on_anywhere(stop: list[str], end: bool, size: int) -> None:
    asked = GenerationRequest([], stream=True, stop=tuple(stop), retries=1)
    ids = tokens(TEXT, end=end)
    tokenizer = demo_tokenizer()
    assert any("\ufffd" in tokenizer.decode(ids[:number]) for number in range(len(ids)))  # characters are cut, too
    calm = list(deltas(tokenizer, ids, 1, reason="stop" if end else "length", stop=stop))
    cut = min((TEXT.index(one) for one in stop if one in TEXT), default=len(TEXT))
    assert text_of(calm) == TEXT[:cut]
    for dies_after in range(len(calm)):
        rough = followed(asked, ids, dies_after, size, stop)
        assert text_of(rough) == text_of(calm), dies_after
        assert rough[-1].finish_reason == calm[-1].finish_reason
        assert text_of(rough[:dies_after]) == text_of(calm[:dies_after])  # nothing is held back longer than it was


def test_what_the_last_delta_says() -> None:
    ids = tokens(TEXT, end=True)
    asked = GenerationRequest([], stream=True, stop=("###",), retries=1, answered=tuple(ids[:9]))
    asked = replace(asked, answered_text=text_of(list(deltas(demo_tokenizer(), ids[:9], 1, stop=["###"]))[:-1]))
    *some, last = gone_on(asked, ids, 1, {"stop": ["###"]})
    assert all(delta.finish_reason is None and delta.input_tokens is None for delta in some)
    assert (last.finish_reason, last.input_tokens, last.engine) == ("stop", len(PROMPT), "vllm")
    assert last.output_tokens == len(tokens(TEXT[: TEXT.index("###") + 3], end=False))


def test_a_caller_who_has_more_gets_nothing_twice() -> None:
    """Another engine may have kept back less of what could begin a stop text."""
    ids = tokens(TEXT, end=True)
    for had in range(1, len(ids)):
        text = demo_tokenizer().decode(ids[:had]).rstrip("\ufffd")
        if not TEXT.startswith(text):
            continue  # the middle of a character
        asked = GenerationRequest([], stream=True, answered=tuple(ids[:had]), answered_text=text)
        stop = ["never at all, long as it is"]
        assert text + text_of(list(gone_on(asked, ids, 1, {"stop": stop}))) == TEXT


@pytest.mark.parametrize("size", [1, 2, 7])
def test_a_guided_answer_goes_on_anywhere(size: int) -> None:
    """It is made once more from its beginning, and the caller gets what is new."""
    ids = tokens(JSON, end=True)
    asked = GenerationRequest([], stream=True, guide=Guide("json_object"), retries=1)
    calm = list(deltas(demo_tokenizer(), ids, 1))
    assert text_of(calm) == JSON
    for dies_after in range(len(calm)):
        rough = followed(asked, ids, dies_after, size, [])
        assert text_of(rough) == JSON
        assert [one for delta in rough for one in delta.token_ids] == ids


@pytest.mark.parametrize("size", [2, 4, 7])
def test_what_comes_together_with_a_stop_text_and_after_it_is_cut(size: int) -> None:
    ids = tokens(TEXT, end=True)
    text = demo_tokenizer().decode(ids[:2])
    asked = GenerationRequest(prompt="", stop=("###",), stream=True, answered=tuple(ids[:2]), answered_text=text)
    singly, together = (list(gone_on(asked, ids, many, {"stop": ["###"]})) for many in (1, size))
    one, other = ([token for delta in deltas for token in delta.token_ids] for deltas in (singly, together))
    assert one == other
    assert len(one) < len(ids) - 2
    assert together[-1].finish_reason == "stop"
    assert together[-1].output_tokens == singly[-1].output_tokens == 2 + len(one)
