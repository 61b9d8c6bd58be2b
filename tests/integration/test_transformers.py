"""Plain transformers, in a process of its own: the same requests as to vLLM."""

import asyncio
import time
from collections.abc import Iterator

import psutil
import pytest

from chancellor import Catalog, ChatVLLM, EngineOptions, ModelSpec, errors
from chancellor.engines import EnginePool
from tests.integration.conftest import PLAIN

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


def test_a_shape_is_quantised_when_it_is_loaded(own_pool: EnginePool) -> None:
    engine = EngineOptions(kind="transformers", dtype="float32")
    spec = ModelSpec(name="nano-int8wo", source="shape:nano", trinity=96, scheme="int8wo", engine=engine)
    model = ChatVLLM(model=spec.name, catalog=Catalog([spec]), pool=own_pool, max_tokens=5, ignore_eos=True)
    answer = model.invoke("hi")
    assert answer.response_metadata["quantization"] == "int8wo"
    assert answer.usage_metadata is not None
    assert answer.usage_metadata["output_tokens"] == 5
