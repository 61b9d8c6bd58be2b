"""vLLM and transformers on the same quantised checkpoint."""

import json

import pytest

from chancellor import Catalog
from chancellor.engines import EnginePool
from chancellor.quantization import prepare
from tests.integration.agreement import compare
from tests.integration.conftest import INT8, INT8WO

pytestmark = pytest.mark.engine


def test_int8_weights_give_the_same_answers(catalog: Catalog, pool: EnginePool) -> None:
    engine, itself = compare(pool, catalog[INT8WO], prepare(catalog[INT8WO], "float32"))
    print(json.dumps({"vllm": engine.summary(), "itself": itself.summary()}, indent=2))
    assert engine.same_answers >= 8
    assert engine.mean_difference < 0.01


def test_int8_activations_differ_no_more_than_transformers_from_itself(catalog: Catalog, pool: EnginePool) -> None:
    engine, itself = compare(pool, catalog[INT8], prepare(catalog[INT8], "float32"))
    print(json.dumps({"vllm": engine.summary(), "itself": itself.summary()}, indent=2))
    assert engine.mean_difference < 1.25 * itself.mean_difference
    assert sum(engine.same_likeliest) > 0.95 * sum(itself.same_likeliest)
