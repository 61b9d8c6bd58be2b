"""From chat messages to the tokens that a model reads."""

from dataclasses import dataclass
from typing import Any, Final

from chancellor.engines.base import GenerationRequest
from chancellor.engines.host import in_thread
from chancellor.errors import InvalidInputError

__all__ = ["RAW_STOP", "Prompt", "prompt_ahead", "prompt_of", "render"]

RAW_STOP: Final = ("\n\n", "###")
"""What ends a raw completion, for models without a chat template."""
_LONG: Final = 16_384
"""Characters; to tokenise so many takes about 10 ms."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """A rendered prompt."""

    token_ids: list[int]
    stop: tuple[str, ...] = ()
    """What ends the answer where the request does not say."""


async def prompt_ahead(
    tokenizer: Any, request: GenerationRequest, messages: list[dict[str, Any]], tools: Any
) -> Prompt:
    """Like `prompt_of`, which for a long text takes long enough for other requests to notice: then in a thread."""
    long = len(str(messages if request.prompt is None else request.prompt)) > _LONG
    if not long:
        return prompt_of(tokenizer, request, messages, tools)
    return await in_thread(lambda: prompt_of(tokenizer, request, messages, tools))


def prompt_of(tokenizer: Any, request: GenerationRequest, messages: list[dict[str, Any]], tools: Any = None) -> Prompt:
    """Return what the model reads for a request: its raw prompt, or the conversation as it was planned.

    Raises:
        InvalidInputError: the chat template refuses the conversation, the raw prompt is empty, or a token id is none of
            the model's.
    """
    _check(tokenizer, [token for token, _ in request.logit_bias])
    if request.prompt is None:
        return render(tokenizer, messages, tools)
    ids = list(tokenizer.encode(request.prompt)) if isinstance(request.prompt, str) else list(request.prompt)
    if not ids:
        raise InvalidInputError("The prompt is empty.", hint="Give some text, or token ids, to be continued.")
    _check(tokenizer, ids)
    return Prompt(ids)


def _check(tokenizer: Any, ids: list[int]) -> None:
    if ids and (max(ids) >= (size := len(tokenizer)) or min(ids) < 0):
        unknown = next(one for one in ids if not 0 <= one < size)
        raise InvalidInputError(
            f"The token id {unknown} is none of the model's.", hint=f"Its ids go from 0 to {size - 1}."
        )


def render(tokenizer: Any, messages: list[dict[str, Any]], tools: list[dict[str, Any]] | None = None) -> Prompt:
    """Render the conversation with the model's own chat template; without one, as plain text to be continued.

    Args:
        tokenizer: the model's, from Hugging Face.
        messages: the conversation.
        tools: for a template that describes tools to the model.

    Raises:
        InvalidInputError: the template refuses the conversation.
    """
    if not getattr(tokenizer, "chat_template", None):
        text = "\n".join(str(message["content"]) for message in messages)
        return Prompt(list(tokenizer.encode(text)), RAW_STOP)
    try:
        token_ids = tokenizer.apply_chat_template(
            messages, tools=tools, add_generation_prompt=True, tokenize=True, return_dict=False
        )
    except Exception as error:
        raise InvalidInputError(
            f"The model's chat template refuses this conversation: {error}",
            hint="Check the roles and their order; some templates want user and assistant to alternate.",
        ) from error
    return Prompt(list(token_ids))
