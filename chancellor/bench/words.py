"""Text of an exact number of tokens, for prompts of a given length."""

import random
from typing import Any, Final

from chancellor.engines.prompt import render

__all__ = ["TextMaker"]

# Common words: one token each in most vocabularies, so that a text looks to the tokenizer like one.
_TEXT: Final = (
    "time year people way day man thing woman life child world school state family student group country problem hand "
    "part place case week company system program question work government number night point home water room mother "
    "area money story fact month lot right study book eye job word business issue side kind head house service friend "
    "father power hour game line end member law car city community name president team minute idea kid body "
    "information back parent face others level office door health person art war history party result change morning "
    "reason research girl guy moment air teacher force education foot boy age policy process music market sense "
    "nation plan college interest death experience effect use class control field development role effort rate heart "
    "drug show leader light voice wife police mind price report decision son view relationship town road arm "
    "difference value building action season society tax director position player record paper space ground form "
    "event matter center couple site project activity star table need court oil situation cost industry figure street "
    "image phone data picture practice piece land product doctor wall patient worker news test movie north love step "
    "list tree "
)
_WORDS: Final = _TEXT.split()
_FILLERS: Final = (" time", " a", ".", ",", " x", "7", "q")
"""What is added, a token at a time, where no whole word fits any more."""


class TextMaker:
    """Makes user messages whose rendered prompt has an exact length, for one model."""

    def __init__(self, tokenizer: Any | None) -> None:
        """Take a Hugging Face tokenizer; None counts a word as a token, which is right to about 5 %."""
        self._tokenizer = tokenizer

    def words(self, count: int, rng: random.Random) -> str:
        """Return `count` random words."""
        return " ".join(rng.choices(_WORDS, k=max(count, 0)))

    def message(self, tokens: int, rng: random.Random, before: list[dict[str, Any]] | None = None) -> str:
        """Return a user message that makes the conversation `before` plus itself `tokens` tokens long when rendered.

        Where the template and what came before take that much already, the message is one word.
        """
        before = before or []
        if self._tokenizer is None:
            spoken = sum(len(str(message["content"]).split()) for message in before)
            return self.words(max(tokens - spoken, 1), rng)
        words = self.words(tokens, rng).split(" ")

        def excess(text: str) -> int:
            return self.length([*before, {"role": "user", "content": text}]) - tokens

        # As many whole words as fit; every word is a token or more.
        fits, over = 1, len(words) + 1
        while over - fits > 1:
            middle = (fits + over) // 2
            fits, over = (middle, over) if excess(" ".join(words[:middle])) <= 0 else (fits, middle)
        text = " ".join(words[:fits])
        missing = -excess(text)
        while missing > 0:
            longer = next((text + piece for piece in _FILLERS if -excess(text + piece) == missing - 1), None)
            if longer is None:
                break
            text, missing = longer, missing - 1
        return text

    def length(self, messages: list[dict[str, Any]]) -> int:
        """Return the number of tokens of the rendered conversation."""
        return len(render(self._tokenizer, messages).token_ids)
