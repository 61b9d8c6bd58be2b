"""Which models may answer when the one that was chosen cannot be served."""

from functools import partial

from chancellor.catalog import Catalog, ModelSpec
from chancellor.engines.ladder import Ladder
from chancellor.errors import CheckpointError, MissingDependencyError
from chancellor.quantization.prepare import parameters_of

__all__ = ["ladder_of", "substitutes"]


def ladder_of(catalog: Catalog, spec: ModelSpec, *, substitute: bool) -> Ladder:
    """Return what may be done when a model of the catalog cannot be served.

    Args:
        catalog: the models, and the steps that may be taken.
        spec: the model.
        substitute: whether another model may answer in its place.
    """
    return Ladder(catalog.fallback, partial(substitutes, catalog, spec) if substitute else None)


def substitutes(catalog: Catalog, spec: ModelSpec) -> list[ModelSpec]:
    """Return the other models that may be chosen: the lighter ones, the next first, then the heavier ones.

    Reads headers of checkpoints; a model whose size cannot be known comes last, as does one on a server whose entry
    does not say its parameters. Of two that are as near, the one that runs in this process comes first.
    """
    own = _size(spec)
    others = [one for one in catalog.eligible() if one.name != spec.name]

    def order(one: ModelSpec) -> tuple[int, int, bool]:
        size, remote = _size(one), one.engine.kind == "openai"
        if size is None or own is None:
            return 2, 0, remote
        return (0, own - size, remote) if size <= own else (1, size - own, remote)

    return sorted(others, key=order)


def _size(spec: ModelSpec) -> int | None:
    try:
        return spec.parameters or parameters_of(spec)
    except (CheckpointError, MissingDependencyError):
        return None
