"""How hard a question is: analyzers by name."""

import re
from collections.abc import Callable
from typing import Final

from chancellor.errors import UnknownChoiceError
from chancellor.state import Complexity, Level

__all__ = ["ANALYZERS", "Analyzer", "analyzer_of", "rules"]

Analyzer = Callable[[str], Complexity]
"""From the text of a question to its complexity."""

_FEW_WORDS: Final = 10
_MANY_WORDS: Final = 50
_KEYWORDS: Final = re.compile(r"\b(analyze|compare|explain|design)\b", re.IGNORECASE)


def rules(question: str) -> Complexity:
    """Judge by the number of words and four keywords.

    The rules apply in this order, and the first that fits decides:

    1. fewer than 10 words: low, also with a keyword ("Design a distributed cache" is low);
    2. more than 50 words: high;
    3. one of the words analyze, compare, explain, design, in any case: high;
    4. else medium.

    Words are what white space separates. There is no probability: rules do not estimate one.
    """
    words = len(question.split())
    level: Level
    if words < _FEW_WORDS:
        level, reason = "low", f"{words} word{'' if words == 1 else 's'}, fewer than {_FEW_WORDS}"
    elif words > _MANY_WORDS:
        level, reason = "high", f"{words} words, more than {_MANY_WORDS}"
    elif keyword := _KEYWORDS.search(question):
        level, reason = "high", f"asks to {keyword.group().lower()}"
    else:
        level, reason = "medium", f"{words} words and no keyword"
    return Complexity(level=level, probability=None, reasons=[reason], analyzer="rules")


ANALYZERS: Final[dict[str, Analyzer]] = {"rules": rules}


def analyzer_of(name: str) -> Analyzer:
    """Return the analyzer of this name.

    Raises:
        UnknownChoiceError: there is none.
    """
    try:
        return ANALYZERS[name]
    except KeyError:
        raise UnknownChoiceError.of("analyzer", name, ANALYZERS) from None
