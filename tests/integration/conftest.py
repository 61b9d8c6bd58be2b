"""One engine per configuration for the whole run."""

from collections.abc import Iterator

import pytest

from chancellor import Catalog, ChatModels, create_chancellor
from chancellor.engines import EnginePool
from chancellor.nodes import generation_node
from tests.unit.test_graph import Graph

INT8, INT8WO, PLAIN = "smollm2-135m-int8", "smollm2-135m-int8wo", "smollm2-135m"
TRANSFORMERS = "smollm2-135m-transformers"


@pytest.fixture(scope="module", autouse=True)
def programs() -> Iterator[None]:
    """The pools of a test run are those of many programs: none is to count what the others' engines take."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("chancellor.engines.room.PROCESS", None)
        yield


@pytest.fixture(scope="session")
def pool() -> Iterator[EnginePool]:
    pool = EnginePool()
    yield pool
    pool.close()


@pytest.fixture(scope="session")
def catalog() -> Catalog:
    """The demo catalog in float32, the same on every CPU; the int8 engine lets the tests look into its worker."""
    models = []
    for spec in Catalog.demo().values():
        options = {"worker_extension_cls": "tests.integration.probe.Probe"} if spec.name == INT8 else {}
        engine = spec.engine.model_copy(update={"dtype": "float32", "vllm": options})
        models.append(spec.model_copy(update={"engine": engine}))
    return Catalog(models)


@pytest.fixture(scope="session")
def transformers_catalog(catalog: Catalog) -> Catalog:
    """The unquantised model alone, in plain transformers; the graph's models stay as they are."""
    spec = catalog[PLAIN]
    engine = spec.engine.model_copy(update={"kind": "transformers", "vllm": {}})
    return Catalog([spec.model_copy(update={"name": TRANSFORMERS, "engine": engine})])


@pytest.fixture(scope="session")
def graph(catalog: Catalog, pool: EnginePool) -> Graph:
    return create_chancellor(catalog, generate=generation_node(ChatModels(catalog, pool=pool))).compile()
