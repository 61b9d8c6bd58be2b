"""One engine on CUDA GPUs, through the graph: random weights, a tokenizer made on the spot."""

import asyncio
from typing import Any

import pytest

from chancellor import Catalog, ChatModels, ModelSpec, create_chancellor, errors
from chancellor.engines import EnginePool
from chancellor.engines.hardware import gpu_count
from chancellor.nodes import generation_node
from tests.tiny import make_model

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(gpu_count() == 0, reason="no CUDA GPU on this machine")]


@pytest.fixture(scope="module")
def catalog(tmp_path_factory: pytest.TempPathFactory) -> Catalog:
    folder = make_model(tmp_path_factory.mktemp("gpu") / "model", hidden=1024, layers=8, heads=16, kv_heads=8)
    return Catalog([ModelSpec(name="random", source=str(folder), trinity=96.0)])


def used_mib() -> float:
    import pynvml

    pynvml.nvmlInit()
    devices = [pynvml.nvmlDeviceGetHandleByIndex(index) for index in range(gpu_count())]
    return float(sum(pynvml.nvmlDeviceGetMemoryInfo(device).used for device in devices)) / 2**20


def total_mib() -> float:
    import pynvml

    pynvml.nvmlInit()
    devices = [pynvml.nvmlDeviceGetHandleByIndex(index) for index in range(gpu_count())]
    return float(sum(pynvml.nvmlDeviceGetMemoryInfo(device).total for device in devices)) / 2**20


def test_the_graph_answers_and_the_memory_comes_back(catalog: Catalog) -> None:
    before = used_mib()
    pool = EnginePool()
    try:
        graph = create_chancellor(catalog, generate=generation_node(ChatModels(catalog, pool=pool))).compile()
        context = {"temperature": 0, "max_tokens": 32}
        state = graph.invoke({"messages": [("user", "What is 2+2?")]}, context=context)
        metrics = state["metrics"]
        print(metrics)
        assert metrics["engine"] == "vllm"
        assert 0 < metrics["output_tokens"] <= 32
        assert metrics["inference_time_s"] >= metrics["time_to_first_token_s"] > 0
        assert 0.5 * 0.8 * total_mib() < metrics["gpu_memory_mib"] <= 0.82 * total_mib() + before
        assert metrics["gpu_utilization"] is not None

        async def sixteen() -> list[Any]:
            questions = [{"messages": [("user", f"What is {number}+2?")]} for number in range(16)]
            return list(await asyncio.gather(*(graph.ainvoke(question, context=context) for question in questions)))

        assert len(asyncio.run(sixteen())) == 16
        stats = pool.stats()["random"]
        print(stats)
        assert stats.peak_running == 16
        chunks = [
            chunk for chunk, _ in graph.stream({"messages": [("user", "hi")]}, context=context, stream_mode="messages")
        ]
        assert len(chunks) > 1
        with pytest.raises(errors.PromptTooLongError):
            graph.invoke({"messages": [("user", "word " * 2000)]}, context=context)
    finally:
        pool.close()
    assert used_mib() < before + 512
