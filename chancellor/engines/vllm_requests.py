"""From our requests to vLLM's, and from its outputs to our deltas."""

import json
import traceback
from typing import TYPE_CHECKING, Any, Final, cast

from chancellor.engines.answers import Plan
from chancellor.engines.answers.guides import json_format, structural_tag
from chancellor.engines.answers.keywords import bindable, for_guidance
from chancellor.engines.base import Delta, GenerationRequest, Guide, TokenLogprob
from chancellor.engines.logs import log_file
from chancellor.engines.prompt import Prompt
from chancellor.errors import EngineDiedError, GenerationError, InvalidInputError

if TYPE_CHECKING:
    from vllm import RequestOutput, SamplingParams

__all__ = ["delta_of", "refused_by_vllm", "sampling_params"]

_TAKING_IN: Final = {"sampling_params", "add_request"}
"""Functions, ours and vLLM's, in which a request's parameters are read."""
_TOLD: Final = 300
"""Characters of vLLM's reason: some hold the whole value."""


def sampling_params(request: GenerationRequest, prompt: Prompt, plan: Plan) -> "SamplingParams":
    """Return vLLM's parameters for the request."""
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    return SamplingParams(
        max_tokens=request.max_tokens - len(request.answered),
        temperature=request.temperature,
        top_p=request.top_p,
        top_k=request.top_k,
        min_p=request.min_p,
        seed=request.seed,
        presence_penalty=request.presence_penalty,
        frequency_penalty=request.frequency_penalty,
        repetition_penalty=request.repetition_penalty,
        logit_bias=dict(request.logit_bias) or None,
        stop=plan.stop(request, prompt.stop),
        logprobs=request.logprobs,
        ignore_eos=request.ignore_eos,
        skip_special_tokens=plan.skip_special_tokens,
        structured_outputs=None if plan.guide is None else _structured_outputs(plan.guide),
        output_kind=RequestOutputKind.DELTA if request.stream else RequestOutputKind.FINAL_ONLY,
    )


def _structured_outputs(guide: Guide) -> Any:
    from vllm.sampling_params import StructuredOutputsParams

    value = guide.value
    if guide.kind == "json_object":
        value = {"type": "object"}
    if guide.kind in ("json_schema", "json_object"):
        if (schema := for_guidance(value)) is not None:
            return StructuredOutputsParams(json=json.dumps(schema))
        value = cast("Guide", bindable(Guide("json_schema", value), xgrammar_only=True)).value
        # As a structural tag: only there can white space be kept from going on for ever.
        value = structural_tag(json_format(value)).value
        return StructuredOutputsParams(structural_tag=value)
    return StructuredOutputsParams(**{guide.kind: list(value) if guide.kind == "choice" else value})


def refused_by_vllm(error: BaseException) -> InvalidInputError | None:
    """Return what the caller is told where vLLM does not take a request's parameters; None if the error is another."""
    from vllm import exceptions

    # Its newest releases have classes for them, older ones take Python's own.
    kinds = [getattr(exceptions, name, None) for name in ("VLLMClientError", "VLLMValidationError")]
    told = isinstance(error, tuple(kind for kind in kinds if isinstance(kind, type)))
    if not told and isinstance(error, ValueError):
        told = any(frame.name in _TAKING_IN for frame in traceback.extract_tb(error.__traceback__))
    if not told:
        return None
    reason = str(error).strip()
    if "coerce_one_of" in reason:  # an option that the caller does not have
        reason = "oneOf goes together with its other keywords only where its schemas exclude each other; write anyOf"
    reason = reason if len(reason) <= _TOLD else f"{reason[:_TOLD]}..."
    return InvalidInputError(f"vLLM does not take this request: {reason}", hint="Change, or leave out, what it names.")


def delta_of(
    output: "RequestOutput", model: str, quantization: str | None, produced: int, now: float, first: float | None
) -> Delta:
    """Return what a step of a request has brought.

    Args:
        output: from vLLM.
        model: name of the model, for errors.
        quantization: scheme of its weights.
        produced: tokens of the answer so far.
        now: seconds since the request was handed over.
        first: seconds until its first token, if it was streamed and has come.

    Raises:
        EngineDiedError: the engine was shut down.
        GenerationError: vLLM gave up on the request.
    """
    piece = output.outputs[0]
    logprobs = tuple(
        TokenLogprob(
            token_id=token_id,
            token=step[token_id].decoded_token or "",
            logprob=step[token_id].logprob,
            top={candidate: entry.logprob for candidate, entry in step.items()},
            top_tokens=tuple(
                sorted(((entry.decoded_token or "", entry.logprob) for entry in step.values()), key=lambda one: -one[1])
            ),
        )
        for token_id, step in zip(piece.token_ids, piece.logprobs or (), strict=False)
    )
    if not output.finished:
        return Delta(piece.text, tuple(piece.token_ids), logprobs)
    if piece.finish_reason == "abort":  # not by us, who close the generator: by an engine that shuts down
        raise EngineDiedError(f"The engine of {model!r} was shut down while it answered.")
    if piece.finish_reason == "error":
        raise GenerationError("vLLM gave up on this request.", hint=f"Its log says why: {log_file()}")
    if first is None and output.metrics is not None and output.metrics.first_token_latency > 0:
        first = output.metrics.first_token_latency  # nobody streamed, so vLLM's own clock has it
    queued = None
    if output.metrics is not None and output.metrics.scheduled_ts and output.metrics.queued_ts:
        queued = output.metrics.scheduled_ts - output.metrics.queued_ts
    return Delta(
        text=piece.text,
        token_ids=tuple(piece.token_ids),
        logprobs=logprobs,
        finish_reason=piece.finish_reason or "stop",
        input_tokens=len(output.prompt_token_ids or ()),
        output_tokens=produced,
        cached_tokens=output.num_cached_tokens,
        inference_time_s=now,
        time_to_first_token_s=first,
        queue_time_s=queued,
        model=model,
        engine="vllm",
        quantization=quantization,
    )
