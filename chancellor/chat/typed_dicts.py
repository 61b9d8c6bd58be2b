"""TypedDicts of which LangChain loses something: keys that may be left out, and types that hold themselves."""

import types
from collections.abc import Iterator
from typing import (
    Annotated,
    Any,
    ForwardRef,
    Literal,
    NotRequired,
    Required,
    Union,
    get_args,
    get_origin,
    get_type_hints,
)

from pydantic import BaseModel, Field, create_model
from pydantic.fields import FieldInfo

__all__ = ["as_model"]


def as_model(typed: type) -> type[BaseModel] | None:
    """Return a pydantic class with the TypedDict's JSON schema, or None where LangChain's own conversion will do.

    pydantic itself takes no `typing.TypedDict` before Python 3.12.
    """
    models = _Models()
    model = models.of(typed)
    if not models.needed:
        return None
    for made in models.made.values():
        made.model_rebuild(_types_namespace={one.__name__: other for one, other in models.made.items()})
    found: type[BaseModel] = model
    return found


class _Models:
    def __init__(self) -> None:
        self.made: dict[type, type[BaseModel]] = {}
        self.needed = False
        self._open: set[type] = set()

    def of(self, typed: type) -> Any:
        """Return the class for a TypedDict, or a reference to it where it is still being made."""
        if typed in self._open:
            self.needed = True
            return ForwardRef(typed.__name__)
        if typed not in self.made:
            self._open.add(typed)
            self.needed = self.needed or not typed.__doc__  # for want of one, LangChain takes that of dict
            fields: dict[str, Any] = {f"field_{place}": field for place, field in enumerate(self._fields(typed))}
            self.made[typed] = create_model(typed.__name__, __doc__=typed.__doc__, **fields)
            self._open.remove(typed)
        return self.made[typed]

    def _fields(self, typed: Any) -> Iterator[tuple[Any, Any]]:
        for name, hint in get_type_hints(typed, include_extras=True).items():
            required, kind, notes = name in typed.__required_keys__, hint, list[Any]()
            while (origin := get_origin(kind)) in (Required, NotRequired, Annotated):
                if origin is Annotated:
                    notes += kind.__metadata__
                else:
                    required = origin is Required
                kind = get_args(kind)[0]
            self.needed = self.needed or not required
            more: dict[str, Any] = {} if required else {"default_factory": lambda: None}  # which no schema shows
            if notes and (notes[0] is ... or (len(notes) > 1 and isinstance(notes[1], str))):  # LangChain's form
                if notes[0] is not ...:
                    more = {"default": notes[0]}
                more["description"] = next((one for one in notes[1:] if isinstance(one, str)), None)
                notes = []
            kind = self._nested(kind)
            for one in notes:
                kind = Annotated[kind, one]
            described = [one.description for one in notes if isinstance(one, FieldInfo) and one.description]
            field: dict[str, Any] = {"alias": name, "description": next(iter(described), None), **more}
            yield kind, Field(**field)

    def _nested(self, kind: Any) -> Any:
        if isinstance(kind, type) and hasattr(kind, "__required_keys__"):
            return self.of(kind)
        origin, inner = get_origin(kind), get_args(kind)
        if origin is None or origin is Literal:
            return kind
        if origin is Annotated:
            return Annotated[self._nested(inner[0]), *kind.__metadata__]
        made = tuple(self._nested(one) for one in inner)
        return Union[made] if origin is types.UnionType else origin[made]  # noqa: UP007 - of a tuple
