"""A plug-in for vLLM that runs TorchAO's weights on vLLM's own kernels.

vLLM finds it by the entry point `vllm.general_plugins` in every one of its processes: also an unmodified `vllm serve`.
It takes the place of the method "torchao", so that checkpoints of TorchAO are served as they are, and adds a method
for each scheme that quantises an unquantised checkpoint at load: `--quantization torchao-int8`, for example.

    config -> rules -> method -> formats
    which config a layer has, which weights are loaded how, and which kernel of vLLM's runs them
"""

import logging

__all__ = ["PLUGIN", "register"]

PLUGIN = "chancellor_torchao"
"""Name of the entry point, as the environment variable VLLM_PLUGINS has it."""


def register() -> None:
    """Register with vLLM; called by vLLM itself, once in each process."""
    try:
        from vllm.model_executor.layers.quantization import register_quantization_config

        from chancellor.quantization.vllm_plugin.config import AT_LOAD, KernelConfig
    except Exception:  # it would end every vLLM of this environment, also of those who need no TorchAO
        logging.getLogger(f"vllm.{__name__}").exception(
            "Chancellor's plug-in does not fit this vLLM: TorchAO's weights run on vLLM's stock path."
        )
        return
    register_quantization_config("torchao")(KernelConfig)
    for name, config in AT_LOAD.items():
        register_quantization_config(name)(config)
