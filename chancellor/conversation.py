"""The messages of a run, in whichever form a graph's state holds them."""

from collections.abc import Mapping, Sequence
from typing import Any

from langchain_core.messages import BaseMessage, SystemMessage
from langchain_core.messages.utils import convert_to_messages

from chancellor.errors import EmptyQuestionError, InvalidInputError

__all__ = ["messages_in", "messages_of", "prompted"]

_HINT = 'Pass e.g. {"messages": [("user", "What is 2+2?")]}.'


def messages_in(state: Mapping[str, Any]) -> list[BaseMessage]:
    """Return the messages of a state, of which there has to be one.

    Raises:
        EmptyQuestionError: there is none.
        InvalidInputError: the state has no messages, or something else in their place.
    """
    if (given := state.get("messages")) is None:
        has = ", ".join(map(str, state)) or "nothing"
        raise InvalidInputError(f"The state has no `messages`; it has: {has}.", hint=_HINT)
    if not (messages := messages_of(given)):
        raise EmptyQuestionError("The conversation holds no human message.")
    return messages


def messages_of(given: Any) -> list[BaseMessage]:
    """Return messages: without `add_messages`, a graph's state holds strings, tuples and dicts as they were given.

    Raises:
        InvalidInputError: these are no messages.
    """
    try:
        return convert_to_messages([given] if _is_one(given) else given)
    except (NotImplementedError, ValueError, TypeError, AttributeError) as error:  # LangChain's, by what was given
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InvalidInputError(f"{str(given)[:200]!r} are no messages: {reason}.", hint=_HINT) from error


def prompted(messages: Sequence[BaseMessage], prompt: str | None) -> list[BaseMessage]:
    """Return the conversation with a system prompt before it.

    One that it begins with becomes part of that: many chat templates allow but one.
    """
    if prompt is None:
        return list(messages)
    if not messages or not isinstance(own := messages[0], SystemMessage):
        return [SystemMessage(prompt), *messages]
    content: Any = own.content
    merged = f"{prompt}\n\n{content}" if isinstance(content, str) else [{"type": "text", "text": prompt}, *content]
    return [own.model_copy(update={"content": merged}), *messages[1:]]


def _is_one(given: Any) -> bool:
    """Return whether it is a single message. Two strings in a tuple are a role and a text."""
    if isinstance(given, tuple):
        return len(given) == 2 and all(isinstance(part, str) for part in given)
    return isinstance(given, str | BaseMessage | Mapping)
