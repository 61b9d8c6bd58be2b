"""Write a TorchAO safetensors checkpoint that vLLM and transformers load.

The tensors pass one by one, so the peak is the largest tensor and one shard, not the model (a GGUF is the exception:
transformers converts it whole). Everything is written into a folder beside the destination and renamed at the end.
"""

import json
import math
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from filelock import FileLock, Timeout

from chancellor import progress
from chancellor.checkpoints import Checkpoint, fetch, inspect_checkpoint
from chancellor.errors import MissingDependencyError, QuantizationError
from chancellor.quantization.manifest import Manifest
from chancellor.quantization.reader import CheckpointReader, open_reader
from chancellor.quantization.schemes import Scheme
from chancellor.quantization.shards import ShardWriter
from chancellor.quantization.weights import quantize_weight

if TYPE_CHECKING:
    import torch
    from torchao.core.config import AOBaseConfig

__all__ = ["quantize", "write_checkpoint"]

_MINIMUM_SHARE: Final = 0.5  # of the weights beside embeddings, for a checkpoint to be called quantised
_SPARE: Final = 1.05  # headers, tokenizer and rounding, as a factor on the estimated size


def quantize(
    source: str,
    destination: str | Path,
    scheme: str | None = "int8",
    *,
    revision: str | None = None,
    dtype: str = "bfloat16",
    trust_remote_code: bool = False,
    lock_timeout_s: float = -1,
) -> Path:
    """Quantise the linear layers of a model and write it as a new checkpoint.

    Args:
        source: hub id, local folder, `.gguf` file, or `package:NAME`.
        destination: folder to make; it must not exist.
        scheme: name of a scheme, or None to convert without quantising.
        revision: commit or tag on the hub.
        dtype: compute type recorded with the int8 weights: "bfloat16", "float16" or "float32". An engine has to run
            with this type, as TorchAO's tensors refuse to be loaded into another one.
        trust_remote_code: run the model's own code where it brings some.
        lock_timeout_s: seconds to wait for another process that writes the same destination; -1 has no limit.

    Returns:
        The destination.

    Raises:
        UnknownChoiceError: no such scheme.
        CheckpointError: the source cannot be used, the destination exists, or the disk is full.
        MissingDependencyError: torch, torchao or transformers is not installed.
    """
    chosen = Scheme.of(scheme) if scheme is not None else None
    destination = Path(destination).expanduser().resolve()
    if destination.exists():
        raise QuantizationError(f"{destination} exists already.", hint="Remove it, or choose another destination.")
    if (checkpoint := fetch(source, revision)).random_weights:
        raise QuantizationError(f"{source} has no weights to write.", hint="Set scheme in a catalog entry instead.")
    write_checkpoint(
        checkpoint,
        destination,
        chosen,
        name=source,
        dtype=dtype,
        trust_remote_code=trust_remote_code,
        lock_timeout_s=lock_timeout_s,
    )
    return destination


def write_checkpoint(
    checkpoint: Checkpoint,
    destination: Path,
    scheme: Scheme | None,
    *,
    name: str,
    dtype: str,
    trust_remote_code: bool = False,
    lock_timeout_s: float = -1,
) -> None:
    """Write `checkpoint` to `destination` unless another process has done so by the time the lock is free."""
    try:
        import accelerate  # noqa: F401 - transformers reads GGUF through it
        import torch
        import torchao  # noqa: F401
        import transformers  # noqa: F401
        from safetensors import SafetensorError
    except ImportError as error:
        raise MissingDependencyError.of(error.name) from error

    compute = getattr(torch, dtype, None)
    if compute not in (torch.bfloat16, torch.float16, torch.float32):
        raise QuantizationError(f"There is no compute type {dtype!r}.", hint="Use bfloat16, float16 or float32.")
    try:
        destination.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(destination.parent / f".{destination.name}.lock", timeout=lock_timeout_s):
            if destination.exists():
                return
            info = inspect_checkpoint(checkpoint.path, trust_remote_code=trust_remote_code)
            progress.report("quantize", name, "reading the original")
            reader = open_reader(checkpoint.path, info, trust_remote_code=trust_remote_code)
            with _aside(destination) as folder:
                parameters, layers = _write(reader, folder, scheme, compute, name, trust_remote_code=trust_remote_code)
                Manifest.describe(
                    folder,
                    source=checkpoint.identity,
                    revision=checkpoint.revision,
                    scheme=scheme.name if scheme else None,
                    dtype=dtype,
                    parameters=parameters,
                    quantized_layers=layers,
                ).write(folder)
    except Timeout as error:
        raise QuantizationError(
            f"Another process has been writing {destination} for {lock_timeout_s:g} s.", hint="Wait for it, or end it."
        ) from error
    except (OSError, SafetensorError) as error:
        raise QuantizationError(
            f"Writing {destination} failed: {error}.",
            hint="Make room or choose another folder, then run it again; nothing half-written was kept.",
        ) from error


