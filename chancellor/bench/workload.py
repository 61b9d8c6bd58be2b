"""What is asked: synthetic lengths, a file of questions, or the turns of an agent."""

import json
import random
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from chancellor.bench.words import TextMaker
from chancellor.errors import WorkloadError

__all__ = ["AgentTurns", "Conversation", "Questions", "Synthetic", "Workload"]


@dataclass(frozen=True, slots=True)
class Conversation:
    """User turns that follow one another: each is sent when the answer to the one before has come."""

    turns: list[str]
    system: str | None = None
    max_tokens: list[int] = field(default_factory=list)
    """Most new tokens of each turn's answer."""


class Workload(ABC):
    """A source of conversations. The same seed gives the same ones."""

    ignore_eos: ClassVar[bool]
    """Whether every answer runs to its max_tokens, so that all targets do the same work."""
    turns: int = 1
    """Requests of a conversation."""
    longest: int | None = None
    """Tokens of the longest prompt and its answer; None where they are known only when it is rendered."""

    @property
    @abstractmethod
    def name(self) -> str:
        """What it is, in a few words; part of the report."""

    @abstractmethod
    def conversations(self, requests: int, seed: str, text: TextMaker) -> list[Conversation]:
        """Return conversations of at least `requests` turns in all.

        Args:
            requests: number of requests that will be sent.
            seed: another one for every segment of a run, or the prefix cache would know the prompts already.
            text: makes prompts of the wanted length for the model at hand.

        Raises:
            WorkloadError: they cannot be made.
        """


class Synthetic(Workload):
    """Single questions of random words: prompts of `input_tokens` tokens, answers of exactly `output_tokens`."""

    ignore_eos = True

    def __init__(self, input_tokens: int = 128, output_tokens: int = 64, *, vary: float = 0.0) -> None:
        """Set the lengths.

        Args:
            input_tokens: length of the rendered prompt.
            output_tokens: length of the answer.
            vary: lengths are drawn uniformly from (1 - vary) to (1 + vary) times these.

        Raises:
            WorkloadError: a length is below 1, or `vary` is not in [0, 1).
        """
        if input_tokens < 1 or output_tokens < 1:
            raise WorkloadError("Prompts and answers have at least one token each.", hint="Pass lengths above 0.")
        if not 0.0 <= vary < 1.0:
            raise WorkloadError(f"vary is {vary}, and has to be at least 0 and below 1.", hint="Pass e.g. 0.5.")
        self.input_tokens, self.output_tokens, self.vary = input_tokens, output_tokens, vary
        self.longest = round(input_tokens * (1 + vary)) + round(output_tokens * (1 + vary))

    @property
    def name(self) -> str:
        varied = f" +-{self.vary:.0%}" if self.vary else ""
        return f"{self.input_tokens}/{self.output_tokens}{varied}"

    def conversations(self, requests: int, seed: str, text: TextMaker) -> list[Conversation]:
        rng = random.Random(f"{seed}/text")
        # Not by the segment's seed: every target and block gets the same lengths.
        lengths = random.Random(f"{self.name}/lengths")
        return [
            Conversation([text.message(self._draw(self.input_tokens, lengths), rng)], None, [output])
            for output in (self._draw(self.output_tokens, lengths) for _ in range(requests))
        ]

    def _draw(self, tokens: int, rng: random.Random) -> int:
        if not self.vary:
            return tokens
        return max(1, round(tokens * rng.uniform(1 - self.vary, 1 + self.vary)))


class Questions(Workload):
    """The questions of a file, in order, again from the start when they are used up."""

    ignore_eos = False

    def __init__(self, questions: Sequence[str], *, max_tokens: int = 64, name: str = "questions") -> None:
        """Take the questions.

        Raises:
            WorkloadError: there are none, or one is blank.
        """
        if not questions:
            raise WorkloadError("There is no question to ask.", hint="Give at least one.")
        if any(not question.strip() for question in questions):
            raise WorkloadError("A question is empty.", hint="Leave empty questions out.")
        self.questions, self.max_tokens, self._name = list(questions), max_tokens, name

    @classmethod
    def read(cls, path: Path, *, max_tokens: int = 64) -> "Questions":
        """Read a file: a question a line, or JSON lines with "question", "prompt" or "messages" (its last user turn).

        Raises:
            WorkloadError: it cannot be read, holds nothing, or has a line without a question.
        """
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise WorkloadError(
                f"The questions in {path} cannot be read: {error}.", hint="Check --questions."
            ) from error
        numbered = [(number, line) for number, line in enumerate(lines, 1) if line.strip()]
        if not numbered:
            raise WorkloadError(f"{path} holds no question.", hint="Write one a line.")
        as_json = path.suffix in {".jsonl", ".ndjson", ".json"}
        found = [_question(path, number, line) if as_json else line.strip() for number, line in numbered]
        return cls(found, max_tokens=max_tokens, name=path.name)

    @property
    def name(self) -> str:
        return f"{self._name}, {self.max_tokens} tokens at most"

    def conversations(self, requests: int, seed: str, text: TextMaker) -> list[Conversation]:  # noqa: ARG002 - fixed
        count = len(self.questions)
        return [Conversation([self.questions[i % count]], None, [self.max_tokens]) for i in range(requests)]


class AgentTurns(Workload):
    """Agents with one long system prompt in common, each with several turns over its growing conversation."""

    ignore_eos = True

    def __init__(
        self, *, prefix_tokens: int = 512, turns: int = 4, input_tokens: int = 48, output_tokens: int = 32
    ) -> None:
        """Set the lengths: of the shared prefix, and of each turn's message and answer.

        Raises:
            WorkloadError: one of them is below 1.
        """
        if min(prefix_tokens, turns, input_tokens, output_tokens) < 1:
            raise WorkloadError("An agent's lengths and turns are at least 1.", hint="Pass numbers above 0.")
        self.prefix_tokens, self.turns = prefix_tokens, turns
        self.input_tokens, self.output_tokens = input_tokens, output_tokens
        # At least: a word may be more than one token, and the template has some of its own.
        self.longest = prefix_tokens + turns * (input_tokens + output_tokens)

    @property
    def name(self) -> str:
        return f"agent: prefix {self.prefix_tokens}, {self.turns} turns of {self.input_tokens}/{self.output_tokens}"

    def conversations(self, requests: int, seed: str, text: TextMaker) -> list[Conversation]:
        rng = random.Random(f"{seed}/text")
        system = f"You are a helpful agent. {text.words(self.prefix_tokens, rng)}"
        agents = -(-requests // self.turns)
        return [
            Conversation(
                [text.words(self.input_tokens, rng) for _ in range(self.turns)],
                system,
                [self.output_tokens] * self.turns,
            )
            for _ in range(agents)
        ]


def _question(path: Path, number: int, line: str) -> str:
    where = f"Line {number} of {path}"
    try:
        entry: Any = json.loads(line)
    except ValueError as error:
        raise WorkloadError(f"{where} is no JSON: {error}.", hint="Write one JSON object a line.") from error
    if isinstance(entry, dict):
        for key in ("question", "prompt"):
            if isinstance(entry.get(key), str) and entry[key].strip():
                return str(entry[key])
        for message in reversed(entry.get("messages") or []):
            if isinstance(message, dict) and message.get("role") == "user" and str(message.get("content")).strip():
                return str(message["content"])
    if isinstance(entry, str) and entry.strip():
        return entry
    raise WorkloadError(f"{where} has no question.", hint='It needs "question", "prompt" or "messages".')
