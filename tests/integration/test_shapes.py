"""A real engine with random weights."""

import pytest
from langchain_core.messages import HumanMessage

from chancellor import Catalog, ChatVLLM, ModelSpec
from chancellor.engines import EnginePool

pytestmark = pytest.mark.engine
ENGINE = {"dtype": "float32", "max_model_len": 512, "kv_cache_gib": 0.05}


@pytest.fixture(scope="module")
def model(pool: EnginePool) -> ChatVLLM:
    """The smallest shape, which vLLM quantises while it loads."""
    spec = ModelSpec(name="nano-int8", source="shape:nano", scheme="int8", trinity=96, engine=ENGINE)
    return ChatVLLM(model=spec.name, catalog=Catalog([spec]), pool=pool, max_tokens=40, ignore_eos=True)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_model_without_weights_says_as_much_as_it_is_asked_for(model: ChatVLLM, temperature: float) -> None:
    answer = model.invoke("What is 2+2?", temperature=temperature)
    assert answer.usage_metadata is not None
    assert answer.usage_metadata["output_tokens"] == 40
    assert len(answer.text) > 40
    assert (answer.response_metadata["quantization"], answer.response_metadata["finish_reason"]) == ("int8", "length")


def test_the_pieces_of_a_stream_make_the_answer(model: ChatVLLM) -> None:
    whole = model.invoke([HumanMessage("Say anything.")], temperature=0)
    pieces = list(model.stream([HumanMessage("Say anything.")], temperature=0))
    assert "".join(piece.text for piece in pieces) == whole.text
