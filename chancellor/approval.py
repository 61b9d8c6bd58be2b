"""Whether a text only approves what was proposed."""

import re
from typing import Final

__all__ = ["approves"]

_FEW_WORDS: Final = 8
_WORD: Final = re.compile(r"[^\W_]+(?:['\u2019][^\W_]+)*")
_APPROVING: Final = re.compile(
    r"y|yes|yep|yup|yeah|ok|okay|k|sure|please|go|going|continue|proceed|do|carry|agreed|absolutely|definitely|good|fine|"
    r"right|perfect|great|exactly|correct|option",
    re.IGNORECASE,
)
_BESIDES: Final = re.compile(
    r"it|that|this|so|then|now|all|both|on|ahead|with|for|keep|sounds|looks|(that|let)['\u2019]s|the|an?|of|course|"
    r"first|second|third|one|two|three|[b-d]|number|thanks|thank|you|very|much|\d+",
    re.IGNORECASE,
)
"""What may stand beside a word of approval; any other word makes the text a task of its own."""


def approves(text: str) -> bool:
    """Return whether a text is a few words of approval, such as "yes, go ahead with option 2", and nothing besides."""
    if len(text.split()) > _FEW_WORDS or "?" in text:
        return False
    words = [found.group() for found in _WORD.finditer(text)]
    others = [word for word in words if not _APPROVING.fullmatch(word)]
    return len(others) < len(words) and all(_BESIDES.fullmatch(word) for word in others)
