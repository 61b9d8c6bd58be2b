"""Completions of raw texts on the wire."""

import json
from collections import Counter
from collections.abc import Sequence
from typing import Any

from openai.types import Completion, CompletionChoice, CompletionUsage
from openai.types.completion_choice import Logprobs

from chancellor.engines import Delta, GenerationRequest, TokenLogprob
from chancellor.errors import InvalidInputError
from chancellor.server.forms import Answers, Form, event, finite, usage_of
from chancellor.server.options import ServeOptions
from chancellor.server.requests import CompletionRequest
from chancellor.server.translate import completion_requests

__all__ = ["CompletionForm"]


class CompletionForm(Form):
    """Completions, whole or in pieces."""

    prefix, kind = "cmpl", "text_completion"

    def __init__(self, asked: CompletionRequest) -> None:
        super().__init__()
        self._asked = asked
        self._prompts = asked.prompts()
        self.prompts = len(self._prompts)
        if asked.echo and not all(isinstance(prompt, str) for prompt in self._prompts):
            raise InvalidInputError("Only texts can be echoed, no token ids.", hint="Leave echo out.")
        self._each = asked.n or 1
        self._begun = Counter[int]()
        self._before = ""
        self._more: dict[str, Any] = {"usage": None} if asked.usage_wanted else {}
        """In each piece, as OpenAI's servers send it where the last one has the usage."""

    def routed(self) -> list[dict[str, Any]]:
        text = "\n".join(prompt if isinstance(prompt, str) else "" for prompt in self._prompts)
        if not text.strip():
            raise InvalidInputError(
                "A prompt without words says nothing of which model is to continue it.", hint="Name a model."
            )
        return [{"role": "user", "content": text}]

    def asked_text(self) -> Any:
        return self._prompts

    def requests(self, options: ServeOptions) -> list[GenerationRequest]:
        return completion_requests(self._asked, options)

    def answered_by(self, model: str) -> None:
        super().answered_by(model)
        self._before = self._head() + '"choices": [{"index": '

    def whole(self, answers: Answers) -> Completion:
        choices = []
        for index, deltas in enumerate(answers):
            text = self._echoed(index) + "".join(delta.text for delta in deltas)
            logprobs = [one for delta in deltas for one in delta.logprobs]
            choices.append(self._choice(index, text, deltas[-1].finish_reason, logprobs))
        usage = usage_of([deltas[-1] for deltas in answers], self.prompts)
        return self._completion(choices=choices, usage=usage)

    def opening(self, index: int) -> bytes:
        text = self._echoed(index)
        choices = [self._choice(index, text, None, ())]
        return event(self._completion(choices=choices, **self._more)) if text else b""

    def piece(self, index: int, delta: Delta) -> bytes:
        if delta.finish_reason is None and not delta.logprobs:
            if not delta.text:
                return b""
            text, usage = json.dumps(delta.text), ', "usage": null' if self._more else ""
            after = f'"logprobs": null, "finish_reason": null}}]{usage}}}\n\n'
            return f'{self._before}{index}, "text": {text}, {after}'.encode()
        choices = [self._choice(index, delta.text, delta.finish_reason, delta.logprobs)]
        return event(self._completion(choices=choices, **self._more))

    def ending(self, usage: CompletionUsage | None, more: dict[str, Any] | None) -> bytes:
        return event(self._completion(choices=[], **({} if usage is None else {"usage": usage})), more)

    def _echoed(self, index: int) -> str:
        return str(self._prompts[index // self._each]) if self._asked.echo else ""

    def _completion(self, **fields: Any) -> Completion:
        return Completion(id=self.id, object="text_completion", created=self.created, model=self.model, **fields)

    def _choice(self, index: int, text: str, finish_reason: Any, tokens: Sequence[TokenLogprob]) -> CompletionChoice:
        # A piece of a stream has no reason yet, which OpenAI's type does not know.
        return CompletionChoice.model_construct(
            index=index,
            text=text,
            logprobs=self._logprobs(index, tokens) if tokens else None,
            finish_reason=finish_reason,
        )

    def _logprobs(self, index: int, tokens: Sequence[TokenLogprob]) -> Logprobs:
        offsets = []
        for one in tokens:
            offsets.append(self._begun[index])
            self._begun[index] += len(one.token)
        return Logprobs(
            tokens=[one.token for one in tokens],
            token_logprobs=[finite(one.logprob) for one in tokens],
            top_logprobs=[{text: finite(value) for text, value in one.top_tokens} for one in tokens],
            text_offset=offsets,
        )
