"""What shapes the answers in the worker of a TransformersEngine: guides (by xgrammar), penalties; log probabilities."""

import re
from typing import Any, NamedTuple

import torch
from transformers import LogitsProcessor

from chancellor.engines.answers.guides import json_format, structural_tag
from chancellor.engines.base import Guide, TokenLogprob

__all__ = ["Guides", "Logprobs", "Penalties", "Shifts"]


class Logprobs(LogitsProcessor):  # type: ignore[misc]
    """Keeps the model's own log probabilities of the step under way, before anything changes them.

    Args:
        wanted: for each row of the batch, how many of the likeliest tokens to report, or None for no report.
        tokenizer: the model's.
    """

    def __init__(self, wanted: list[int | None], tokenizer: Any) -> None:
        self.wanted, self.tokenizer = wanted, tokenizer
        self._step = torch.empty(0)

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:  # noqa: ARG002 - transformers' signature
        self._step = torch.log_softmax(scores.float(), dim=-1)
        return scores

    def of(self, row: int, token: int) -> TokenLogprob | None:
        """Return what is known of the token that the row has taken."""
        if (wanted := self.wanted[row]) is None:
            return None
        values, ids = self._step[row].topk(wanted) if wanted else (torch.empty(0), torch.empty(0))
        top = dict(zip((int(one) for one in ids), (float(one) for one in values), strict=True))
        top.setdefault(token, float(self._step[row, token]))
        likeliest = sorted(top.items(), key=lambda one: -one[1])
        texts = tuple((self.tokenizer.decode([one]), value) for one, value in likeliest)
        return TokenLogprob(token, self.tokenizer.decode([token]), top[token], top, texts)


class Shifts(NamedTuple):
    """How a request changes the logits."""

    presence: float = 0.0
    frequency: float = 0.0
    repetition: float = 1.0
    biases: tuple[tuple[int, float], ...] = ()


class Penalties(LogitsProcessor):  # type: ignore[misc]
    """Changes the logits by biases and penalties, in vLLM's order: OpenAI's penalties do not count the prompt's tokens.

    Args:
        rows: for each row of the batch, what changes it.
        begins: for each row, where in the ids its prompt begins, and where its answer.
    """

    def __init__(self, rows: list[Shifts], begins: list[tuple[int, int]]) -> None:
        self.rows, self.begins = rows, begins

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        scores = scores.float()
        for row, (shifts, (prompt, answer)) in enumerate(zip(self.rows, self.begins, strict=True)):
            for token, bias in shifts.biases:
                scores[row, token] += bias
            if shifts.repetition != 1.0:
                had = input_ids[row, prompt:].unique()
                values = scores[row, had]
                scores[row, had] = torch.where(values > 0, values / shifts.repetition, values * shifts.repetition)
            if shifts.presence or shifts.frequency:
                counts = torch.bincount(input_ids[row, answer:], minlength=scores.shape[1])
                scores[row] -= shifts.presence * (counts > 0) + shifts.frequency * counts
        return scores


class Guides(LogitsProcessor):  # type: ignore[misc]
    """Leaves only those tokens that the guide of each row allows.

    Args:
        guides: one for each row, or None.
        tokenizer: the model's.
        vocabulary: size of the model's output layer, which may be padded.
        end: ids of the tokens that end an answer.
    """

    def __init__(self, guides: list[Guide | None], tokenizer: Any, vocabulary: int, end: list[int]) -> None:
        import xgrammar

        info = xgrammar.TokenizerInfo.from_huggingface(tokenizer, vocab_size=vocabulary, stop_token_ids=end or None)
        compiler = xgrammar.GrammarCompiler(info)
        self._matchers = [xgrammar.GrammarMatcher(_compiled(compiler, one)) if one else None for one in guides]
        self._mask = xgrammar.allocate_token_bitmask(len(guides), info.vocab_size)
        self._apply = xgrammar.apply_token_bitmask_inplace
        self._begun = False

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        rows = []
        for row, matcher in enumerate(self._matchers):
            if matcher is None or matcher.is_terminated():
                continue
            if self._begun and not matcher.accept_token(int(input_ids[row, -1])):
                self._matchers[row] = None  # the row is done, and what comes is padding
                continue
            if not matcher.is_terminated():
                matcher.fill_next_token_bitmask(self._mask, row)
                rows.append(row)
        self._begun = True
        if rows:
            scores = scores.float()
            self._apply(scores, self._mask.to(scores.device), indices=rows)
        return scores


def _compiled(compiler: Any, guide: Guide) -> Any:
    value = guide.value
    if guide.kind in ("json_schema", "json_object"):
        value = structural_tag(json_format(value or {"type": "object"})).value
        return compiler.compile_structural_tag(value)
    if guide.kind == "structural_tag":
        return compiler.compile_structural_tag(value)
    if guide.kind == "grammar":
        return compiler.compile_grammar(value)
    return compiler.compile_regex("|".join(map(re.escape, value)) if guide.kind == "choice" else value)
