"""The process that a TransformersEngine runs: static batches through `model.generate`.

It speaks over one pipe. In come `("ask", question)` and `("abort", id)`; out go `("ready", {})`,
`("batch", size)`, `("pieces", [(id, token id, text, log probabilities), ...])`, `("done", id, fields)`,
`("failed", id, message)`, and now and then `("beat",)` while there is nothing else to tell.
"""

import importlib.util
import os
import threading
import time
from collections import deque
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Final, NamedTuple

import torch
from tokenizers.decoders import DecodeStream
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig, StoppingCriteria

from chancellor.engines.base import Guide, TokenLogprob
from chancellor.engines.transformers_guides import Guides, Logprobs, Penalties, Shifts
from chancellor.quantization.int4 import dequantize_int4
from chancellor.quantization.schemes import Scheme

__all__ = ["Question", "Shifts", "WorkerOptions", "work"]

_GATHER_S: Final = 0.01
"""Requests that arrive this shortly after one another make one batch."""
_BEAT_S: Final = 5.0
"""How often a batch that nobody streams says that it goes on."""
_ALONE_S: Final = 0.003
"""The same where the last batch was one request, and another is not expected."""


class WorkerOptions(NamedTuple):
    """What the process needs to know."""

    folder: Path
    dtype: str
    random_weights: bool
    quantize_at_load: str | None
    trust_remote_code: bool
    max_batch: int
    threads: int


class Question(NamedTuple):
    """One request, rendered."""

    id: str
    token_ids: list[int]
    max_tokens: int
    temperature: float
    top_p: float
    seed: int | None
    stop: tuple[str, ...]
    ignore_eos: bool
    stream: bool
    sent: float
    guide: Guide | None = None
    logprobs: int | None = None
    skip_special_tokens: bool = True
    answered: tuple[int, ...] = ()
    """The end of `token_ids`, which is the beginning of the answer."""
    answered_text: str = ""
    """What of its text has been sent."""
    shifts: Shifts = Shifts()
    top_k: int = 0
    min_p: float = 0.0

    @property
    def sampling(self) -> tuple[object, ...]:
        """What all questions of a batch have in common."""
        if self.temperature == 0:
            return (0.0,)
        return (self.temperature, self.top_p, self.top_k, self.min_p, self.seed)


def work(connection: Connection, options: WorkerOptions) -> None:
    """Load the model and answer until the pipe is at its end."""
    worker = _Worker(connection, options)
    connection.send(("ready", {}))
    threading.Thread(target=worker.read, name="reader", daemon=True).start()
    while True:
        batch = worker.gather()
        try:
            connection.send(("batch", len(batch)))
            worker.answer(batch)
        except Exception as error:  # noqa: BLE001 - reported to whoever asked; the process goes on
            for question in batch:
                connection.send(("failed", question.id, f"{type(error).__name__}: {error}"))
        finally:
            worker.aborted.difference_update(question.id for question in batch)
            connection.send(("batch", 0))


def _without_int4(model: torch.nn.Module) -> None:
    """Undo int4 where TorchAO's kernels for it are not installed: they are a package for GPUs of its own."""
    if importlib.util.find_spec("mslk") is not None and torch.cuda.is_available():
        return
    for layer in model.modules():
        if isinstance(layer, torch.nn.Linear) and type(layer.weight.data).__name__ == "Int4Tensor":
            layer.weight = torch.nn.Parameter(dequantize_int4(layer.weight.data), requires_grad=False)


