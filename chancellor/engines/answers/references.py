"""References within a JSON schema: where they lead, and whether a schema that is looked at is there."""

from typing import Any, Final
from urllib.parse import unquote

__all__ = ["found", "steps"]

_NOWHERE: Final = object()


def steps(reference: Any) -> tuple[str, ...] | None:
    """Return the way that a reference goes from the root; None if it is no pointer."""
    if not isinstance(reference, str) or not (reference == "#" or reference.startswith("#/")):
        return None
    return tuple(unquote(one).replace("~1", "/").replace("~0", "~") for one in reference.split("/")[1:])


def found(root: Any, reference: Any) -> Any:
    """Return what is at the end of a reference, or None."""
    way = steps(reference)
    if way is None:
        return None
    here = root
    for one in way:
        here = here.get(one, _NOWHERE) if isinstance(here, dict) else _NOWHERE
    return None if here is _NOWHERE else here