@contextmanager
def _aside(destination: Path) -> Iterator[Path]:
    """Give a folder beside `destination` that takes its place on success and vanishes on failure."""
    folder = destination.parent / f".{destination.name}.partial"
    shutil.rmtree(folder, ignore_errors=True)  # left by a process that was killed; the lock is ours
    folder.mkdir()
    try:
        yield folder
        os.replace(folder, destination)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def _write(
    reader: CheckpointReader,
    folder: Path,
    scheme: Scheme | None,
    compute: "torch.dtype",
    name: str,
    *,
    trust_remote_code: bool,
) -> tuple[int, int]:
    """Write everything but the manifest; return the numbers of parameters and of quantised layers."""
    from transformers import TorchAoConfig

    reader.copy_companions(folder)
    config = reader.config()
    own = config.pop("torch_dtype", None) or config.get("dtype") or "bfloat16"
    config["dtype"] = str(compute).removeprefix("torch.") if scheme else own
    shapes = reader.shapes()
    linear, kept = _linear_layers(folder, config, trust_remote_code=trust_remote_code) if scheme else (set(), [])
    chosen = {f"{layer}.weight" for layer in linear} & shapes.keys()
    how: AOBaseConfig | None = None
    if scheme:
        if not chosen:
            raise QuantizationError(
                f"No linear layer of {name} can be quantised.",
                hint="Its tensors are not named as transformers names them; set scheme to none for this model.",
            )
        matrices = {one: math.prod(shape) for one, shape in shapes.items() if len(shape) > 1}
        matrices = {one: size for one, size in matrices.items() if not _stays(one, kept)}
        share = sum(matrices[one] for one in chosen) / sum(matrices.values())
        if share < _MINIMUM_SHARE:
            raise QuantizationError(
                f"Only {share:.0%} of the weights of {name} are in linear layers that TorchAO quantises.",
                hint="Mixtures of experts keep theirs elsewhere: serve this model without a scheme.",
            )
        how = scheme.config_for(shapes[one][1] for one in chosen)
        config["quantization_config"] = TorchAoConfig(how, modules_to_not_convert=kept or None).to_dict()
    sizes = {tensor_name: math.prod(shape) for tensor_name, shape in shapes.items()}
    _check_space(folder, sizes, chosen, scheme)
    shards = ShardWriter(folder, _metadata(shapes, chosen, how, compute))
    for done, (tensor_name, tensor) in enumerate(reader.tensors(), start=1):
        progress.report("quantize", name, "quantising" if scheme else "converting", done, len(shapes))
        if how is not None and tensor_name in chosen:
            shards.add(tensor_name, quantize_weight(tensor.to(compute), how))
        else:
            # Loaders of quantised checkpoints do not all convert. What differs from the model's own type does so
            # on purpose: routers and norms that stay in float32.
            shards.add(tensor_name, tensor.to(compute) if scheme and str(tensor.dtype) == f"torch.{own}" else tensor)
    shards.close()
    (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    return sum(sizes.values()), len(chosen)


def _linear_layers(folder: Path, config: dict[str, Any], *, trust_remote_code: bool) -> tuple[set[str], list[str]]:
    """Return the names of the linear layers to quantise, and of the output layer, which stays as it is."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    try:
        loaded = AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(loaded, trust_remote_code=trust_remote_code)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise QuantizationError(
            f"transformers cannot build the model of this config.json: {error}.",
            hint="A newer transformers may know the architecture.",
        ) from error
    output = model.get_output_embeddings()
    linear = {name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)}
    kept = [name for name, module in model.named_modules() if module is output]
    return linear - set(kept), kept


def _stays(name: str, kept: list[str]) -> bool:
    """Return whether a matrix is an embedding or the output layer."""
    return "embed" in name or any(name.startswith(f"{module}.") for module in kept)


def _metadata(
    shapes: dict[str, tuple[int, ...]], chosen: set[str], how: "AOBaseConfig | None", compute: "torch.dtype"
) -> dict[str, str]:
    """Return TorchAO's description of every tensor of the checkpoint, made from tensors without storage."""
    if how is None:
        return {}
    import torch
    from torchao.prototype.safetensors.safetensors_support import flatten_tensor_state_dict

    outlines: dict[str, torch.Tensor] = {}
    for name, shape in shapes.items():
        outline = torch.empty(shape, dtype=compute, device="meta")
        outlines[name] = quantize_weight(outline, how) if name in chosen else outline
    metadata: dict[str, str] = flatten_tensor_state_dict(outlines)[1]
    return metadata


def _check_space(folder: Path, sizes: dict[str, int], quantized: set[str], scheme: Scheme | None) -> None:
    needed = sum(size * (scheme.weight_bytes if scheme and name in quantized else 4) for name, size in sizes.items())
    free = shutil.disk_usage(folder).free
    if needed * _SPARE > free:
        raise QuantizationError(
            f"{folder.parent} has {free / 2**30:.1f} GiB free; {needed * _SPARE / 2**30:.1f} GiB are needed.",
            hint="Make room, or set CHANCELLOR_CACHE_DIR (or the destination) to a larger disk.",
        )
