"""What may change from run to run without building another graph."""

from collections.abc import Mapping
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, ModelWrapValidatorHandler, ValidationError, model_validator

from chancellor.errors import InvalidContextError

__all__ = ["Context", "explain"]

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
        """
        if isinstance(given, cls):
            return given
        ours = given.get("chancellor") if isinstance(given, Mapping) else getattr(given, "chancellor", None)
        if isinstance(ours, cls):
            return ours
        return cls(**ours) if isinstance(ours, dict) else cls()


def explain(error: ValidationError) -> str:
    """Put pydantic's findings on one line, each with the place it is about."""
    return "; ".join(
        ": ".join(part for part in (".".join(str(step) for step in finding["loc"]), finding["msg"]) if part)
        for finding in error.errors(include_url=False)
    )
