"""About how many tokens a conversation has, without a tokenizer."""

import string
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.messages.utils import count_tokens_approximately
from langchain_core.tools import BaseTool

__all__ = ["Estimate", "estimate", "tokens_of"]

_DIGITS: Final = string.digits.encode()
_MARKS: Final = string.punctuation.encode()
_LATIN: Final = bytes(range(0xC2, 0xCA))
"""First bytes of Latin letters with accents (U+0080 to U+024F), which have two."""


class Estimate(NamedTuple):
    """The number of tokens is hardly ever more than `most`, and hardly ever less than `fewest`."""

    fewest: int
    """At four characters a token: English, with any tokenizer."""
    most: int
    """By script, see `tokens_of`."""


def estimate(messages: Sequence[BaseMessage], tools: Sequence[BaseTool | dict[str, Any]] = ()) -> Estimate:
    """Return about how many tokens messages have, with the tools that the model is told."""
    fewest = count_tokens_approximately(messages, tools=list(tools) or None)
    more = sum(_beyond(str(message.text)) for message in messages)
    for message in messages:
        if isinstance(message, AIMessage) and message.tool_calls:
            more += sum(_beyond(str(call["args"])) for call in message.tool_calls)
    return Estimate(fewest, fewest + round(more))


def tokens_of(text: str) -> int:
    """Return about how many tokens a text has: rather too many than too few.

    Four characters are a token. A digit is one, a mark 0.6. A Latin letter with an accent is three, for it breaks its
    word up; any other character beyond ASCII a quarter, and one more for each byte of it in UTF-8 after the first.

    Measured over what tokenizers make of it. SmolLM2's, which knows little but English: 1.2 times as many for Chinese,
    Japanese and Arabic, 0.85 for Korean, 1.5 for Russian, 1.75 for Hindi, 1.1 for emoji, 0.9 to 1 for German, Polish
    and Vietnamese. Mistral's of 32,000 tokens: 1.1 to 2.7 beyond Latin. Tekken's of 131,000: 2.2 to 5.4, and 0.86 for
    emoji. With all three 1.0 to 1.1 for English, 0.95 to 1.15 for code, 0.75 to 0.9 for JSON, 1 for digits, 0.8 for
    figures; too few for capitals (0.7) and base64 (0.5).
    """
    return round(len(text) / 4 + _beyond(text))


def _beyond(text: str) -> float:
    """Return the tokens of a text beyond one for four characters. All loops are in C: it is counted in each run."""
    data = text.encode("utf-8", "replace")
    more = 0.75 * _count(data, _DIGITS) + 0.35 * _count(data, _MARKS)
    if len(data) == len(text):
        return more
    accented = _count(data, _LATIN)
    return more + 2.75 * accented + (len(data) - len(text) - accented)


def _count(data: bytes, these: bytes) -> int:
    return len(data) - len(data.translate(None, these))
