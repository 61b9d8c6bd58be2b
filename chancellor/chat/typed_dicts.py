"""TypedDicts of which LangChain loses something: keys that may be left out, and types that hold themselves."""

import inspect
import re
import types
from collections.abc import Iterator, Mapping
from typing import (
    Annotated,
    Any,
    Final,
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

_ARGUMENT: Final = re.compile(r"^(\w+)(?: \(.*\))?:(.*(?:\n[ \t].*)*)", re.MULTILINE)


def as_model(typed: type) -> type[BaseModel] | None:
    """Return a pydantic class with the TypedDict's JSON schema, or None where LangChain's own conversion will do.

    pydantic itself takes no `typing.TypedDict` before Python 3.12.

    Raises:
        NameError: a name in it is not to be found: of a class inside of a function, say.
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
            text, told = _documented(typed)
            fields: dict[str, Any] = {f"field_{place}": one for place, one in enumerate(self._fields(typed, told))}
            self.made[typed] = create_model(typed.__name__, __doc__=text, **fields)
            self._open.remove(typed)
        return self.made[typed]

    def _fields(self, typed: Any, told: Mapping[str, str]) -> Iterator[tuple[Any, Any]]:
        own = {typed.__name__: typed}  # a class inside of a function is not in its module
        for name, hint in get_type_hints(typed, localns=own, include_extras=True).items():
            required, kind, notes = name in typed.__required_keys__, hint, list[Any]()
            while (origin := get_origin(kind)) in (Required, NotRequired, Annotated):
                if origin is Annotated:
                    notes += kind.__metadata__
                else:
                    required = origin is Required
                    self.needed = True  # LangChain takes it for a type
                kind = get_args(kind)[0]
            described = next((one.description for one in notes if isinstance(one, FieldInfo)), None)
            more: dict[str, Any] = {}
            if notes and (notes[0] is ... or (len(notes) > 1 and isinstance(notes[1], str))):  # LangChain's form
                required = notes[0] is ...
                more = {} if required else {"default": notes[0]}
                described = next((one for one in notes[1:] if isinstance(one, str)), None)
                notes = []
            elif not required:
                self.needed = True
                more = {"default_factory": lambda: None}  # which no schema shows
            self.needed = self.needed or any(isinstance(one, FieldInfo) for one in notes)
            kind = self._nested(kind)
            for one in notes:
                kind = Annotated[kind, one]
            yield kind, Field(alias=name, description=told.get(name) or described, **more)

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


def _documented(typed: type) -> tuple[str | None, dict[str, str]]:
    """Return what a Google docstring says of the whole and of each key, as LangChain reads it."""
    text: list[str] = []
    told: dict[str, str] = {}
    for block in inspect.cleandoc(typed.__doc__ or "").split("\n\n"):
        if block.startswith("Args:"):
            for name, of_it in _ARGUMENT.findall(inspect.cleandoc("\n" + block.removeprefix("Args:"))):
                told[name] = " ".join(of_it.split())
            break
        if block.startswith(("Returns:", "Example:")):
            break
        text.append(block)
    return " ".join(text).strip() or None, told
