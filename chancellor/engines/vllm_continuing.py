"""An answer that vLLM takes up where another engine has left it."""

from dataclasses import replace
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from chancellor.engines.base import Delta, GenerationRequest

if TYPE_CHECKING:
    from vllm import SamplingParams

__all__ = ["Continuation"]


class Continuation:
    """Makes the text of such an answer: a character, or a stop text, may begin before the gap.

    vLLM's own detokenizer does it, which goes once more through the tokens that there are already.
    """

    def __init__(
        self,
        request: GenerationRequest,
        sampling: "SamplingParams",
        tokenizer: Any,
        prompt: list[int],
        figures: dict[str, Any],
    ) -> None:
        """Take in what there is.

        Args:
            request: what was asked, with what is answered.
            sampling: vLLM's parameters for it, with its stop texts.
            tokenizer: the engine's.
            prompt: token ids of the question alone.
            figures: fields of the last delta that the engine's own would have.
        """
        from vllm.v1.engine.detokenizer import IncrementalDetokenizer

        asked: Any = SimpleNamespace(
            request_id="continued", sampling_params=sampling, prompt_token_ids=prompt, prompt_embeds=None
        )
        self._text = IncrementalDetokenizer.from_new_request(tokenizer, asked)
        self._text.update(list(request.answered), stop_terminated=False)
        self._sent = len(request.answered_text)
        self._figures = {**figures, "input_tokens": len(prompt)}
        self.ended = False
        """Whether a stop text has come: what vLLM makes afterwards is not part of the answer."""

    def take(self, delta: Delta, produced: int, seconds: float) -> Delta:
        """Return the delta with the text that certainly belongs to the answer.

        Args:
            delta: from the engine that goes on.
            produced: tokens of the answer so far.
            seconds: since the engine took the request.
        """
        finished, taken = delta.finish_reason is not None, 0
        for token_id in delta.token_ids:  # one by one, for a stop text ends it in the middle of what came together
            taken += 1
            terminated = delta.finish_reason == "stop" and taken == len(delta.token_ids)
            if self._text.update([token_id], terminated) is not None:
                self.ended = True
                break
        text = self._text.get_next_output_text(finished=finished or self.ended, delta=False)[self._sent :]
        self._sent += len(text)
        if self.ended:
            produced -= len(delta.token_ids) - taken
            delta = replace(
                delta,
                token_ids=delta.token_ids[:taken],
                logprobs=delta.logprobs[:taken],
                finish_reason="stop",
                output_tokens=produced,
                inference_time_s=seconds,
            )
        figures = self._figures if finished or self.ended else {}
        return replace(delta, text=text, **figures)