class _Worker:
    def __init__(self, connection: Connection, options: WorkerOptions) -> None:
        torch.set_num_threads(options.threads)
        self.connection, self.options = connection, options
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.tokenizer: Any = AutoTokenizer.from_pretrained(options.folder)
        dtype = getattr(torch, options.dtype)
        if options.random_weights:
            config = AutoConfig.from_pretrained(options.folder, trust_remote_code=options.trust_remote_code)
            with torch.device(self.device):
                self.model: Any = AutoModelForCausalLM.from_config(
                    config, dtype=dtype, trust_remote_code=options.trust_remote_code
                )
        else:
            self.model = AutoModelForCausalLM.from_pretrained(
                options.folder, dtype=dtype, trust_remote_code=options.trust_remote_code
            ).to(self.device)
        self.model.eval()
        if options.quantize_at_load is not None:
            Scheme.of(options.quantize_at_load).quantize_model(self.model)
        _without_int4(self.model)
        eos = self.model.generation_config.eos_token_id
        if eos is None:
            eos = self.tokenizer.eos_token_id
        self.eos = torch.tensor([] if eos is None else eos, device=self.device).flatten()
        # What stands in the checkpoint's generation_config.json would fill every gap in a batch's own settings: an end
        # token where there is to be none, a repetition penalty. As in vLLM, only the request counts.
        self.model.generation_config = GenerationConfig()
        self.pad = int(self.tokenizer.pad_token_id or self.tokenizer.eos_token_id or 0)
        self.waiting: deque[Question] = deque()
        self.size = 0  # of the last batch
        self.arrived = threading.Condition()
        self.aborted: set[str] = set()

    def read(self) -> None:
        """Take in what the parent sends."""
        while True:
            try:
                kind, what = self.connection.recv()
            except (EOFError, OSError):
                os._exit(0)  # closed by the parent, or the parent is gone: nobody waits for a batch under way
            with self.arrived:
                if kind == "abort":
                    self.aborted.add(what)
                else:
                    self.waiting.append(what)
                self.arrived.notify()

    def gather(self) -> list[Question]:
        """Return the next batch, of requests with the same sampling."""
        with self.arrived:
            self.arrived.wait_for(lambda: self.waiting)
            seen = -1
            while seen < len(self.waiting) < self.options.max_batch:
                seen = len(self.waiting)
                self.arrived.wait(_GATHER_S if max(seen, self.size) > 1 else _ALONE_S)
            first, others = self.waiting[0], deque[Question]()
            batch: list[Question] = []
            while self.waiting:
                question = self.waiting.popleft()
                fits = question.sampling == first.sampling and len(batch) < self.options.max_batch
                (batch if fits else others).append(question)
            self.waiting = others
            self.size = len(batch)
            return batch

    def answer(self, batch: list[Question]) -> None:
        """Run one batch to its end."""
        first, longest = batch[0], max(len(question.token_ids) for question in batch)
        ids = [[self.pad] * (longest - len(question.token_ids)) + question.token_ids for question in batch]
        mask = [[0] * (longest - len(question.token_ids)) + [1] * len(question.token_ids) for question in batch]
        config = GenerationConfig(
            max_new_tokens=max(question.max_tokens - len(question.answered) for question in batch),
            do_sample=first.temperature > 0,
            temperature=first.temperature if first.temperature > 0 else None,
            top_p=first.top_p if first.temperature > 0 else None,
            top_k=first.top_k if first.temperature > 0 else None,
            min_p=first.min_p or None if first.temperature > 0 else None,
            pad_token_id=self.pad,
            eos_token_id=None,
            use_cache=True,
        )
        if first.seed is not None:
            torch.manual_seed(first.seed)
        steps = _Steps(self, batch, longest, time.perf_counter())
        processors: list[Any] = [] if steps.logprobs is None else [steps.logprobs]
        if any(question.shifts != Shifts() for question in batch):
            begins = [(longest - len(question.token_ids), longest - len(question.answered)) for question in batch]
            processors.append(Penalties([question.shifts for question in batch], begins))
        if any(question.guide for question in batch):
            size = self.model.get_output_embeddings().weight.shape[0]
            guides = [question.guide for question in batch]
            processors.append(Guides(guides, self.tokenizer, size, self.eos.tolist()))
        with torch.inference_mode():
            self.model.generate(
                torch.tensor(ids, device=self.device),
                attention_mask=torch.tensor(mask, device=self.device),
                generation_config=config,
                stopping_criteria=[steps],
                logits_processor=processors,
            )
        steps.finish()


