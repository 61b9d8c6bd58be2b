"""Plain transformers, in a process of its own: the same requests as to vLLM."""

import asyncio
import json
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from chancellor import Catalog, ChatVLLM, EngineOptions, ModelSpec, errors
from chancellor.engines import EnginePool, GenerationRequest
from tests.integration.conftest import PLAIN
from tests.tiny import TEMPLATE, make_model, make_tokenizer

pytestmark = pytest.mark.engine


@pytest.fixture(scope="module")
def spec(catalog: Catalog) -> ModelSpec:
    spec = catalog[PLAIN]
    return spec.model_copy(update={"name": "plain", "engine": spec.engine.model_copy(update={"kind": "transformers"})})


@pytest.fixture(scope="module")
def own_pool() -> Iterator[EnginePool]:
    pool = EnginePool()
    yield pool
    pool.close()


def test_it_answers_streams_and_stops(spec: ModelSpec, own_pool: EnginePool) -> None:

    model = ChatVLLM(model="plain", catalog=Catalog([spec]), pool=own_pool, temperature=0, max_tokens=24)
    whole = model.invoke("What is 2+2?")
    assert "4" in whole.text
    assert whole.response_metadata["engine"] == "transformers"
    assert whole.usage_metadata is not None
    assert whole.usage_metadata["input_tokens"] == 37
    chunks = list(model.stream("What is 2+2?"))
    assert len(chunks) > 3
    assert "".join(chunk.text for chunk in chunks) == whole.text
    word = whole.text.split()[3]
    assert model.invoke("What is 2+2?", stop=[word]).text == whole.text[: whole.text.index(word)]
    assert (
        "".join(chunk.text for chunk in model.stream("What is 2+2?", stop=[word]))
        == whole.text[: whole.text.index(word)]
    )


def test_answers_go_on_after_the_end_where_they_are_told_to(spec: ModelSpec, own_pool: EnginePool) -> None:
    model = ChatVLLM(model="plain", catalog=Catalog([spec]), pool=own_pool, temperature=0, max_tokens=40)
    ended = model.invoke("What is 2+2?")
    assert ended.usage_metadata is not None
    assert ended.usage_metadata["output_tokens"] < 40
    assert ended.response_metadata["finish_reason"] == "stop"

    async def both() -> list[int]:
        answers = await asyncio.gather(
            *(model.ainvoke(question, ignore_eos=True) for question in ("What is 2+2?", "Say hello."))
        )
        return [answer.usage_metadata["output_tokens"] for answer in answers if answer.usage_metadata]

    assert asyncio.run(both()) == [40, 40]


def test_a_batch_gives_what_single_questions_give(spec: ModelSpec, own_pool: EnginePool) -> None:

    model = ChatVLLM(model="plain", catalog=Catalog([spec]), pool=own_pool, temperature=0, max_tokens=12)
    questions = ["What is 2+2?", "Name a colour of the rainbow, please.", "Why is the sky blue?"]
    alone = [model.invoke(question).text for question in questions]

    async def together() -> list[str]:
        return [answer.text for answer in await asyncio.gather(*(model.ainvoke(one) for one in questions))]

    assert asyncio.run(together()) == alone


def test_a_request_that_is_left_ends(spec: ModelSpec, own_pool: EnginePool) -> None:

    model = ChatVLLM(model="plain", catalog=Catalog([spec]), pool=own_pool, max_tokens=3000, ignore_eos=True)
    for chunk in model.stream("Tell me an endless story."):
        if chunk.text:
            break
    began = time.monotonic()
    assert model.invoke("hi", max_tokens=2, temperature=0).text
    assert time.monotonic() - began < 60  # 3,000 tokens would take minutes


def test_a_killed_process_is_an_error_where_nothing_is_tried_again(spec: ModelSpec, own_pool: EnginePool) -> None:
    catalog = Catalog([spec])
    model = ChatVLLM(model="plain", catalog=catalog, pool=own_pool, max_tokens=500, ignore_eos=True, max_retries=0)
    engine = asyncio.run(own_pool.aengine(spec))
    stream = model.stream("Tell me an endless story.")
    for _ in range(3):
        next(stream)
    psutil.Process(engine.process_ids()[0]).kill()
    with pytest.raises(errors.EngineDiedError):
        list(stream)
    assert model.invoke("hi", max_tokens=2).text is not None


def test_the_stop_texts_of_raw_completion_do_not_cut_guided_answers(own_pool: EnginePool, tmp_path: Path) -> None:
    make_model(tmp_path)
    make_tokenizer(tmp_path, template=None)
    (tmp_path / "chat_template.jinja").unlink(missing_ok=True)
    engine = EngineOptions(kind="transformers", dtype="float32", max_model_len=512)
    spec = ModelSpec(name="raw", source=str(tmp_path), trinity=96, engine=engine)
    model = ChatVLLM(model=spec.name, catalog=Catalog([spec]), pool=own_pool, max_tokens=40, temperature=0)
    guide = {"regex": r"a###b\n\nc"}
    assert model.invoke("hi", structured_outputs=guide).text == "a###b\n\nc"
    assert "".join(chunk.text for chunk in model.stream("hi", structured_outputs=guide)) == "a###b\n\nc"
    assert model.invoke("hi", structured_outputs=guide, stop=["##"]).text == "a"
    secret = {"type": "string", "format": "password", "maxLength": 3}
    assert len(json.loads(model.invoke("hi", structured_outputs={"json": secret}).text)) <= 3
    for keyword, value in (("uniqueItems", True), ("multipleOf", 5)):
        with pytest.raises(errors.InvalidInputError, match=keyword):
            model.invoke("hi", structured_outputs={"json": {"type": "object", "properties": {"a": {keyword: value}}}})


@pytest.mark.parametrize("stream", [False, True])
def test_the_token_that_ends_an_answer_is_never_shown(own_pool: EnginePool, tmp_path: Path, stream: bool) -> None:
    """Some of vLLM's parsers of calls read special tokens; the last one is none of theirs."""
    make_model(tmp_path)
    make_tokenizer(tmp_path, template=TEMPLATE + "{# tools #}")
    engine = EngineOptions(kind="transformers", dtype="float32", max_model_len=512, tool_parser="internlm")
    spec = ModelSpec(name=f"calls-{stream}", source=str(tmp_path), trinity=96, engine=engine)
    add = {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}
    messages = [{"role": "user", "content": "hi"}]
    asked = GenerationRequest(messages, tools=(add,), logit_bias=((0, 100.0),), temperature=0, stream=stream)
    deltas = list(own_pool.generate(spec, asked))
    assert [one for delta in deltas for one in delta.token_ids] == [0]  # <|end|>
    assert "".join(delta.text for delta in deltas) == ""
    assert deltas[-1].finish_reason == "stop"


def test_a_shape_is_quantised_when_it_is_loaded(own_pool: EnginePool) -> None:
    engine = EngineOptions(kind="transformers", dtype="float32")
    spec = ModelSpec(name="nano-int8wo", source="shape:nano", trinity=96, scheme="int8wo", engine=engine)
    model = ChatVLLM(model=spec.name, catalog=Catalog([spec]), pool=own_pool, max_tokens=5, ignore_eos=True)
    answer = model.invoke("hi")
    assert answer.response_metadata["quantization"] == "int8wo"
    assert answer.usage_metadata is not None
    assert answer.usage_metadata["output_tokens"] == 5
