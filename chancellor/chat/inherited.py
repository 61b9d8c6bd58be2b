"""Settings of an agent's own model and of a run, in the model that answers."""

from collections.abc import Iterator, Mapping
from typing import Any, Final

from langchain_core.language_models import BaseChatModel
from pydantic import AliasChoices, BaseModel

from chancellor.chat.model import ChatVLLM

__all__ = ["inheriting", "settings_of"]

_OURS: Final = (
    *("temperature", "max_tokens", "top_p", "top_k", "min_p", "seed", "stop", "logprobs", "top_logprobs", "timeout"),
    *("presence_penalty", "frequency_penalty", "repetition_penalty"),
)
"""What says how to generate, but for `logit_bias`, whose ids are of one tokenizer."""
_EVERYBODYS: Final = frozenset({"temperature", "max_tokens", "top_p", "seed", "stop"})
"""Of these, what other classes mean the same by, if they have it."""


def settings_of(model: Any) -> dict[str, Any]:
    """Return what an agent's own model was told about how to generate."""
    if not isinstance(model, ChatVLLM):
        return {}
    return {name: getattr(model, name) for name in _OURS if name in model.model_fields_set}


def inheriting(model: BaseChatModel, own: Mapping[str, Any], asked: Mapping[str, Any]) -> BaseChatModel:
    """Return the model, or a copy with settings of others: in a request they would go to its fallbacks as well.

    Args:
        model: the one that answers; what it was told itself comes before `own`.
        own: what the agent's own model was told.
        asked: what the run asks for, which comes before all.
    """
    if not isinstance(model, BaseModel):
        return model
    given = getattr(model, "model_kwargs", None)
    extra = dict(given) if isinstance(given, Mapping) else {}
    update: dict[str, Any] = {}
    for name, value in {**own, **asked}.items():
        field = _field(model, name)
        if field is None:
            continue
        names = {name, field, *_aliases(type(model), field)}
        if name in asked or (field not in model.model_fields_set and names.isdisjoint(extra)):
            update[field] = value
            extra = {key: one for key, one in extra.items() if key not in names}
    if given and extra != given:
        update["model_kwargs"] = extra
    return model.model_copy(update=update) if update else model


def _field(model: BaseChatModel, name: str) -> str | None:
    """Return what a setting is called in the model, or None where it has no such."""
    if isinstance(model, ChatVLLM):
        return name
    if name not in _EVERYBODYS or (name == "seed" and _without_seed(model)):
        return None
    kind = type(model)
    fields = kind.model_fields
    return name if name in fields else next((one for one in fields if name in _aliases(kind, one)), None)


def _aliases(kind: type[BaseModel], field: str) -> Iterator[str]:
    info = kind.model_fields[field]
    for alias in (info.alias, info.validation_alias):
        if isinstance(alias, AliasChoices):
            yield from (one for one in alias.choices if isinstance(one, str))
        elif isinstance(alias, str):
            yield alias


def _without_seed(model: BaseChatModel) -> bool:
    """Return whether it has the field and fails on it: a ChatOpenAI with OpenAI's Responses API."""
    responses = getattr(model, "_use_responses_api", None)
    return callable(responses) and bool(responses({}))
