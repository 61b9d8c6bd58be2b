"""What vLLM asks for the method of each layer."""

from collections.abc import Mapping
from typing import Any, Final, Self

import torch
from vllm.config import get_current_vllm_config
from vllm.model_executor.layers.linear import LinearBase, UnquantizedLinearMethod
from vllm.model_executor.layers.quantization.base_config import QuantizeMethodBase
from vllm.model_executor.layers.quantization.torchao import TorchAOConfig, TorchAOLinearMethod
from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead

from chancellor.quantization.schemes import Scheme
from chancellor.quantization.vllm_plugin.formats import UnusableWeightError, format_for
from chancellor.quantization.vllm_plugin.method import KernelLinearMethod, QuantizedHeadMethod
from chancellor.quantization.vllm_plugin.rules import config_of

__all__ = ["AT_LOAD", "KernelConfig", "options"]

_OPTIONS: Final = {"kernels": ("vllm", "torchao"), "quantize_lm_head": (False, True)}


def options() -> dict[str, Any]:
    """Return the options that vLLM was started with under `--additional-config '{"chancellor": {...}}'`.

    kernels: "vllm" (the default), or "torchao", which is what vLLM does without this plug-in.
    quantize_lm_head: whether the output layer is quantised as well; False by default.

    Raises:
        ValueError: there is no such option.
    """
    given = get_current_vllm_config().additional_config
    given = given.get("chancellor", {}) if isinstance(given, Mapping) else {}
    for name, value in given.items():
        if name not in _OPTIONS or value not in _OPTIONS[name]:
            known = "; ".join(f"{option}: {' or '.join(map(str, values))}" for option, values in _OPTIONS.items())
            raise ValueError(
                f"additional_config has no option {name!r} = {value!r} for chancellor. There are: {known}."
            )
    return {name: given.get(name, values[0]) for name, values in _OPTIONS.items()}


class KernelConfig(TorchAOConfig):  # type: ignore[misc]
    """TorchAO's quantisation, on vLLM's own kernels wherever there is one for it."""

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        try:
            made: Self = super().from_config(config)
        except (AssertionError, TypeError, ValueError, KeyError) as error:
            raise UnusableWeightError(
                f"TorchAO cannot read this checkpoint's quantization_config: {error}. Most likely an older TorchAO "
                "wrote it (version 1 of the int8 configs is not read any more): quantise the original again."
            ) from error
        return made

    def get_quant_method(self, layer: torch.nn.Module, prefix: str) -> QuantizeMethodBase | None:
        chosen = options()
        if chosen["kernels"] == "torchao":
            return super().get_quant_method(layer, prefix)
        if isinstance(layer, ParallelLMHead):
            return self._head() if chosen["quantize_lm_head"] else None
        if not isinstance(layer, LinearBase):
            return super().get_quant_method(layer, prefix)
        config = config_of(prefix, self.torchao_config, self.skip_modules, self.packed_modules_mapping)
        if config is None:
            return UnquantizedLinearMethod()
        serialized = self.is_checkpoint_torchao_serialized
        stock = TorchAOLinearMethod(TorchAOConfig(config, self.skip_modules, serialized))
        weights = format_for(config)
        return stock if weights is None else KernelLinearMethod(weights, stock, serialized=serialized)

    def _head(self) -> QuantizeMethodBase:
        from torchao.quantization import FqnToConfig

        config = self.torchao_config
        if isinstance(config, FqnToConfig):
            rules = [rule for rule in config.fqn_to_config.values() if rule is not None]
            config = config.fqn_to_config.get("lm_head") or config.fqn_to_config.get("_default") or rules[0]
        weights = format_for(config)
        if weights is None:
            raise UnusableWeightError(
                f"vLLM has no kernel for an output layer of {type(config).__name__}. Leave out quantize_lm_head."
            )
        return QuantizedHeadMethod(weights)


class _AtLoad(KernelConfig):
    """Quantises an unquantised checkpoint, layer by layer, as it is loaded."""

    scheme: str

    def __init__(self) -> None:
        super().__init__(Scheme.of(self.scheme).config())

    def get_name(self) -> str:
        return f"torchao-{self.scheme}"


# At module level, each: vLLM sends them to its processes by their names.
class Int8AtLoad(_AtLoad):
    scheme = "int8"


class Int8WeightOnlyAtLoad(_AtLoad):
    scheme = "int8wo"


class Float8AtLoad(_AtLoad):
    scheme = "fp8"


class Int4AtLoad(_AtLoad):
    scheme = "int4wo"


class Int4Float8AtLoad(_AtLoad):
    scheme = "int4fp8"


AT_LOAD: Final[dict[str, type[KernelConfig]]] = {
    f"torchao-{config.scheme}": config
    for config in (Int8AtLoad, Int8WeightOnlyAtLoad, Float8AtLoad, Int4AtLoad, Int4Float8AtLoad)
}
"""Names for `--quantization`, and what each does."""
