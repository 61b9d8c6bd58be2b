"""What runs the models: one file an engine, the host thread they live on, and the pool that starts them."""

from chancellor.engines.base import Delta, Engine, EngineStats, GenerationRequest, Guide, TokenLogprob, ToolCallPiece
from chancellor.engines.pool import EnginePool, default_pool

__all__ = [
    "Delta",
    "Engine",
    "EnginePool",
    "EngineStats",
    "GenerationRequest",
    "Guide",
    "TokenLogprob",
    "ToolCallPiece",
    "default_pool",
]
