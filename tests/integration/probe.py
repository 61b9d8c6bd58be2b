"""Looks into a running vLLM worker: mixed into the worker's class by vLLM's worker_extension_cls."""

from collections import Counter
from typing import Any


class Probe:
    """Methods that the engine can call in its worker."""

    model_runner: Any

    def linear_kernels(self) -> dict[str, int]:
        """Count the layers that multiply, by the kernel that does it."""
        from vllm.model_executor.layers.linear import LinearBase
        from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead
        from vllm.model_executor.parameter import BasevLLMParameter

        found: Counter[str] = Counter()
        for module in self.model_runner.model.modules():
            if isinstance(module, LinearBase | ParallelLMHead):
                kernel = getattr(module.quant_method, "kernel", None)
                own = getattr(module, "weight", None)
                # vLLM's loader leaves a class of its own where no kernel has packed the weight, as AMX's does.
                weight = "Parameter" if isinstance(own, BasevLLMParameter) else type(own).__name__
                head = "head: " if isinstance(module, ParallelLMHead) else ""
                found[head + (type(kernel).__name__ if kernel else f"none, {weight}")] += 1
        return dict(found)
