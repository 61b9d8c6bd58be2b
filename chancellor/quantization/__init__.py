"""TorchAO schemes, and the writer of quantised checkpoints."""

from chancellor.quantization.manifest import Manifest
from chancellor.quantization.prepare import prepare, prepared_folder
from chancellor.quantization.schemes import SCHEMES, Scheme, SchemeName
from chancellor.quantization.writer import quantize

__all__ = ["SCHEMES", "Manifest", "Scheme", "SchemeName", "prepare", "prepared_folder", "quantize"]
