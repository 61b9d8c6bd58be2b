"""Compare an engine with transformers on one checkpoint: greedy tokens, and log probabilities along the same text.

Rounding activations to int8 makes a small model chaotic: transformers does not even agree with itself when its input
is changed by one part in a million. So that is measured too, as the yardstick for what agreement can be had.
"""

from dataclasses import dataclass, field
from typing import Any

from chancellor.catalog import ModelSpec
from chancellor.engines import EnginePool, GenerationRequest
from chancellor.quantization.prepare import Prepared

QUESTIONS = [
    "What is 2+2?",
    "What is the capital of France?",
    "Name three colours.",
    "Write a short poem about the sea.",
    "Why is the sky blue?",
    "How do I boil an egg?",
    "Translate 'good morning' into Spanish.",
    "Who wrote Hamlet?",
    "What is a prime number?",
    "Give me a synonym for happy.",
]
NEW_TOKENS = 20
NUDGE = 1e-6
"""Relative change of the input embeddings of the second transformers run."""


@dataclass
class Report:
    """How near two runs are."""

    parted_at: list[int | None] = field(default_factory=list)
    """For each question, the position of the first of 20 greedy tokens that differs; None if all are the same."""
    differences: list[float] = field(default_factory=list)
    """Absolute differences of log probabilities, in nats, over the ten likeliest tokens of each step."""
    same_likeliest: list[bool] = field(default_factory=list)
    """For each step, whether both have the same likeliest token."""

    @property
    def same_answers(self) -> int:
        return self.parted_at.count(None)

    @property
    def mean_difference(self) -> float:
        return sum(self.differences) / len(self.differences)

    def summary(self) -> dict[str, Any]:
        ordered = sorted(self.differences)
        return {
            "same_first_20_tokens": f"{self.same_answers} of {len(self.parted_at)}",
            "parted_at": self.parted_at,
            "steps": len(self.same_likeliest),
            "same_likeliest_token": round(sum(self.same_likeliest) / len(self.same_likeliest), 4),
            "logprob_difference_mean": round(self.mean_difference, 5),
            "logprob_difference_p99": round(ordered[int(0.99 * len(ordered))], 5),
        }


def compare(pool: EnginePool, spec: ModelSpec, prepared: Prepared, dtype: str = "float32") -> tuple[Report, Report]:
    """Ask all questions. Return how near vLLM is to transformers, and transformers to itself with the nudged input.

    The distributions are compared along vLLM's own answer, token by token.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(prepared.folder)
    model = AutoModelForCausalLM.from_pretrained(prepared.folder, dtype=getattr(torch, dtype))
    generator = torch.Generator().manual_seed(0)

    def embed(tokens: list[int], *, nudged: bool) -> Any:
        embeddings = model.get_input_embeddings()(torch.tensor([tokens]))
        noise = torch.randn(embeddings.shape, generator=generator).to(embeddings.dtype)
        return embeddings * (1 + NUDGE * noise) if nudged else embeddings

    def greedy(prompt: list[int], *, nudged: bool) -> list[int]:
        made = model.generate(
            inputs_embeds=embed(prompt, nudged=nudged),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
            max_new_tokens=NEW_TOKENS,
            do_sample=False,
            pad_token_id=tokenizer.eos_token_id,
        )
        return list(made[0].tolist())

    def steps(prompt: list[int], answer: list[int], *, nudged: bool) -> Any:
        logits = model(inputs_embeds=embed([*prompt, *answer], nudged=nudged)).logits[0, len(prompt) - 1 : -1]
        return logits.float().log_softmax(dim=-1)

    engine, itself = Report(), Report()
    for question in QUESTIONS:
        messages = [{"role": "user", "content": question}]
        prompt = list(tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False))
        request = GenerationRequest(messages, max_tokens=NEW_TOKENS, temperature=0, logprobs=10)
        (made,) = pool.generate(spec, request)
        answer = list(made.token_ids)
        with torch.no_grad():
            plain, nudged = greedy(prompt, nudged=False), greedy(prompt, nudged=True)
            reference, noisy = steps(prompt, answer, nudged=False), steps(prompt, answer, nudged=True)
        engine.parted_at.append(_parted(answer, plain))
        itself.parted_at.append(_parted(nudged, plain))
        for step, again, token in zip(reference, noisy, made.logprobs, strict=True):
            likeliest = sorted(token.top, key=lambda one: -token.top[one])[:10]
            engine.differences += [abs(float(step[one]) - token.top[one]) for one in likeliest]
            itself.differences += [abs(float(step[one]) - float(again[one])) for one in likeliest]
            engine.same_likeliest.append(int(step.argmax()) == likeliest[0])
            itself.same_likeliest.append(int(step.argmax()) == int(again.argmax()))
    return engine, itself


def _parted(one: list[int], other: list[int]) -> int | None:
    return next((at for at, pair in enumerate(zip(one, other, strict=False)) if pair[0] != pair[1]), None)
