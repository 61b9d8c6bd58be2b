"""A plug-in for vLLM that runs TorchAO's weights on vLLM's own kernels.

vLLM finds it by the entry point `vllm.general_plugins` in every one of its processes: also an unmodified `vllm serve`.
It takes the place of the method "torchao", so that checkpoints of TorchAO are served as they are, and adds a method
for each scheme that quantises an unquantised checkpoint at load: `--quantization torchao-int8`, for example.

    config -> rules -> method -> formats
    which config a layer has, which weights are loaded how, and which kernel of vLLM's runs them
"""

import os

__all__ = ["register"]


def register() -> None:
    """Register with vLLM; called by vLLM itself, once in each process."""
    # On a CPU with AMX, vLLM would round the activations of weight-only int4 to int8, with errors of 3 %. It still does
    # for those who set this to 1.
    os.environ.setdefault("VLLM_CPU_INT4_W4A8", "0")
    from vllm.model_executor.layers.quantization import register_quantization_config

    from chancellor.quantization.vllm_plugin.config import AT_LOAD, KernelConfig

    register_quantization_config("torchao")(KernelConfig)
    for name, config in AT_LOAD.items():
        register_quantization_config(name)(config)
