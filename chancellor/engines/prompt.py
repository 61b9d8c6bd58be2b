"""From chat messages to the tokens that a model reads."""

from dataclasses import dataclass
from typing import Any, Final

from chancellor.errors import GenerationError

__all__ = ["RAW_STOP", "Prompt", "render"]

RAW_STOP: Final = ("\n\n", "###")
"""What ends a raw completion, for models without a chat template."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """A rendered prompt."""

    token_ids: list[int]
    templated: bool
    """Whether the model's chat template made it; else it is a raw completion."""


def render(tokenizer: Any, messages: list[dict[str, Any]], tools: list[dict[str, Any]] | None = None) -> Prompt:
    """Render the conversation with the model's own chat template; without one, as plain text to be continued.

    Args:
        tokenizer: the model's, from Hugging Face.
        messages: the conversation.
        tools: for a template that describes tools to the model.

    Raises:
        GenerationError: the template refuses the conversation.
    """
    if not getattr(tokenizer, "chat_template", None):
        text = "\n".join(str(message["content"]) for message in messages)
        return Prompt(list(tokenizer.encode(text)), templated=False)
    try:
        token_ids = tokenizer.apply_chat_template(
            messages, tools=tools, add_generation_prompt=True, tokenize=True, return_dict=False
        )
    except Exception as error:
        raise GenerationError(
            f"The model's chat template refuses this conversation: {error}",
            hint="Check the roles and their order; some templates want user and assistant to alternate.",
        ) from error
    return Prompt(list(token_ids), templated=True)
