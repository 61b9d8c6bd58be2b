"""Copies of a chat model, its key in LangChain's cache, and what goes to the engine as it is."""

import copy
import pickle
from collections.abc import Iterator
from typing import Any

import pytest
from langchain_core.caches import InMemoryCache
from langchain_core.globals import set_llm_cache
from pydantic import ValidationError

from chancellor import ChatVLLM, errors
from chancellor.catalog import Catalog, EngineOptions, ModelSpec
from chancellor.engines import EnginePool
from tests.fakes import FakeEngine, catalog

SAMPLING: dict[str, Any] = {
    "top_k": 5,
    "min_p": 0.1,
    "presence_penalty": -1.5,
    "frequency_penalty": 0.5,
    "repetition_penalty": 1.2,
    "logit_bias": {3: -100.0, 7: 2.5},
}


@pytest.fixture
def model(fake_engine: type[FakeEngine]) -> ChatVLLM:
    return ChatVLLM(model="light", catalog=catalog(), pool=EnginePool(fake_engine))


@pytest.fixture
def cache() -> Iterator[InMemoryCache]:
    own = InMemoryCache()
    set_llm_cache(own)
    yield own
    set_llm_cache(None)


@pytest.mark.parametrize(
    "change",
    [
        {"logprobs": True},
        {"top_logprobs": 2},
        {"substitute": True},
        {"streaming": True},
        {"output_version": "v1"},
        {"model": "strong"},
        {"temperature": 0.1},
        {"max_tokens": 3},
        {"top_p": 0.5},
        {"seed": 1},
        {"ignore_eos": True},
        {"stop": ["x"]},
        *({name: value} for name, value in SAMPLING.items()),
    ],
    ids=str,
)
def test_what_changes_an_answer_is_in_the_cache_key(
    model: ChatVLLM, change: dict[str, Any], cache: InMemoryCache, fake_engine: type[FakeEngine]
) -> None:
    model.invoke("hello")
    model.invoke("hello")
    assert len(fake_engine.requests) == 1
    ChatVLLM(**{"model": "light", "catalog": model.catalog, "pool": model.pool, **change}).invoke("hello")
    assert len(fake_engine.requests) == 2


def test_sampling_reaches_the_engine(model: ChatVLLM, fake_engine: type[FakeEngine]) -> None:
    wanted = {**SAMPLING, "logit_bias": ((3, -100.0), (7, 2.5))}

    def arrived() -> dict[str, Any]:
        return {name: getattr(fake_engine.requests[-1], name) for name in SAMPLING}

    model.invoke("hello")
    plain = arrived()
    assert not [name for name in SAMPLING if plain[name] == wanted[name]]
    model.bind(**SAMPLING).invoke("hello")
    assert arrived() == wanted
    ChatVLLM(model="light", catalog=catalog(), pool=model.pool, **SAMPLING).invoke("hello")
    assert arrived() == wanted
    list(model.stream("hello", top_k=-1, logit_bias={"9": 1}))  # as JSON has it
    assert (arrived()["top_k"], arrived()["logit_bias"]) == (0, ((9, 1.0),))


@pytest.mark.parametrize(
    "wrong",
    [
        {"top_k": -2},
        {"min_p": 1.1},
        {"presence_penalty": 2.1},
        {"frequency_penalty": -2.1},
        {"repetition_penalty": 0},
        {"logit_bias": {3: 101}},
        {"logit_bias": {-1: 1}},
    ],
    ids=str,
)
def test_sampling_has_the_ranges_of_the_endpoint(model: ChatVLLM, wrong: dict[str, Any]) -> None:
    (name,) = wrong
    with pytest.raises(errors.InvalidInputError, match=name):
        model.invoke("hello", **wrong)
    with pytest.raises(ValidationError, match=name):
        ChatVLLM(model="light", catalog=catalog(), **wrong)


def sized() -> Catalog:
    """The models, with contexts that differ."""
    models = [
        spec.model_copy(update={"engine": EngineOptions(max_model_len=1000 + place)})
        for place, spec in enumerate(catalog().values())
    ]
    return Catalog(models)


def test_a_change_of_the_model_is_followed(model: ChatVLLM) -> None:
    model = ChatVLLM(model="light", catalog=sized(), pool=model.pool)
    other = model.model_copy(update={"model": "strong"})
    assert other.invoke("hello").text == "strong says: hello"
    assert model.invoke("hello").text == "light says: hello"
    assert other.profile is not None
    assert other.profile.get("max_input_tokens") == 1002
    model.model = "best"
    assert model.invoke("hello").text == "best says: hello"
    assert model.profile is not None
    assert model.profile.get("max_input_tokens") == 1001
    assert model._identifying_params["name"] == "best"
    model.model = "gpt"
    with pytest.raises(errors.UnknownModelError, match="light, best"):
        model.invoke("hello")


def test_a_profile_of_the_users_stays(model: ChatVLLM) -> None:
    own = ChatVLLM(model="light", catalog=sized(), profile={"max_input_tokens": 7})
    assert own.model_copy(update={"model": "strong"}).profile == {"max_input_tokens": 7}
    own.model = "strong"
    assert own.profile == {"max_input_tokens": 7}


def test_a_change_of_the_catalog_is_followed(model: ChatVLLM) -> None:
    only = Catalog([ModelSpec(name="light", source="fake/other", trinity=99)])
    assert model.model_copy(update={"catalog": only})._identifying_params["source"] == "fake/other"
    assert model.invoke("hello", model="strong").text == "strong says: hello"
    with pytest.raises(errors.UnknownModelError):
        model.model_copy(update={"catalog": only}).invoke("hello", model="strong")


@pytest.mark.parametrize("substitute", [False, True])
def test_pickling(substitute: bool) -> None:
    model = ChatVLLM(model="light", catalog=catalog(), substitute=substitute, temperature=0.3, stop=["x"])
    again = pickle.loads(pickle.dumps(model))
    assert again == model
    assert again._identifying_params == model._identifying_params


@pytest.mark.parametrize("substitute", [False, True])
def test_deep_copies_share_their_engines(model: ChatVLLM, substitute: bool) -> None:
    own = model.model_copy(update={"substitute": substitute, "stop": ["x"]})
    for one in (copy.deepcopy(own), own.model_copy(deep=True), copy.deepcopy([own])[0]):
        assert one.pool is model.pool
        assert one == own
        assert one.stop is not own.stop
        assert one.invoke("hello").text == "light says: hello"
    assert copy.deepcopy(ChatVLLM(model="light", catalog=catalog())).pool is None
