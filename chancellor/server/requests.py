"""What callers send: OpenAI's fields, in OpenAI's types."""

import json
from typing import Annotated, Any, Final, Literal

from openai.types.chat import (
    ChatCompletionFunctionToolParam,
    ChatCompletionNamedToolChoiceParam,
    ChatCompletionStreamOptionsParam,
)
from openai.types.shared_params import ResponseFormatJSONObject, ResponseFormatJSONSchema, ResponseFormatText
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    Strict,
    StringConstraints,
    model_validator,
)
from typing_extensions import TypedDict

from chancellor.server.bounds import (
    MOST_CHOICES,
    MOST_MESSAGES,
    MOST_PROMPTS,
    MOST_TOOLS,
    Biases,
    Boolean,
    Listed,
    Real,
    Whole,
    crowded,
)
from chancellor.server.messages import Message

__all__ = ["ChancellorOptions", "ChatCompletionRequest", "CompletionRequest"]

_DEEPEST: Final = 100
"""Levels of a schema: what reads it calls itself for each."""


ResponseFormat = Annotated[
    ResponseFormatText | ResponseFormatJSONObject | ResponseFormatJSONSchema, Discriminator("type")
]
Stop = Annotated[
    Listed[Annotated[str, StringConstraints(min_length=1)]],
    BeforeValidator(lambda value: [value] if isinstance(value, str) else value),
    Field(max_length=16),
]


def _neutral(*values: Any) -> BeforeValidator:
    """Let a field be said by those who always say it, as long as it asks for nothing that is not done here."""
    other = f", or set it to {json.dumps(values[0])}" if values else ""

    def check(value: Any) -> Any:
        if value is not None and value not in values:
            raise ValueError(f"This is not done here: leave it out{other}")
        return value

    return BeforeValidator(check)


TokenIds = Annotated[Listed[Annotated[int, Strict(), Field(ge=0, le=2**31)]], Field(min_length=1)]
Texts = Annotated[Listed[str], Field(min_length=1, max_length=MOST_PROMPTS)]


class AllowedTools(TypedDict):
    """Some of the tools, to choose from."""

    __pydantic_config__ = ConfigDict(extra="forbid")  # type: ignore[misc]

    mode: Literal["auto", "required"]
    tools: Annotated[Listed[ChatCompletionNamedToolChoiceParam], Field(min_length=1, max_length=MOST_TOOLS)]


class AllowedToolsChoice(TypedDict):
    """OpenAI's, whose own type has an iterable."""

    __pydantic_config__ = ConfigDict(extra="forbid")  # type: ignore[misc]

    type: Literal["allowed_tools"]
    allowed_tools: AllowedTools


class StreamOptions(ChatCompletionStreamOptionsParam, total=False):
    include_usage: Boolean
    include_obfuscation: Boolean
    continuous_usage_stats: Annotated[Literal[False] | None, _neutral(False)]  # noqa: FBT003 - a value


class StructuredOutputs(TypedDict, total=False):
    """vLLM's field: one of these."""

    __pydantic_config__ = ConfigDict(extra="forbid")  # type: ignore[misc]

    json: Any
    regex: str
    choice: Annotated[Listed[str], Field(min_length=1, max_length=MOST_CHOICES)]
    grammar: str
    structural_tag: str | dict[str, Any]


class ChancellorOptions(BaseModel):
    """What goes beyond OpenAI's protocol: `extra_body={"chancellor": {...}}`."""

    model_config = ConfigDict(extra="forbid")

    policy: Annotated[str | None, Field(description="How to choose: trinity, light or strong.")] = None
    decision: Annotated[Boolean, Field(description="Put complexity, decision and metrics into the answer.")] = False


class _Request(BaseModel):
    """What both routes take. Fields that are not known are refused, and not dropped in silence."""

    model_config = ConfigDict(extra="forbid")

    model: Annotated[str, Field(min_length=1, description='"chancellor" to let it choose, or a model\'s name.')]
    max_tokens: Annotated[Whole, Field(ge=1)] | None = None
    temperature: Annotated[Real, Field(ge=0.0, le=2.0)] | None = None
    top_p: Annotated[Real, Field(gt=0.0, le=1.0)] | None = None
    n: Annotated[Whole, Field(ge=1)] | None = None
    seed: Annotated[Whole, Field(ge=-(2**63), le=2**63 - 1)] | None = None
    stop: Stop | None = None
    presence_penalty: Annotated[Real, Field(ge=-2.0, le=2.0)] | None = None
    frequency_penalty: Annotated[Real, Field(ge=-2.0, le=2.0)] | None = None
    logit_bias: Biases | None = None
    stream: Boolean | None = None
    stream_options: StreamOptions | None = None
    user: str | None = None
    # vLLM's.
    top_k: Annotated[Whole, Field(ge=-1, le=2**31 - 1, description="0 or -1 for all.")] | None = None
    min_p: Annotated[Real, Field(ge=0.0, le=1.0)] | None = None
    repetition_penalty: Annotated[Real, Field(gt=0.0, le=1000.0)] | None = None
    ignore_eos: Annotated[Boolean, Field(description="Go on to max_tokens whatever the model says.")] = False
    chancellor: ChancellorOptions = ChancellorOptions()

    @model_validator(mode="before")
    @classmethod
    def _readable(cls, data: Any) -> Any:
        excess = None
        try:  # Python's parser takes more than JSON, and tokenizers do not
            if isinstance(data, dict):
                json.dumps(data, ensure_ascii=False, allow_nan=False).encode()
                excess = crowded(data)
        except (ValueError, RecursionError) as error:
            raise ValueError("The body holds half a surrogate pair, NaN or Infinity, which are no JSON") from error
        if excess is not None:
            raise ValueError(excess)
        return data

    @model_validator(mode="after")
    def _consistent(self) -> Any:
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options is for streams: set stream to true, or leave it out")
        return self

    @property
    def usage_wanted(self) -> bool:
        """Whether a stream ends with the usage."""
        return bool(self.stream_options and self.stream_options.get("include_usage"))


