"""Raw prompts, penalties and biases: the same from both engines, with a small model."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from chancellor import EngineOptions, ModelSpec, errors
from chancellor.engines import Delta, EnginePool, GenerationRequest
from tests.tiny import make_model

pytestmark = pytest.mark.engine
TEXT = "The quick brown fox jumps over"
TOKEN = 70


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("raw") / "tiny")


@pytest.fixture(scope="module", params=["vllm", "transformers"])
def ask(request: pytest.FixtureRequest, folder: Path) -> Iterator[Any]:
    """Ask one engine, greedily and past any end, and return its deltas."""
    options = EngineOptions(kind=request.param, dtype="float32", max_model_len=512, kv_cache_gib=0.25)
    spec = ModelSpec(name="tiny", source=str(folder), trinity=96, engine=options)
    pool = EnginePool()

    def ask(**fields: Any) -> list[Delta]:
        asked = GenerationRequest(**{"max_tokens": 24, "temperature": 0, "ignore_eos": True, "prompt": TEXT, **fields})
        return list(pool.generate(spec, asked))

    yield ask
    pool.close()


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)


def tokens(deltas: list[Delta]) -> list[int]:
    return [token for delta in deltas for token in delta.token_ids]


def test_token_ids_are_the_text(ask: Any, tokenizer: Any) -> None:
    ids = tuple(tokenizer.encode(TEXT))
    by_text, by_ids = ask(), ask(prompt=ids)
    assert tokens(by_text) == tokens(by_ids)
    assert by_text[-1].text == by_ids[-1].text
    assert by_text[-1].input_tokens == by_ids[-1].input_tokens == len(ids)
    assert tokens(ask(prompt=(*ids, 5))) != tokens(by_ids)


def test_a_raw_prompt_goes_through_no_template(ask: Any, tokenizer: Any) -> None:
    chat = ask(prompt=None, messages=[{"role": "user", "content": TEXT}])
    rendered = f"<|user|>{TEXT}<|end|><|assistant|>"
    assert chat[-1].input_tokens == len(tokenizer.encode(rendered)) == ask()[-1].input_tokens + 3
    assert tokens(ask(prompt=rendered)) == tokens(chat)


def test_streamed_is_the_same(ask: Any) -> None:
    # Long enough that some pieces come by themselves, however late this thread has its turn.
    whole, streamed = ask(max_tokens=240), ask(max_tokens=240, stream=True)
    assert len(streamed) > 5
    assert tokens(streamed) == tokens(whole)
    assert "".join(delta.text for delta in streamed) == whole[-1].text


def test_a_bias_gives_or_takes_a_token(ask: Any, tokenizer: Any) -> None:
    given = ask(logit_bias=((TOKEN, 100.0),), logprobs=0)
    assert tokens(given) == [TOKEN] * 24
    assert given[-1].text == tokenizer.decode([TOKEN]) * 24
    # What is reported is the model's own opinion, without the bias.
    assert all(one.logprob < -1 for delta in given for one in delta.logprobs)
    common = next(token for token in tokens(ask()) if token < len(tokenizer))  # others are padding of the matrix
    assert common not in tokens(ask(logit_bias=((common, -100.0),)))


def test_penalties_change_what_is_said_again(ask: Any) -> None:
    # Two tokens are far ahead of all others, the first of them by one: alone it goes on for ever.
    biases = ((TOKEN, 60.0), (TOKEN + 1, 59.0))
    assert set(tokens(ask(logit_bias=biases))) == {TOKEN}
    frequency = tokens(ask(logit_bias=biases, frequency_penalty=2.0))
    assert {TOKEN, TOKEN + 1} == set(frequency)
    assert abs(frequency.count(TOKEN) - frequency.count(TOKEN + 1)) <= 4
    presence = tokens(ask(logit_bias=biases, presence_penalty=2.0))
    assert set(presence) == {TOKEN, TOKEN + 1}
    assert presence.count(TOKEN) != presence.count(TOKEN + 1)  # once only: it does not grow
    # Of the prompt's tokens nothing counts.
    assert tokens(ask(prompt=(TOKEN,) * 20, logit_bias=biases, frequency_penalty=0.01))[:10] == [TOKEN] * 10


def test_a_repetition_penalty_counts_the_prompt(ask: Any) -> None:
    asked: dict[str, Any] = {"logit_bias": ((TOKEN, 60.0), (TOKEN + 1, 59.0)), "repetition_penalty": 1.1}
    assert tokens(ask(**asked))[:4] == [TOKEN, TOKEN + 1, TOKEN, TOKEN]
    assert tokens(ask(**asked, prompt=(TOKEN,) * 5))[:3] == [TOKEN + 1, TOKEN, TOKEN]


def test_top_k_and_min_p_leave_only_the_likeliest(ask: Any) -> None:
    greedy = tokens(ask())
    for few in ({"top_k": 1}, {"min_p": 1.0}):
        assert tokens(ask(temperature=2.0, **few)) == greedy
    assert tokens(ask(temperature=2.0, seed=1)) != greedy


def test_a_batch_of_different_ones(ask: Any) -> None:
    from concurrent.futures import ThreadPoolExecutor

    fields: list[dict[str, Any]] = [
        {"logit_bias": ((TOKEN, 100.0),)},
        {},
        {"prompt": (5, 6, 7), "max_tokens": 7},
        {"logit_bias": ((TOKEN, 60.0), (TOKEN + 1, 59.0)), "frequency_penalty": 2.0},
        {"logit_bias": ((TOKEN, 60.0), (TOKEN + 1, 59.0)), "repetition_penalty": 1.1, "prompt": (TOKEN,) * 5},
        {"temperature": 2.0, "top_k": 1},
    ]
    alone = [tokens(ask(**one)) for one in fields]
    with ThreadPoolExecutor(len(fields)) as threads:
        together = [tokens(deltas) for deltas in threads.map(lambda one: ask(**one), fields)]
    assert together == alone


@pytest.mark.parametrize(
    ("fields", "word"),
    [
        ({"prompt": ""}, "empty"),
        ({"prompt": ()}, "empty"),
        ({"prompt": (1, 100_000)}, "100000"),
        ({"prompt": (-1,)}, "-1"),
        ({"logit_bias": ((100_000, 1.0),)}, "100000"),
    ],
)
def test_what_the_model_does_not_know(ask: Any, fields: dict[str, Any], word: str) -> None:
    with pytest.raises(errors.InvalidInputError, match=word):
        ask(**fields)
    assert len(tokens(ask(max_tokens=3))) == 3


def test_a_prompt_that_is_too_long(ask: Any) -> None:
    with pytest.raises(errors.PromptTooLongError):
        ask(prompt=(5,) * 512)
    assert len(tokens(ask(prompt=(5,) * 500))) == 12
