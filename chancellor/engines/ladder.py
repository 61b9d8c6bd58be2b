"""The steps down when a model cannot be served as it was asked for, by what failed."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

from chancellor.catalog import ModelSpec
from chancellor.errors import (
    ChancellorError,
    CheckpointError,
    EngineDiedError,
    EngineStartError,
    MissingDependencyError,
    OutOfMemoryError,
    QuantizationError,
)
from chancellor.fallbacks import Cause, FallbackOptions, Step

__all__ = ["Ladder", "Rung", "cause_of", "label"]

SHORTEST_CONTEXT: Final = 512
"""Tokens; a shorter context serves nobody."""


@dataclass(frozen=True, slots=True)
class Rung:
    """A way to answer, and the step that leads to it."""

    step: Step
    spec: ModelSpec


@dataclass(frozen=True, slots=True)
class Ladder:
    """Which ways down there are.

    Args:
        options: the steps that may be taken.
        others: returns the models that may answer instead, the best substitute first. May read files.
    """

    options: FallbackOptions = field(default_factory=FallbackOptions.none)
    others: Callable[[], Sequence[ModelSpec]] | None = None

    def leads_on(self, spec: ModelSpec) -> bool:
        """Return whether there may be a way for a model that fails for whatever reason."""
        options = self.options
        return (
            (options.unquantised and spec.scheme is not None)
            or (options.transformers and spec.engine.kind == "vllm")
            or (options.other_model and self.others is not None)
        )

    def larger(self, spec: ModelSpec) -> Iterator[Rung]:
        """Yield what may be tried for a prompt that is too long for `spec`."""
        least = spec.context_window or 0
        for rung in self.below(spec, "memory"):
            if rung.step != "shorter_context" and (
                rung.spec.context_window is None or rung.spec.context_window > least
            ):
                yield rung

    def below(self, spec: ModelSpec, cause: Cause) -> Iterator[Rung]:
        """Yield what may be tried after `spec` has failed, the nearest to it first.

        A scheme may be at fault wherever an engine fails without saying why; without memory, no other engine has more.
        """
        options = self.options
        engine = spec.engine.kind
        plain = _unquantised(spec) if options.unquantised and spec.scheme is not None else None
        if cause == "memory" and options.shorter_context and engine != "openai":
            yield from _shorter(spec)
        if cause in ("scheme", "engine", "died") and plain is not None:
            yield Rung("unquantised", plain)
        if cause in ("scheme", "engine", "import", "died") and options.transformers and engine == "vllm":
            if cause != "scheme":
                yield Rung("transformers", _in_transformers(spec))
            if plain is not None or spec.scheme is None:
                yield Rung("transformers", _in_transformers(plain or spec))
        if options.other_model and self.others is not None:
            yield from (Rung("other_model", other) for other in self.others() if other.name != spec.name)


def cause_of(error: ChancellorError) -> Cause | None:
    """Return what failed, or None where no other way would do better."""
    causes: tuple[tuple[type[ChancellorError], Cause], ...] = (
        (OutOfMemoryError, "memory"),
        (QuantizationError, "scheme"),
        (CheckpointError, "checkpoint"),
        (MissingDependencyError, "import"),
        (EngineStartError, "engine"),
        (EngineDiedError, "died"),
    )
    return next((cause for kind, cause in causes if isinstance(error, kind)), None)


def label(spec: ModelSpec) -> str:
    """Return how a step names a way to answer."""
    options = spec.engine
    if options.kind == "openai":  # whose server knows its scheme and its context
        return f"{spec.name} (openai)"
    tokens = spec.context_window or options.max_model_len
    return f"{spec.name} ({options.kind}, {spec.scheme or 'as it is'}, {tokens:,} tokens)"


def _shorter(spec: ModelSpec) -> Iterator[Rung]:
    options, whole = spec.engine, spec.context_window or spec.engine.max_model_len
    tokens = whole // 2
    while tokens >= SHORTEST_CONTEXT:
        cache = options.kv_cache_gib and options.kv_cache_gib * tokens / whole
        more = dict(options.vllm)  # which wins over the rest
        if "max_model_len" in more:
            more["max_model_len"] = tokens
        if isinstance(given := more.get("kv_cache_memory_bytes"), int):
            more["kv_cache_memory_bytes"] = given * tokens // whole
        changed = options.model_copy(update={"max_model_len": tokens, "kv_cache_gib": cache, "vllm": more})
        yield Rung("shorter_context", spec.model_copy(update={"engine": changed}))
        tokens //= 2


def _unquantised(spec: ModelSpec) -> ModelSpec:
    options = spec.engine.model_copy(
        update={"quantize_lm_head": False}
    )  # without a dtype: bfloat16, where there is any
    return spec.model_copy(update={"scheme": None, "engine": options})


def _in_transformers(spec: ModelSpec) -> ModelSpec:
    options = spec.engine.model_copy(update={"kind": "transformers", "vllm": {}, "quantize_lm_head": False})
    return spec.model_copy(update={"engine": options})
