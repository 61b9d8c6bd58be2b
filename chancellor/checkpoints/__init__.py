"""Where a model's files come from, and what they hold."""

from chancellor.checkpoints.inspect import CheckpointInfo, inspect_checkpoint
from chancellor.checkpoints.source import Checkpoint, fetch, find

__all__ = ["Checkpoint", "CheckpointInfo", "fetch", "find", "inspect_checkpoint"]
