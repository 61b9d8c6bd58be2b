"""The quantisation schemes, each by its name and the TorchAO config behind it."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal

from chancellor.errors import MissingDependencyError, UnknownChoiceError

if TYPE_CHECKING:
    import torch
    from torchao.core.config import AOBaseConfig

__all__ = ["SCHEMES", "Scheme", "SchemeName"]

SchemeName = Literal["int8", "int8wo"]


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

    def config(self) -> "AOBaseConfig":
        """Return the TorchAO config: scales per output row, and inductor's settings left alone."""
        try:
            from torchao import quantization
        except ImportError as error:
            raise MissingDependencyError.of("torchao") from error
        build: Any = getattr(quantization, self.torchao_type)
        # TorchAO would turn on inductor's autotuning for the whole process: minutes of compile at engine start.
        # And 0.17 would take version 1 by default, whose tensors cannot be saved as safetensors.
        config: AOBaseConfig = build(set_inductor_config=False, version=2)
        return config

    def quantize(self, weight: "torch.Tensor") -> "torch.Tensor":
        """Return the weight of a linear layer, shape (out, in), as TorchAO's tensor of this scheme."""
        import torch
        from torchao.quantization import quantize_

        # TorchAO wants a module, and for some schemes one that is inside of another.
        layers = torch.nn.Sequential(torch.nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta"))
        layers[0].weight = torch.nn.Parameter(weight, requires_grad=False)
        quantize_(layers, self.config())
        quantized: torch.Tensor = layers[0].weight.data
        return quantized

    def quantize_model(self, model: "torch.nn.Module") -> None:
        """Quantise the linear layers of a loaded model in place, but for its output layer."""
        import torch
        from torchao.quantization import quantize_

        quantize_(
            model,
            self.config(),
            filter_fn=lambda layer, name: isinstance(layer, torch.nn.Linear) and not name.endswith("lm_head"),
        )


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
    )
}
