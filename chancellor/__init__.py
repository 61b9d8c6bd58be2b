"""Chancellor: a LangGraph package that routes each question to a TorchAO-quantised model in vLLM.

The names below are imported when they are first used, so that `import chancellor` stays light.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from chancellor.errors import *  # noqa: F403 - the whole tree is public
from chancellor.errors import __all__ as _errors

if TYPE_CHECKING:
    from chancellor.answer import Answer, ask
    from chancellor.bench.monitor import PerformanceMonitor
    from chancellor.catalog import Catalog, EngineOptions, ModelSpec
    from chancellor.chat import ChatModels, ChatVLLM
    from chancellor.context import Context
    from chancellor.fallbacks import FallbackOptions
    from chancellor.graphs.builder import create_chancellor
    from chancellor.middleware import TrinityMiddleware
    from chancellor.quantization.writer import quantize
    from chancellor.state import State
    from chancellor.trinity import Pillars

_HOME = {
    "Answer": "chancellor.answer",
    "Catalog": "chancellor.catalog",
    "ChatModels": "chancellor.chat",
    "ChatVLLM": "chancellor.chat",
    "Context": "chancellor.context",
    "EngineOptions": "chancellor.catalog",
    "FallbackOptions": "chancellor.fallbacks",
    "ModelSpec": "chancellor.catalog",
    "PerformanceMonitor": "chancellor.bench.monitor",
    "Pillars": "chancellor.trinity",
    "State": "chancellor.state",
    "TrinityMiddleware": "chancellor.middleware",
    "ask": "chancellor.answer",
    "create_chancellor": "chancellor.graphs.builder",
    "quantize": "chancellor.quantization.writer",
}

__all__ = [
    "Answer",
    "Catalog",
    "ChatModels",
    "ChatVLLM",
    "Context",
    "EngineOptions",
    "FallbackOptions",
    "ModelSpec",
    "PerformanceMonitor",
    "Pillars",
    "State",
    "TrinityMiddleware",
    "ask",
    "create_chancellor",
    "quantize",
    *_errors,
]


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module 'chancellor' has no attribute {name!r}")
    value: object = getattr(import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(__all__))
