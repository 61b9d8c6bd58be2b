"""How a layer's weights are made, loaded, and handed to the kernel that runs them."""

from collections.abc import Callable
from typing import Any

import torch
from vllm.config import get_current_vllm_config
from vllm.logger import init_logger
from vllm.model_executor.layers.linear import LinearMethodBase
from vllm.model_executor.layers.quantization.base_config import QuantizeMethodBase
from vllm.model_executor.layers.vocab_parallel_embedding import UnquantizedEmbeddingMethod
from vllm.model_executor.model_loader.reload.layerwise import get_layerwise_info, initialize_online_processing
from vllm.model_executor.parameter import ModelWeightParameter
from vllm.model_executor.utils import set_weight_attrs

from chancellor.quantization.vllm_plugin.formats import Geometry, UnusableWeightError, WeightFormat
from chancellor.quantization.vllm_plugin.formats.base import install
from chancellor.quantization.vllm_plugin.formats.int4 import Int4Format
from chancellor.quantization.weights import quantize_weight

__all__ = ["KernelLinearMethod", "QuantizedHeadMethod"]

logger = init_logger(f"vllm.{__name__}")  # below vLLM's own, so that it goes where vLLM's log goes


class KernelLinearMethod(LinearMethodBase):  # type: ignore[misc]
    """Runs a linear layer with TorchAO's weights on a kernel of vLLM's.

    Args:
        weights: format of the weights.
        stock: vLLM's own method for the same weights, for machines without a kernel.
        serialized: whether the checkpoint is quantised; if not, each layer is as soon as it is loaded.
        name: of the layer, for messages.
    """

    def __init__(self, weights: WeightFormat, stock: QuantizeMethodBase, *, serialized: bool, name: str = "") -> None:
        self.weights, self.stock, self.serialized, self.name = weights, stock, serialized, name
        self.uses_meta_device = not serialized  # vLLM's word for layers that are finished one by one while loading
        self.random_weights = False
        self.kernel: Any = None
        self.geometry: Geometry | None = None

    def create_weights(
        self,
        layer: torch.nn.Module,
        input_size_per_partition: int,
        output_partition_sizes: list[int],
        input_size: int,
        output_size: int,
        params_dtype: torch.dtype,
        **attributes: Any,
    ) -> None:
        geometry = Geometry(
            input_size, output_size, input_size_per_partition, sum(output_partition_sizes), params_dtype
        )
        if not self.serialized and isinstance(self.weights, Int4Format):
            self.weights = self.weights.fitted(geometry)
        try:
            self.kernel = self.weights.kernel(geometry)
        except UnusableWeightError:
            raise
        except ValueError as reasons:
            self._fall_back(layer, reasons)
            layer.quant_method.create_weights(
                layer,
                input_size_per_partition,
                output_partition_sizes,
                input_size,
                output_size,
                params_dtype,
                **attributes,
            )
            return
        self.geometry = geometry
        layer.logical_widths = output_partition_sizes
        layer.params_dtype = params_dtype
        loader = attributes["weight_loader"]
        if not self.serialized:
            weight = ModelWeightParameter(
                data=torch.empty(geometry.outputs_here, geometry.inputs_here, dtype=params_dtype, device="meta"),
                input_dim=1,
                output_dim=0,
                weight_loader=loader,
            )
            layer.register_parameter("weight", weight)
            initialize_online_processing(layer)
            self.random_weights = get_current_vllm_config().load_config.load_format == "dummy"
            return
        for name, part in self.weights.parts(geometry).items():
            parameter = torch.nn.Parameter(torch.empty(part.shape, dtype=part.dtype), requires_grad=False)
            set_weight_attrs(parameter, {"output_dim": part.output_dim, "input_dim": part.input_dim})
            layer.register_parameter(name, parameter)
        set_weight_attrs(layer.weight, {"weight_loader": self._part_loader(layer, loader)})

    def _fall_back(self, layer: torch.nn.Module, reasons: ValueError) -> None:
        kind = type(self.weights.config).__name__
        if isinstance(self.weights, Int4Format):
            raise UnusableWeightError(f"No kernel of vLLM's can run these int4 weights here: {reasons}") from reasons
        logger.warning_once(
            "No kernel of vLLM's can run %s here, so that TorchAO's own runs it, which is slower than no quantisation "
            "at all: on a CPU use int8. %s",
            kind,
            str(reasons),
        )
        layer.quant_method = self.stock

    def _part_loader(self, layer: torch.nn.Module, load: Callable[..., None]) -> Callable[..., None]:
        """Return a loader for TorchAO's tensors: each part is loaded as vLLM loads any weight of that shape."""

        def load_parts(param: torch.nn.Parameter, loaded: torch.Tensor, *shard: Any, **options: Any) -> None:
            if type(loaded) is torch.Tensor or type(loaded) is torch.nn.Parameter:
                logger.warning_once(
                    "%s, and maybe others, are not quantised in the checkpoint as its config.json promises; they are "
                    "now. Was it meant to be skipped? vLLM knows it by this name.",
                    self.name,
                )
                loaded = quantize_weight(loaded.to(layer.params_dtype), self.weights.config)
            parts = self.weights.split(loaded)
            load(param, parts.pop("weight"), *shard, **options)
            for name, part in parts.items():
                load(getattr(layer, name), part, *shard, **options)

        return load_parts

    def process_weights_after_loading(self, layer: torch.nn.Module) -> None:
        # Called once for each layer that was finished while loading, and once more for all of them at the end.
        if self.geometry is None or getattr(layer, "_already_called_process_weights_after_loading", False):
            return
        if self.serialized:
            names = self.weights.parts(self.geometry)
            parts = {name: getattr(layer, name).data for name in names}
        else:
            if not self.random_weights and get_layerwise_info(layer).load_numel == 0:
                raise UnusableWeightError(
                    f"{self.name} got no weights: they are not in the checkpoint, or are loaded in a way that "
                    "quantising at load cannot follow. Quantise the model first: chancellor quantize SOURCE DEST."
                )
            parts = self.weights.split(quantize_weight(layer.weight.data, self.weights.config))
        for name in parts:
            if hasattr(layer, name):
                delattr(layer, name)  # not two copies at once
        self.weights.place(layer, parts)
        del parts
        self.kernel.process_weights_after_loading(layer)
        _leave_a_weight(layer)
        layer._already_called_process_weights_after_loading = True  # noqa: SLF001 - the mark that vLLM resets on reload

    def apply(self, layer: torch.nn.Module, x: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        output: torch.Tensor = self.kernel.apply_weights(layer, x, bias)
        return output


def _leave_a_weight(layer: torch.nn.Module) -> None:
    """Give the layer an empty weight where its kernel keeps the values to itself: adapters look at its device."""
    if getattr(layer, "weight", None) is None:
        install(layer, weight=torch.empty(0, dtype=torch.int8))


class QuantizedHeadMethod(QuantizeMethodBase):  # type: ignore[misc]
    """Quantises the output layer after it was loaded, also where it shares its weight with the embedding.

    An embedding that shares the weight keeps it: its rows are looked up, not multiplied.
    """

    def __init__(self, weights: WeightFormat) -> None:
        self.weights = weights
        self.kernel: Any = None
        self.geometry: Geometry | None = None

    def create_weights(
        self,
        layer: torch.nn.Module,
        input_size_per_partition: int,
        output_partition_sizes: list[int],
        input_size: int,
        output_size: int,
        params_dtype: torch.dtype,
        **attributes: Any,
    ) -> None:
        self.geometry = Geometry(
            input_size, output_size, input_size_per_partition, sum(output_partition_sizes), params_dtype
        )
        if isinstance(self.weights, Int4Format):
            self.weights = self.weights.fitted(self.geometry)
        try:
            self.kernel = self.weights.kernel(self.geometry)
        except UnusableWeightError:
            raise
        except ValueError as reasons:
            raise UnusableWeightError(
                f"No kernel of vLLM's can run the output layer quantised so; leave out quantize_lm_head. {reasons}"
            ) from reasons
        logger.info_once("The output layer is quantised by %s", type(self.weights.config).__name__)
        layer.logical_widths = output_partition_sizes
        layer.params_dtype = params_dtype
        UnquantizedEmbeddingMethod().create_weights(
            layer,
            input_size_per_partition,
            output_partition_sizes,
            input_size,
            output_size,
            params_dtype,
            **attributes,
        )

    def process_weights_after_loading(self, layer: torch.nn.Module) -> None:
        weight = layer.weight.data
        delattr(layer, "weight")
        self.weights.place(layer, self.weights.split(quantize_weight(weight, self.weights.config)))
        del weight
        self.kernel.process_weights_after_loading(layer)
        _leave_a_weight(layer)

    def apply(self, layer: torch.nn.Module, x: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        output: torch.Tensor = self.kernel.apply_weights(layer, x, bias)
        return output
