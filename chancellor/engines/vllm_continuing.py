"""An answer that vLLM takes up where another engine has left it."""

from dataclasses import replace
from typing import Any, Final

from chancellor.engines.base import Delta, GenerationRequest

__all__ = ["Continuation"]

_UNFINISHED: Final = "\ufffd"  # the bytes of a character whose rest has not come yet


class Continuation:
    """Looks for the stop texts of such an answer: vLLM does not know the text before the gap, where one may begin."""

    def __init__(self, request: GenerationRequest, stop: tuple[str, ...], tokenizer: Any, prompt_tokens: int) -> None:
        self._stop = stop
        self._hold = max((len(one) for one in stop), default=1) - 1
        # What the engine before kept back, as it might have been the beginning of a stop text.
        self._held = _unsent(tokenizer, request) if stop else ""
        self._prompt_tokens = prompt_tokens
        self.ended = False
        """Whether a stop text has come: what vLLM makes afterwards is not part of the answer."""

    def take(self, delta: Delta, produced: int, **figures: Any) -> Delta:
        """Return the delta with the text that certainly belongs to the answer."""
        text = self._held + delta.text
        found = min((at for one in self._stop if (at := text.find(one)) >= 0), default=-1)
        if found >= 0:
            self.ended = True
            own = {"input_tokens": self._prompt_tokens, "output_tokens": produced, **figures}
            return replace(delta, text=text[:found], finish_reason="stop", **own)
        keep = 0 if delta.finish_reason is not None else min(self._hold, len(text))
        self._held = text[len(text) - keep :] if keep else ""
        prompt = delta.input_tokens and self._prompt_tokens
        return replace(delta, text=text[: len(text) - keep], input_tokens=prompt)


def _unsent(tokenizer: Any, request: GenerationRequest) -> str:
    whole: str = tokenizer.decode(request.answered, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    for start in ("", " "):  # a word's space is lost where it comes first
        if (start + whole).startswith(request.answered_text):
            return (start + whole)[len(request.answered_text) :].rstrip(_UNFINISHED)
    return ""
