"""One segment: one target under one load, once, request by request."""

import asyncio
import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from chancellor.bench.load import Load
from chancellor.bench.objectives import Objectives
from chancellor.bench.report import Sample, Segment
from chancellor.bench.sampler import Sampler
from chancellor.bench.targets.base import Ask, Stopwatch, Target
from chancellor.bench.words import TextMaker
from chancellor.bench.workload import Conversation

__all__ = ["Measurement", "measure"]

_WARM_TOKENS = 8
_POLL_S = 2.0
_SKIPPED = "Skipped: the turn before it failed."


@dataclass
class Measurement:
    """What a segment has seen so far; whole once `segment` is called after its end."""

    block: int
    samples: list[Sample] = field(default_factory=list)
    figures: dict[str, Any] = field(default_factory=dict)
    began: float = 0.0
    ended: float = 0.0
    complete: bool = False
    emptied: bool = False
    """Whether the prefix cache was known to be empty at the start."""

    def segment(self, objectives: Objectives) -> Segment:
        """Sum it up."""
        duration = max(self.ended - self.began, 1e-9)
        samples = tuple(self.samples)  # an interrupted load may still be adding some
        good = [sample for sample in samples if sample.error is None]
        kept = objectives.kept(good)
        return Segment(
            block=self.block,
            duration_s=duration,
            complete=self.complete,
            requests=len(good),
            errors=len(samples) - len(good),
            tokens_per_s=_rate([sample.output_tokens for sample in good], duration),
            input_tokens_per_s=_rate([sample.input_tokens for sample in good], duration),
            requests_per_s=len(good) / duration if good else None,
            goodput_requests_per_s=None if kept is None else kept / duration,
            **self.figures,
        )


async def measure(
    target: Target,
    load: Load,
    *,
    seed: str,
    arrivals: str,
    block: int,
    stream: bool,
    warmup: int | None,
    into: Measurement,
    on_sample: Callable[[Sample], None],
) -> None:
    """Run one segment; `into` is filled as the requests finish, so that an interrupt loses none of them.

    Args:
        target: a started target.
        load: what is asked, and how it arrives.
        seed: of the prompts; another one for each segment, or the prefix cache would know them.
        arrivals: seed of the arrivals; the same for all targets.
        block: number of the repetition.
        stream: whether answers are streamed.
        warmup: requests before the clock starts; None is as many as are in flight.
        into: where the measurements go.
        on_sample: called with each finished request.

    Raises:
        Exception: any, of the target while it got ready; once requests are sent, their errors are samples.
    """
    into.emptied = await target.begin()
    text = TextMaker(await target.tokenizer())
    # Made before the warm-up: nothing is to come between that and the first request.
    conversations = load.workload.conversations(load.count, seed, text)
    await _warm_up(target, load, text, seed, warmup, stream=stream)
    into.emptied = await target.begin()
    into.block = block

    async def converse(number: int, conversation: Conversation, due: float) -> None:
        history: list[dict[str, Any]] = []
        if conversation.system is not None:
            history.append({"role": "system", "content": conversation.system})
        for turn, content in enumerate(conversation.turns):
            start = due if turn == 0 else time.perf_counter()
            history.append({"role": "user", "content": content})
            index = number * len(conversation.turns) + turn
            ask = Ask(list(history), conversation.max_tokens[turn], load.workload.ignore_eos, stream=stream, seed=index)
            sample, answer = await _ask(target, ask, start, index, into)
            into.samples.append(sample)
            on_sample(sample)
            if sample.error is not None:
                now = time.perf_counter() - into.began
                into.samples += [
                    Sample(block=block, index=index + more, start_s=now, latency_s=None, ttft_s=None, error=_SKIPPED)
                    for more in range(1, len(conversation.turns) - turn)
                ]
                return
            history.append({"role": "assistant", "content": answer})

    async def run() -> None:
        into.began = time.perf_counter()
        try:
            await load.run(conversations, converse, arrivals)
        finally:
            into.ended = time.perf_counter()

    poller = asyncio.create_task(_poll(target))
    sampler = Sampler(target)
    try:
        await target.refresh()
        with sampler:
            try:
                await target.drive(run)
            finally:
                sampler.stop_clock()
            await target.refresh()
        into.complete = True
    finally:
        poller.cancel()
        into.ended = into.ended or time.perf_counter()
        into.figures = sampler.figures()


async def _ask(target: Target, ask: Ask, start: float, index: int, into: Measurement) -> tuple[Sample, str]:
    stopwatch = Stopwatch()
    head = {"block": into.block, "index": index, "start_s": start - into.began}
    try:
        reply = await target.send(ask, stopwatch)
    except Exception as error:  # noqa: BLE001 - a failed request is a result; its kind is counted
        message = getattr(error, "message", None) or str(error)
        return Sample(**head, latency_s=None, ttft_s=None, error=f"{type(error).__name__}: {message}"[:300]), ""
    ended, pieces = time.perf_counter(), stopwatch.pieces
    # In open loop the waiting before it was sent belongs to the request as well.
    ttft = pieces[0] - start if pieces else reply.ttft_s
    return (
        Sample(
            **head,
            latency_s=ended - start,
            ttft_s=ttft,
            itl_s=tuple(round(b - a, 6) for a, b in itertools.pairwise(pieces)) if pieces else None,
            queue_s=reply.queue_s,
            input_tokens=reply.input_tokens,
            output_tokens=reply.output_tokens,
            cached_tokens=reply.cached_tokens,
        ),
        reply.text,
    )


async def _warm_up(target: Target, load: Load, text: TextMaker, seed: str, warmup: int | None, *, stream: bool) -> None:
    """Send a few requests with short answers: what is made on first use is made now."""
    count = min(load.concurrency or 4, load.count) if warmup is None else warmup
    if count == 0:
        return
    made = load.workload.conversations(count, f"{seed}/warm-up", text)[:count]

    async def once(conversation: Conversation) -> None:
        messages = [{"role": "user", "content": conversation.turns[0]}]
        if conversation.system is not None:
            messages.insert(0, {"role": "system", "content": conversation.system})
        tokens = min(_WARM_TOKENS, conversation.max_tokens[0])
        await target.send(Ask(messages, tokens, load.workload.ignore_eos, stream=stream, seed=0), Stopwatch())

    async def burst() -> list[BaseException | None]:
        return await asyncio.gather(*(once(conversation) for conversation in made), return_exceptions=True)

    for error in await target.drive(burst):
        if error is not None:
            raise error


async def _poll(target: Target) -> None:
    """Keep the counters of a server fresh; engines of ours show theirs without asking."""
    while True:
        await asyncio.sleep(_POLL_S)
        await target.refresh()


def _rate(tokens: list[int | None], duration: float) -> float | None:
    """Return the rate; None unless every answer tells its tokens, as the rest would count as nothing."""
    known = [count for count in tokens if count is not None]
    return sum(known) / duration if known and len(known) == len(tokens) else None
