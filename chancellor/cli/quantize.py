"""`chancellor quantize`: write a TorchAO checkpoint, with a progress bar."""

from pathlib import Path

from chancellor.cli.terminal import terminal
from chancellor.engines.hardware import default_dtype
from chancellor.quantization import Manifest, quantize

__all__ = ["run"]


def run(
    source: str,
    dest: Path,
    scheme: str | None,
    *,
    revision: str | None,
    dtype: str | None,
    trust_remote_code: bool,
    as_json: bool,
) -> None:
    """Quantise and say what was written."""
    with terminal() as user:
        with user.working(f"{source}: starting"):
            folder = quantize(
                source,
                dest,
                scheme,
                revision=revision,
                dtype=dtype or default_dtype(),
                trust_remote_code=trust_remote_code,
            )
        manifest = Manifest.read(folder)
        if manifest is None:  # removed by someone else in this moment
            return
        if as_json:
            user.out.file.write(manifest.model_dump_json() + "\n")
            return
        size = sum(record.bytes for record in manifest.files.values())
        user.out.print(
            f"{folder}: {manifest.parameters / 1e6:,.0f} M parameters, {manifest.quantized_layers} layers as "
            f"{scheme or 'they were'}, {size / 2**20:,.1f} MiB, compute type {manifest.dtype}"
        )
