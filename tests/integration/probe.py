"""Looks into a running vLLM worker: mixed into the worker's class by vLLM's worker_extension_cls."""

from collections import Counter
from typing import Any


class Probe:
    """Methods that the engine can call in its worker."""

    model_runner: Any

    def linear_weights(self) -> dict[str, int]:
        """Count the linear layers by the class of their weight and the type that holds its values."""
        from vllm.model_executor.layers.linear import LinearBase

        found: Counter[str] = Counter()
        for module in self.model_runner.model.modules():
            if isinstance(module, LinearBase):
                weight = module.weight.data
                stored = getattr(weight, "qdata", weight)
                found[f"{type(weight).__name__} of {stored.dtype}"] += 1
        return dict(found)