class ChatCompletionRequest(_Request):
    """A chat completion."""

    messages: Annotated[Listed[Message], Field(min_length=1, max_length=MOST_MESSAGES)]
    max_completion_tokens: Annotated[Whole, Field(ge=1)] | None = None
    logprobs: Boolean | None = None
    top_logprobs: Annotated[Whole, Field(ge=0, le=20)] | None = None
    tools: Annotated[Listed[ChatCompletionFunctionToolParam], Field(max_length=MOST_TOOLS)] | None = None
    tool_choice: (
        Literal["none", "auto", "required"] | ChatCompletionNamedToolChoiceParam | AllowedToolsChoice | None
    ) = None
    parallel_tool_calls: Boolean | None = None
    response_format: ResponseFormat | None = None
    structured_outputs: Annotated[
        StructuredOutputs | None, Field(description="vLLM's: one of json, regex, choice, grammar, structural_tag.")
    ] = None
    # Said by clients to services that have more to offer; there is nothing to do about them here.
    metadata: dict[str, str] | None = None
    store: Boolean | None = None
    service_tier: str | None = None
    prompt_cache_key: str | None = None
    prompt_cache_options: dict[str, Any] | None = None
    prompt_cache_retention: str | None = None
    prediction: dict[str, Any] | None = None
    safety_identifier: str | None = None
    # What is not done.
    modalities: Annotated[Listed[Literal["text"]] | None, _neutral(["text"])] = None
    reasoning_effort: Annotated[Literal["medium"] | None, _neutral("medium")] = None
    verbosity: Annotated[Literal["medium"] | None, _neutral("medium")] = None
    audio: Annotated[None, _neutral()] = None
    moderation: Annotated[None, _neutral()] = None
    web_search_options: Annotated[None, _neutral()] = None
    functions: Annotated[Annotated[list[Any], Field(max_length=0)] | None, _neutral([])] = None
    function_call: Annotated[Literal["none", "auto"] | None, _neutral("none", "auto")] = None

    @model_validator(mode="after")
    def _complete(self) -> Any:
        if self.top_logprobs is not None and not self.logprobs:
            raise ValueError("top_logprobs needs logprobs to be true")
        for name in ("tools", "response_format", "structured_outputs"):
            if _depth(getattr(self, name)) > _DEEPEST:
                raise ValueError(f"{name} is nested more than {_DEEPEST} levels deep")
        return self


class CompletionRequest(_Request):
    """A completion of a text as it stands, without a chat template."""

    prompt: str | TokenIds | Texts | Annotated[Listed[TokenIds], Field(min_length=1, max_length=MOST_PROMPTS)]
    logprobs: Annotated[Whole, Field(ge=0, le=5)] | None = None
    echo: Boolean | None = None
    best_of: Whole | None = None
    suffix: Annotated[Literal[""] | None, _neutral("")] = None

    @model_validator(mode="after")
    def _complete(self) -> Any:
        if self.best_of is not None and self.best_of != (self.n or 1):
            raise ValueError("best_of is not done here: leave it out, or set it to n")
        if self.echo and self.logprobs is not None:
            raise ValueError("echo and logprobs do not go together here: leave one of them out")
        return self

    def prompts(self) -> list[str | tuple[int, ...]]:
        """Return the prompts, each a text or token ids."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        if isinstance(self.prompt[0], int):
            return [tuple(self.prompt)]
        return [one if isinstance(one, str) else tuple(one) for one in self.prompt]


def _depth(value: Any) -> int:
    depth, level = 0, [value]
    while level := [
        inner
        for one in level
        if isinstance(one, dict | list)
        for inner in (one.values() if isinstance(one, dict) else one)
    ]:
        depth += 1
    return depth