class _Steps(StoppingCriteria):  # type: ignore[misc]
    """Called after each step of a batch: passes pieces on, and says which rows are done."""

    def __init__(self, worker: _Worker, batch: list[Question], prompt: int, began: float) -> None:
        self.worker, self.batch, self.prompt, self.began = worker, batch, prompt, began
        self.tokens = [list(question.answered) for question in batch]
        self.streams = [DecodeStream(skip_special_tokens=one.skip_special_tokens) for one in batch]
        wanted = [question.logprobs for question in batch]
        reported = any(one is not None for one in wanted)
        self.logprobs = Logprobs(wanted, worker.tokenizer) if reported else None
        self.noted: list[list[TokenLogprob]] = [[] for _ in batch]
        decoder = worker.tokenizer.backend_tokenizer
        pairs = zip(self.streams, batch, strict=True)
        self.texts = ["".join(stream.step(decoder, one) or "" for one in asked.answered) for stream, asked in pairs]
        self.pieces: list[tuple[str, int, str, tuple[TokenLogprob, ...]]] = []
        self.sent = [question.answered_text for question in batch]
        self.reason: list[str | None] = [None] * len(batch)
        self.first, self.told = 0.0, began
        self.eos = set(worker.eos.tolist())
        # Text is needed at each step only where it is streamed or searched.
        self.reading = [question.stream or bool(question.stop) for question in batch]

    def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:  # noqa: ARG002 - transformers' signature
        newest = input_ids[:, -1].tolist()
        now = time.perf_counter()
        self.first = self.first or now
        for row, (question, token) in enumerate(zip(self.batch, newest, strict=True)):
            if self.reason[row] is None:
                self._step(row, question, token)
        if self.pieces:  # one message a step, not one a row
            self.worker.connection.send(("pieces", self.pieces))
            self.pieces, self.told = [], now
        elif now - self.told > _BEAT_S:
            self.worker.connection.send(("beat",))
            self.told = now
        return torch.tensor([reason is not None for reason in self.reason], device=input_ids.device)

    def _step(self, row: int, question: Question, token: int) -> None:
        self.tokens[row].append(token)
        if self.logprobs is not None and (noted := self.logprobs.of(row, token)) is not None:
            self.noted[row].append(noted)
        if question.id in self.worker.aborted:
            self.reason[row] = "abort"
        elif token in self.eos and not question.ignore_eos:
            self.reason[row] = "stop"
        elif len(self.tokens[row]) >= question.max_tokens:
            self.reason[row] = "length"
        if self.reading[row]:
            self.texts[row] += self.streams[row].step(self.worker.tokenizer.backend_tokenizer, token) or ""
        elif self.reason[row] is None:
            return
        # The stream keeps back the bytes of an unfinished character; at the end they belong to the text.
        text = self.texts[row] if self.reason[row] is None else self._text(row)
        cut = min((at for stop in question.stop if (at := text.find(stop)) >= 0), default=-1)
        if cut >= 0:
            text, self.reason[row] = text[:cut], "stop"
        if self.reason[row] is not None:
            self._done(row, question, text)
        elif question.stream:
            self._piece(row, question, text)

    def _text(self, row: int) -> str:
        skip = self.batch[row].skip_special_tokens
        # The token that has ended it is no text of it, also where special tokens are shown.
        tokens = self.tokens[row][:-1] if self.reason[row] == "stop" else self.tokens[row]
        text: str = self.worker.tokenizer.decode(tokens, skip_special_tokens=skip)
        return text

    def _piece(self, row: int, question: Question, text: str) -> None:
        # What may be the start of a stop text waits for the next step.
        held = max((_overlap(text, stop) for stop in question.stop), default=0)
        new = text[len(self.sent[row]) : len(text) - held]
        self.sent[row] += new
        self.pieces.append((question.id, self.tokens[row][-1], new, tuple(self.noted[row][-1:])))

    def _done(self, row: int, question: Question, text: str) -> None:
        now = time.perf_counter()
        fields = {
            "text": text[len(self.sent[row]) :],
            "token_ids": self.tokens[row][-1:] if question.stream else self.tokens[row],
            "logprobs": tuple(self.noted[row][-1:] if question.stream else self.noted[row]),
            "finish_reason": self.reason[row],
            "output_tokens": len(self.tokens[row]),
            # One clock for all processes of a machine, on Linux.
            "queue_time_s": self.began - question.sent,
            "time_to_first_token_s": self.first - question.sent,
            "inference_time_s": now - question.sent,
        }
        self.worker.connection.send(("done", question.id, fields))

    def finish(self) -> None:
        """Close what generate() ended of itself, at the model's own longest length."""
        for row, question in enumerate(self.batch):
            if self.reason[row] is None:
                self.reason[row] = "length"
                self._done(row, question, self._text(row))


def _overlap(text: str, stop: str) -> int:
    """Return how many characters at the end of `text` may be the beginning of `stop`."""
    return next((size for size in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:size])), 0)
