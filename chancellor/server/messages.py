"""The messages that callers send, in OpenAI's types.

What a message has beyond them is left out: it is the client's own note (`parsed`, `index`), or null. Whole requests are
read more strictly.
"""

from typing import Annotated, Any, Required

from openai.types.chat import (
    ChatCompletionAssistantMessageParam,
    ChatCompletionContentPartParam,
    ChatCompletionContentPartTextParam,
    ChatCompletionDeveloperMessageParam,
    ChatCompletionMessageToolCallUnionParam,
    ChatCompletionSystemMessageParam,
    ChatCompletionToolMessageParam,
    ChatCompletionUserMessageParam,
)
from openai.types.chat.chat_completion_assistant_message_param import ContentArrayOfContentPart
from pydantic import ConfigDict, Discriminator, Field

from chancellor.server.bounds import MOST_MESSAGES, Listed

__all__ = ["Message"]

_LENIENT: Any = ConfigDict(extra="ignore")  # else that of the request, here and in all that a message holds


Text = Annotated[Listed[ChatCompletionContentPartTextParam], Field(max_length=MOST_MESSAGES)]
Parts = Annotated[Listed[ChatCompletionContentPartParam], Field(max_length=MOST_MESSAGES)]
Said = Annotated[Listed[ContentArrayOfContentPart], Field(max_length=MOST_MESSAGES)]
Calls = Annotated[Listed[ChatCompletionMessageToolCallUnionParam], Field(max_length=MOST_MESSAGES)]


# OpenAI's types have iterables, which pydantic checks as late as they are read, and which are read only once.
# What pydantic wants instead is more than a TypedDict may hold for mypy: hence what that is told to ignore.
class DeveloperMessage(ChatCompletionDeveloperMessageParam):
    __pydantic_config__ = _LENIENT  # type: ignore[misc]

    content: Required[str | Text]  # type: ignore[misc]


class SystemMessage(ChatCompletionSystemMessageParam):
    __pydantic_config__ = _LENIENT  # type: ignore[misc]

    content: Required[str | Text]  # type: ignore[misc]


class UserMessage(ChatCompletionUserMessageParam):
    __pydantic_config__ = _LENIENT  # type: ignore[misc]

    content: Required[str | Parts]  # type: ignore[misc]


class AssistantMessage(ChatCompletionAssistantMessageParam, total=False):
    __pydantic_config__ = _LENIENT  # type: ignore[misc]

    content: str | Said | None  # type: ignore[misc]
    tool_calls: Calls | None  # type: ignore[misc]
    reasoning_content: str | None
    reasoning: str | None  # the same, as newer servers of vLLM's call it


class ToolMessage(ChatCompletionToolMessageParam, total=False):
    __pydantic_config__ = _LENIENT  # type: ignore[misc]

    content: Required[str | Text]  # type: ignore[misc]
    name: str | None


Message = Annotated[
    DeveloperMessage | SystemMessage | UserMessage | AssistantMessage | ToolMessage, Discriminator("role")
]
