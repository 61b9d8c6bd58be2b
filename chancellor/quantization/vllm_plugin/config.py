"""What vLLM asks for the method of each layer."""

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple, Self

import torch
from vllm.config import get_current_vllm_config
from vllm.logger import init_logger
from vllm.model_executor.layers.linear import LinearBase, UnquantizedLinearMethod
from vllm.model_executor.layers.quantization.base_config import QuantizeMethodBase
from vllm.model_executor.layers.quantization.torchao import TorchAOConfig, TorchAOLinearMethod
from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead

from chancellor.quantization.schemes import Scheme
from chancellor.quantization.vllm_plugin.formats import UnusableWeightError, format_for
from chancellor.quantization.vllm_plugin.method import KernelLinearMethod, QuantizedHeadMethod
from chancellor.quantization.vllm_plugin.rules import config_of

__all__ = ["AT_LOAD", "KernelConfig", "Options"]

logger = init_logger(f"vllm.{__name__}")


class Options(NamedTuple):
    """What vLLM was started with under `--additional-config '{"chancellor": {...}}'`."""

    kernels: str = "vllm"
    """"vllm", or "torchao", which is what vLLM does without this plug-in."""
    quantize_lm_head: bool = False
    """Whether the output layer is quantised as well."""
    skip: Sequence[str] = ()
    """Names, or parts of names, of further layers that are not quantised."""

    @classmethod
    def given(cls) -> Self:
        """Return the options of the engine that is being made.

        Raises:
            ValueError: there is no such option, or it has no such value.
        """
        config = get_current_vllm_config().additional_config
        given: dict[str, Any] = config.get("chancellor", {}) if isinstance(config, Mapping) else {}
        if unknown := set(given) - set(cls._fields):
            raise ValueError(
                f"additional_config has no {', '.join(sorted(unknown))} for chancellor. "
                f"There are: {', '.join(cls._fields)}."
            )
        options = cls(**given)
        if options.kernels not in ("vllm", "torchao"):
            raise ValueError(f"kernels is vllm or torchao, not {options.kernels!r}.")
        if given.get("quantize_lm_head", False) not in (True, False) or isinstance(options.skip, str):
            raise ValueError("quantize_lm_head is true or false, and skip a list of names.")
        if options.quantize_lm_head and options.kernels == "torchao":
            raise ValueError("quantize_lm_head needs vLLM's kernels: leave out one of quantize_lm_head and kernels.")
        return options


class KernelConfig(TorchAOConfig):  # type: ignore[misc]
    """TorchAO's quantisation, on vLLM's own kernels wherever there is one for it."""

    torchao_config: Any
    skip_modules: list[str]

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

    def apply_vllm_mapper(self, hf_to_vllm_mapper: Any) -> None:
        """Give the rules the names that vLLM has for the layers; called by vLLM for models that rename them."""
        from torchao.quantization import FqnToConfig

        self.skip_modules = hf_to_vllm_mapper.apply_list(self.skip_modules)
        if isinstance(self.torchao_config, FqnToConfig):
            rules: OrderedDict[str, Any] = OrderedDict()
            for name, rule in self.torchao_config.fqn_to_config.items():
                plain = not name.startswith("re:") and name != "_default"
                rules |= hf_to_vllm_mapper.apply_dict({name: rule}) if plain else {name: rule}
            self.torchao_config = FqnToConfig(rules)

    def get_quant_method(self, layer: torch.nn.Module, prefix: str) -> QuantizeMethodBase | None:
        options = Options.given()
        if options.kernels == "torchao":
            return super().get_quant_method(layer, prefix)
        if isinstance(layer, ParallelLMHead):
            return self._head() if options.quantize_lm_head else None
        if not isinstance(layer, LinearBase):
            return super().get_quant_method(layer, prefix)
        skipped = [*self.skip_modules, *options.skip]
        config = config_of(prefix, self.torchao_config, skipped, self.packed_modules_mapping)
        if config is None:
            return UnquantizedLinearMethod()
        serialized = self.is_checkpoint_torchao_serialized
        stock = TorchAOLinearMethod(TorchAOConfig(config, self.skip_modules, serialized))
        weights = format_for(config)
        if weights is None:
            logger.warning_once("vLLM has no kernel for weights of %s: TorchAO's own runs them.", type(config).__name__)
            return stock
        return KernelLinearMethod(weights, stock, serialized=serialized, name=prefix)

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

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:  # noqa: ARG003 - vLLM's signature
        raise UnusableWeightError(
            f"torchao-{cls.scheme} quantises an unquantised checkpoint, but this one has a quantization_config. Leave "
            "--quantization out to serve it as it is; with a TorchAO config of your own use --quantization torchao."
        )


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
