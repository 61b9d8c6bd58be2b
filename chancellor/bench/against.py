"""From the names a user gives ("graph", "raw", "stock", a URL, a model of the catalog) to targets."""

from collections.abc import Callable, Sequence
from typing import Any, Final

from langchain_core.language_models import BaseChatModel

from chancellor.bench.targets.base import Target
from chancellor.bench.targets.langchain import ChatModelTarget, CompiledGraphTarget
from chancellor.bench.targets.local import LAYERS, Layer, LocalTarget, local_target
from chancellor.bench.targets.remote import RemoteTarget
from chancellor.catalog import Catalog, ModelSpec
from chancellor.engines import EnginePool
from chancellor.errors import BenchmarkError, UnknownChoiceError

__all__ = ["AGAINST", "make_targets"]

AGAINST: Final = {
    "raw": "AsyncLLM driven directly, on the same engine",
    "engine": "our engine by its pool",
    "chat": "the LangChain chat model",
    "graph": "the compiled graph",
    "unquantised": "the same model without quantisation",
    "stock": "vLLM's stock TorchAO path",
    "transformers": "plain transformers, in static batches",
}
_MEMORY: Final = 0.8


def make_targets(
    subject: Any, against: Sequence[str], *, catalog: Catalog, model: str | None, pool: EnginePool
) -> list[Target]:
    """Return the subject's target, then those to compare it with, none of them started.

    Args:
        subject: "graph", "chat", "engine", "raw", the URL of a server, a chat model, a compiled graph, or a target.
        against: names of `AGAINST`, models of the catalog, or URLs.
        catalog: where `model` and models in `against` are looked up.
        model: the model to measure; None takes the catalog's first that may be chosen, or the server's own first.
        pool: where the engines run.

    Raises:
        UnknownChoiceError: a name means nothing.
        UnknownModelError: the catalog has no such model.
        BenchmarkError: a comparison makes no sense for this subject, or two have the same name.
    """
    first: Target
    layer: Layer
    if not isinstance(subject, str):
        spec = catalog[model] if model is not None else None
        first, layer = _ready_made(subject), "graph"
    elif _is_url(subject):
        spec = catalog.get(model) if model is not None else None
        first, layer = RemoteTarget(subject, model=model, tokenizer=_tokenizer(spec)), "graph"
    elif subject in LAYERS:
        spec = catalog[model] if model is not None else catalog.eligible()[0]
        layer = subject  # type: ignore[assignment]
        first = local_target(layer, subject, spec, pool)
    else:
        raise UnknownChoiceError.of("target", subject, [*LAYERS, "a URL"])
    targets = [first, *(_other(name, layer, spec, catalog, pool) for name in against)]
    names = [target.name for target in targets]
    if doubled := {name for name in names if names.count(name) > 1}:
        raise BenchmarkError(
            f"{', '.join(sorted(doubled))} would be measured twice.",
            hint="Give each comparison once, and not the target.",
        )
    return _sharing_memory(targets)


def _ready_made(subject: Any) -> Target:
    if isinstance(subject, Target):
        return subject
    if isinstance(subject, BaseChatModel):
        return ChatModelTarget(subject)
    if hasattr(subject, "astream") and hasattr(subject, "nodes"):
        return CompiledGraphTarget(subject)
    raise BenchmarkError(
        f"A {type(subject).__name__} cannot be measured.",
        hint="Give a name, a URL, a chat model, a compiled graph (builder.compile()), or a Target.",
    )


def _other(name: str, layer: Layer, spec: ModelSpec | None, catalog: Catalog, pool: EnginePool) -> Target:
    if _is_url(name):
        return RemoteTarget(name, tokenizer=_tokenizer(spec))
    if name in catalog and name not in AGAINST:
        other = catalog[name]
        return local_target("engine" if layer == "raw" and other.engine.kind != "vllm" else layer, name, other, pool)
    if name not in AGAINST:
        raise UnknownChoiceError.of("comparison", name, [*AGAINST, *catalog, "a URL"])
    if spec is None:
        raise BenchmarkError(
            f"{name!r} needs a model of the catalog, and the target is a server.",
            hint="Name the model with --model as the catalog does.",
        )
    if name in LAYERS:
        return local_target(name, name, spec, pool)  # type: ignore[arg-type]
    if name == "transformers" and layer == "raw":  # which drives vLLM only
        layer = "engine"
    return local_target(layer, name, _variant(name, spec), pool)


def _variant(name: str, spec: ModelSpec) -> ModelSpec:
    if name == "unquantised":
        if spec.scheme is None:
            raise BenchmarkError(
                f"{spec.name} is not quantised, so there is nothing to compare it with.",
                hint="Leave --against unquantised out, or name a model with a scheme.",
            )
        return spec.model_copy(update={"name": f"{spec.name}-unquantised", "scheme": None})
    if name == "stock":
        if spec.scheme is None:
            raise BenchmarkError(
                f"{spec.name} is not quantised, so TorchAO has no part in it.",
                hint="Leave --against stock out, or name a model with a scheme.",
            )
        options: dict[str, Any] = {"kernels": "torchao", "quantize_lm_head": False}
    else:
        options = {"kind": "transformers", "vllm": {}}
    return spec.model_copy(update={"name": f"{spec.name}-{name}", "engine": spec.engine.model_copy(update=options)})


def _sharing_memory(targets: list[Target]) -> list[Target]:
    """Give each engine its part of the GPU: they are all loaded at the same time."""
    local = [target for target in targets if isinstance(target, LocalTarget)]
    engines = {_engine_key(target.spec) for target in local}
    if len(engines) > 1:
        for target in local:
            share = round(min(target.spec.engine.gpu_memory_utilization, _MEMORY) / len(engines), 3)
            target.limit_memory(share)
    return targets


def _engine_key(spec: ModelSpec) -> str:
    return spec.model_dump_json(exclude={"name", "trinity", "tier", "parameters"})


def _tokenizer(spec: ModelSpec | None) -> Callable[[], Any] | None:
    """Return what loads the tokenizer of a model of the catalog, for a server that serves the same model."""
    if spec is None:
        return None

    def load() -> Any:
        from transformers import AutoTokenizer

        from chancellor.engines.hardware import default_dtype
        from chancellor.quantization.prepare import prepare

        return AutoTokenizer.from_pretrained(prepare(spec, spec.engine.dtype or default_dtype()).folder)

    return load


def _is_url(name: str) -> bool:
    return name.startswith(("http://", "https://"))
