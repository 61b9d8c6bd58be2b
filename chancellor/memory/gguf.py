"""The header of a GGUF file: the gguf package reads every token of the vocabulary as an object, which takes seconds."""

import mmap
import struct
from functools import lru_cache
from pathlib import Path
from typing import Any, Final, NamedTuple

from chancellor.errors import BrokenCheckpointError

__all__ = ["Header", "read_header"]

_FORMATS: Final = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING: Final = 8
_ARRAY: Final = 9
_MOST_DIMENSIONS: Final = 8
_CONFIG: Final = {
    "block_count": "num_hidden_layers",
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "expert_feed_forward_length": "moe_intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.key_length": "head_dim",
    "context_length": "max_position_embeddings",
    "expert_count": "num_experts",
}


class Header(NamedTuple):
    """What stands before the tensors."""

    config: dict[str, Any]
    """The model's sizes, by their names in a config.json."""
    shapes: dict[str, tuple[int, ...]]
    """Shape of each tensor, as PyTorch has it."""


def read_header(path: Path) -> Header:
    """Read the header of a GGUF file.

    Raises:
        BrokenCheckpointError: it is none, or is cut short.
    """
    return _header(path, path.stat().st_mtime_ns)


@lru_cache(maxsize=16)
def _header(path: Path, _mtime: int) -> Header:
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            return _Reader(content).header()
    except (OSError, ValueError, struct.error, OverflowError, RecursionError) as error:
        raise BrokenCheckpointError(f"{path} is not a readable GGUF file: {error}.") from error


class _Reader:
    def __init__(self, content: mmap.mmap) -> None:
        self._content = content
        self._at = 0

    def header(self) -> Header:
        if self._content[:4] != b"GGUF":
            raise ValueError("it does not begin with its name")
        self._at = 4
        version, tensors, fields = self._take("I"), self._take("Q"), self._take("Q")
        if version not in (2, 3):
            raise ValueError(f"version {version} is not known")
        values = {self._text(): self._value(self._take("I")) for _ in range(fields)}
        family = values.get("general.architecture")
        config = {name: values.get(f"{family}.{key}") for key, name in _CONFIG.items()}
        shapes, last = {}, 0
        for _ in range(tensors):
            name, count = self._text(), self._take("I")
            if count > _MOST_DIMENSIONS:
                raise ValueError(f"a tensor has {count} dimensions")
            shapes[name] = tuple(reversed([self._take("Q") for _ in range(count)]))
            self._take("I")
            last = max(last, self._take("Q"))
        if self._at + last > len(self._content):
            raise ValueError("it is cut short")
        return Header({name: value for name, value in config.items() if isinstance(value, int | float)}, shapes)

    def _take(self, code: str) -> Any:
        (value,) = struct.unpack_from(f"<{code}", self._content, self._at)
        self._at += struct.calcsize(f"<{code}")
        return value

    def _text(self) -> str:
        length = self._take("Q")
        start = self._at
        self._skip(length)
        return self._content[start : self._at].decode("utf-8", "replace")

    def _skip(self, length: int) -> None:
        self._at += length
        if self._at > len(self._content):
            raise ValueError("it is cut short")

    def _value(self, kind: int) -> Any:
        """Return a value; of an array only its largest number, as layers may differ."""
        if kind == _STRING:
            return self._text()
        if kind != _ARRAY:
            return self._take(_FORMATS[kind]) if kind in _FORMATS else self._unknown(kind)
        inner, count = self._take("I"), self._take("Q")
        if inner in (_STRING, _ARRAY):
            for _ in range(count):
                if inner == _STRING:
                    self._skip(self._take("Q"))
                else:
                    self._value(inner)
            return None
        code = _FORMATS.get(inner) or self._unknown(inner)
        start = self._at
        self._skip(count * struct.calcsize(f"<{code}"))
        return max(struct.unpack_from(f"<{count}{code}", self._content, start), default=None)

    def _unknown(self, kind: int) -> Any:
        raise ValueError(f"it has values of an unknown kind {kind}")
