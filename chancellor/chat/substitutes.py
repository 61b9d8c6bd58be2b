"""Which models may answer when the one that was chosen cannot be served."""

from chancellor.catalog import Catalog, ModelSpec
from chancellor.errors import CheckpointError, MissingDependencyError
from chancellor.quantization.prepare import parameters_of

__all__ = ["substitutes"]


def substitutes(catalog: Catalog, spec: ModelSpec) -> list[ModelSpec]:
    """Return the other models that run in this process: the lighter ones, the next first, then the heavier ones.

    Reads headers of checkpoints; a model whose size cannot be known comes last.
    """
    own = _size(spec)
    others = [one for one in catalog.eligible() if one.name != spec.name and one.engine.kind != "openai"]

    def order(one: ModelSpec) -> tuple[int, int]:
        size = _size(one)
        if size is None or own is None:
            return 2, 0
        return (0, own - size) if size <= own else (1, size - own)

    return sorted(others, key=order)


def _size(spec: ModelSpec) -> int | None:
    try:
        return spec.parameters or parameters_of(spec)
    except (CheckpointError, MissingDependencyError):
        return None
