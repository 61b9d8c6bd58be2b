"""What engines were estimated to take, beside what they take."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from chancellor import Catalog, ModelSpec
from chancellor.engines import EnginePool, GenerationRequest
from chancellor.memory import Ledger, estimate, measure
from tests.integration.conftest import INT8

pytestmark = pytest.mark.engine
MIB = 2**20


@pytest.fixture(scope="module")
def fresh() -> Iterator[EnginePool]:
    """A pool of its own: what an engine holds depends on what it was asked before."""
    pool = EnginePool()
    yield pool
    pool.close()


def held_by(pool: EnginePool, spec: ModelSpec) -> int:
    request = GenerationRequest([{"role": "user", "content": "What is 2+2?"}], max_tokens=4)
    assert list(pool.generate(spec, request))
    held = measure(asyncio.run(pool.aengine(spec)).process_ids(), "cpu")
    assert held is not None
    return held


def test_the_int8_model(fresh: EnginePool, catalog: Catalog) -> None:
    spec = catalog[INT8]
    held, need = held_by(fresh, spec), estimate(spec)
    # The peak of a step is not there yet.
    assert 0.85 < held / (need.total - need.activations) < 1.1
    assert held < need.total
    noted = Ledger().measured(spec)  # by the pool, when it was ready
    assert noted == pytest.approx(held, rel=0.1)


def test_a_tiny_model_is_its_processes(fresh: EnginePool, tiny_model: Path, tmp_path: Path) -> None:
    options = {"dtype": "float32", "kv_cache_gib": 0.125}  # bfloat16 dies on AMX in layers as small as these
    spec = ModelSpec.model_validate({"name": "tiny", "source": str(tiny_model), "trinity": 96, "engine": options})
    held, need = held_by(fresh, spec), estimate(spec)
    assert 0.75 < held / (need.total - need.activations) < 1.1
    ledger = Ledger(tmp_path / "memory.json")
    ledger.record(spec, held)
    learnt = ledger.expected(spec)
    assert learnt.total - learnt.activations == pytest.approx(held, abs=MIB)
    larger = spec.model_copy(update={"engine": spec.engine.model_copy(update={"kv_cache_gib": 0.5})})
    assert ledger.expected(larger).total - learnt.total == 384 * MIB
