"""What may change from run to run without building another graph."""

from collections.abc import Mapping
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, ModelWrapValidatorHandler, ValidationError, model_validator

from chancellor.errors import InvalidContextError

__all__ = ["Context", "asked_of", "carried_in", "explain"]

_SELECTION = {"langgraph_nodes": ["select_model"]}
_GENERATION = {"langgraph_nodes": ["generate"]}


class Context(BaseModel):
    """Settings of one run: `graph.invoke(input, context={"temperature": 0})`.

    In LangGraph Studio an assistant carries its own. Subclass it to add fields.

    Raises:
        InvalidContextError: on an unknown field or a value out of range.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: Annotated[str | None, Field(json_schema_extra={**_SELECTION})] = None
    """Answer with this model of the catalog instead of choosing one."""
    policy: Annotated[str, Field(json_schema_extra={**_SELECTION})] = "trinity"
    """Name of the selection policy: `trinity`, `light` or `strong`."""
    temperature: Annotated[float, Field(ge=0.0, le=2.0, json_schema_extra={**_GENERATION})] = 0.7
    """Sampling temperature; 0 is greedy."""
    max_tokens: Annotated[int, Field(ge=1, json_schema_extra={**_GENERATION})] = 512
    """Most new tokens of one answer."""
    seed: Annotated[int | None, Field(json_schema_extra={**_GENERATION})] = None
    """Seed of the sampling; None for another answer each time."""
    system_prompt: Annotated[str | None, Field(json_schema_extra={**_GENERATION})] = None
    """Put before the conversation, in one message with a system prompt of its own; None leaves it to the model's chat
    template."""

    @model_validator(mode="wrap")
    @classmethod
    def _explain_errors(cls, data: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        # LangGraph builds the context itself, so a plain ValidationError would reach the user unexplained.
        try:
            return handler(data)
        except ValidationError as error:
            fields = ", ".join(cls.model_fields)
            raise InvalidContextError(
                f"The context of this run is not valid: {explain(error)}.", hint=f"Its fields are: {fields}."
            ) from error

    @classmethod
    def of(cls, given: object) -> Self:
        """Turn what LangGraph hands to a node into a context.

        A node embedded in another graph is handed that graph's context, which may well have a `model` of its own:
        what is not ours counts as none. It can carry ours: a dict under the key `chancellor`, a dataclass or pydantic
        model in a field of that name.

        Raises:
            InvalidContextError: it is no context at all, such as a text, or what it carries is not valid.
        """
        if isinstance(given, cls):
            return given
        ours = given if isinstance(given, Context) else carried_in(given)
        if isinstance(ours, cls):
            return ours
        if isinstance(ours, Context):  # of another class than this one: what both have
            return cls(**{name: getattr(ours, name) for name in ours.model_fields_set & cls.model_fields.keys()})
        return cls(**ours) if isinstance(ours, Mapping) else cls()


def carried_in(given: object) -> Any:
    """Return what a graph's context carries for our nodes, None where that is nothing.

    Raises:
        InvalidContextError: this is nobody's context, or carries something that cannot be ours.
    """
    _refuse_plain(given, "the context of this run")
    ours = given.get("chancellor") if isinstance(given, Mapping) else getattr(given, "chancellor", None)
    _refuse_plain(ours, "`chancellor` in the context of this run")
    return ours


def asked_of(context: Context) -> dict[str, Any]:
    """Return the settings of the generation that a run asks for, by name: what it leaves out is the model's to say."""
    return {
        name: getattr(context, name)
        for name in ("temperature", "max_tokens", "seed")
        if name in context.model_fields_set or getattr(context, name) != Context.model_fields[name].default
    }


def _refuse_plain(given: object, what: str) -> None:
    if isinstance(given, str | bytes | int | float | list):
        raise InvalidContextError(
            f"{str(given)[:200]!r} is not {what}: it has no fields.",
            hint=f'Pass a dict, e.g. {{"temperature": 0}}. Its fields are: {", ".join(Context.model_fields)}.',
        )


def explain(error: ValidationError) -> str:
    """Put pydantic's findings on one line, each with the place it is about."""
    return "; ".join(
        ": ".join(part for part in (".".join(str(step) for step in finding["loc"]), finding["msg"]) if part)
        for finding in error.errors(include_url=False)
    )
