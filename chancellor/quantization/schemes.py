"""The quantisation schemes, each by its name and the TorchAO config behind it."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal

from chancellor.errors import MissingDependencyError, QuantizationError, UnknownChoiceError
from chancellor.quantization.int4 import GROUP_SIZE
from chancellor.quantization.weights import GROUP_SIZES, quantize_weight

if TYPE_CHECKING:
    import torch
    from torchao.core.config import AOBaseConfig

__all__ = ["SCHEMES", "Scheme", "SchemeName"]

SchemeName = Literal["int8", "int8wo", "fp8", "int4wo", "int4fp8"]


@dataclass(frozen=True, slots=True)
class Scheme:
    """One way to quantise the linear layers of a model."""

    name: str
    summary: str
    torchao_type: str
    """Class name of the TorchAO config, as it stands in a checkpoint's config.json."""
    weight_bytes: float
    """Bytes that a quantised weight takes, its scales not counted."""

    @classmethod
    def of(cls, name: str) -> "Scheme":
        """Return the scheme of this name.

        Raises:
            UnknownChoiceError: there is none.
        """
        try:
            return SCHEMES[name]
        except KeyError:
            raise UnknownChoiceError.of("scheme", name, SCHEMES) from None

    def config(self, *, group_size: int | None = None) -> "AOBaseConfig":
        """Return the TorchAO config: scales per output row or group, and inductor's settings left alone.

        Args:
            group_size: weights that share a scale, where the scheme has groups; None is 128.
        """
        try:
            from torchao import quantization
        except ImportError as error:
            raise MissingDependencyError.of("torchao") from error
        options: dict[str, Any] = {}
        if self.name in ("int8", "int8wo"):
            options["version"] = 2  # 0.17 would take version 1, whose tensors cannot be saved as safetensors
        elif self.name == "fp8":
            options["granularity"] = quantization.PerRow()  # TorchAO's own choice loads wrongly into fused layers
        elif self.name == "int4wo":
            options["group_size"] = group_size or GROUP_SIZE
        elif self.name == "int4fp8":
            options["int4_packing_format"] = "plain"
        if self.name != "int4fp8":
            # TorchAO would turn on inductor's autotuning for the whole process: minutes of compile at engine start.
            options["set_inductor_config"] = False
        config: AOBaseConfig = getattr(quantization, self.torchao_type)(**options)
        return config

    def config_for(self, columns: Iterable[int]) -> "AOBaseConfig":
        """Return the TorchAO config for layers with these numbers of inputs: with the largest groups that fit all.

        Raises:
            QuantizationError: no group size does.
        """
        if self.name != "int4wo":
            return self.config()
        columns = set(columns)
        for size in GROUP_SIZES:
            if all(count % size == 0 for count in columns):
                return self.config(group_size=size)
        odd = next(count for count in sorted(columns) if count % GROUP_SIZES[-1])
        raise QuantizationError(
            f"A row of {odd} weights has no whole number of groups of {GROUP_SIZES[-1]}.",
            hint="Skip the layer, or use a scheme with a scale per row (int8, int8wo, fp8).",
        )

    def quantize(self, weight: "torch.Tensor") -> "torch.Tensor":
        """Return the weight of a linear layer, shape (out, in), as TorchAO's tensor of this scheme."""
        return quantize_weight(weight, self.config_for([weight.shape[1]]))

    def quantize_model(self, model: "torch.nn.Module") -> None:
        """Quantise the linear layers of a loaded model in place, but for its output layer."""
        import torch

        for name, layer in model.named_modules():
            if isinstance(layer, torch.nn.Linear) and not name.endswith("lm_head"):
                layer.weight = torch.nn.Parameter(self.quantize(layer.weight.data), requires_grad=False)


SCHEMES: Final[dict[str, Scheme]] = {
    scheme.name: scheme
    for scheme in (
        Scheme(
            "int8",
            "int8 weights per row, dynamic int8 activations per token",
            "Int8DynamicActivationInt8WeightConfig",
            1.0,
        ),
        Scheme("int8wo", "int8 weights per row, activations as they are", "Int8WeightOnlyConfig", 1.0),
        Scheme(
            "fp8",
            "float8 weights per row, dynamic float8 activations per token",
            "Float8DynamicActivationFloat8WeightConfig",
            1.0,
        ),
        Scheme(
            "int4wo",
            "int4 weights in groups of 128, activations as they are",
            "Int4WeightOnlyConfig",
            0.5,
        ),
        Scheme(
            "int4fp8",
            "int4 weights in groups of 128, dynamic float8 activations per token",
            "Float8DynamicActivationInt4WeightConfig",
            0.5,
        ),
    )
}
