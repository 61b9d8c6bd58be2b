"""How many tokens texts and conversations have, by a model's own tokenizer; nothing is downloaded."""

import math
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

from langchain_core.messages import BaseMessage
from langchain_core.messages.utils import count_tokens_approximately

from chancellor.catalog import ModelSpec
from chancellor.chat.messages import to_engine
from chancellor.checkpoints import find
from chancellor.engines import GenerationRequest
from chancellor.engines.answers import plan_of
from chancellor.engines.answers.calls import as_text
from chancellor.engines.hardware import default_dtype
from chancellor.engines.prompt import render
from chancellor.errors import BrokenCheckpointError, InvalidInputError, MissingDependencyError, SourceNotFoundError
from chancellor.quantization.prepare import prepared_folder

__all__ = ["count_messages", "count_text", "token_ids"]

_CHARACTERS: Final = 4
"""Of a token, about."""
_AROUND: Final = 4
"""Tokens around a message, about, where the chat template does not say."""


def token_ids(spec: ModelSpec, text: str) -> list[int]:
    """Return the ids of a text's tokens.

    Raises:
        CheckpointError: the model's files are not on this machine, or have no tokenizer.
        InvalidInputError: the model is on a server.
        MissingDependencyError: transformers is not installed.
    """
    if spec.engine.kind == "openai":
        raise InvalidInputError(
            f"The tokenizer of {spec.name!r} is on its server.",
            hint="Count with get_num_tokens, which approximates, or pass custom_get_token_ids.",
        )
    ids: list[int] = _tokenizer_of(spec).encode(text, add_special_tokens=False)
    return ids


def count_text(spec: ModelSpec, text: str) -> int:
    """Return how many tokens a text has: about, for a model on a server. Raises as `token_ids` does."""
    return math.ceil(len(text) / _CHARACTERS) if spec.engine.kind == "openai" else len(token_ids(spec, text))


def count_messages(spec: ModelSpec, messages: Sequence[BaseMessage], tools: Sequence[dict[str, Any]]) -> int:
    """Return how many tokens the model reads for a conversation: about, for a model on a server.

    Raises:
        CheckpointError: the model's files are not on this machine, or have no tokenizer.
        InvalidInputError: a message holds something other than text.
        MissingDependencyError: transformers is not installed.
    """
    if spec.engine.kind == "openai":
        return count_tokens_approximately(messages, tools=list(tools))
    tokenizer = _tokenizer_of(spec)
    if not messages:
        return 0
    request = GenerationRequest(to_engine(messages), tools=tuple(tools))
    plan = plan_of(request, tokenizer, tool_parser="hermes")  # the one that needs no vLLM: nothing is read with it
    try:
        return len(render(tokenizer, plan.messages, plan.tools).token_ids)
    except InvalidInputError:  # of what is left when messages are trimmed, many a template refuses something
        texts = [str(one["content"]) for one in as_text(request.messages, tools)]
        return sum(len(tokenizer.encode(text, add_special_tokens=False)) + _AROUND for text in texts)


def _tokenizer_of(spec: ModelSpec) -> Any:
    own = spec.engine.vllm.get("tokenizer") if spec.engine.kind == "vllm" else None
    checkpoint = find(own or spec.source, None if own else spec.revision)
    if checkpoint is None:
        raise SourceNotFoundError(
            f"The tokenizer of {spec.name!r} is not on this machine yet.",
            hint="The first call of the model downloads it: count after it, or with count_tokens_approximately.",
        )
    path = checkpoint.path
    if own is None and path.suffix == ".gguf":  # to read its own tokenizer takes seconds
        made = prepared_folder(checkpoint, spec.scheme, spec.engine.dtype or default_dtype())
        path = made if made.exists() else path
    return _load(path, trust_remote_code=spec.trust_remote_code)


@lru_cache(maxsize=8)
def _load(path: Path, *, trust_remote_code: bool) -> Any:
    try:
        from transformers import AutoTokenizer
    except ImportError as error:
        raise MissingDependencyError.of("transformers") from error
    folder, file = (path.parent, {"gguf_file": path.name}) if path.suffix == ".gguf" else (path, {})
    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=trust_remote_code, **file)
    except (OSError, ValueError) as error:
        raise BrokenCheckpointError(f"The tokenizer in {path} cannot be read: {error}") from error
