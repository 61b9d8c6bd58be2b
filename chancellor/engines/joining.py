"""Deltas that came while their reader was busy, put together: what each chunk costs is paid once for all of them."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import chain

from chancellor.engines.base import Delta, ToolCallPiece

__all__ = ["joined", "joined_calls"]


def joined(deltas: Sequence[Delta]) -> Iterator[Delta]:
    """Yield as few deltas as say the same in the same order."""
    run: list[Delta] = []
    reached = 0
    for delta in deltas:
        places = _places(delta)
        if run and places and places[0] < reached:  # in one delta, thoughts come before text, and text before calls
            yield _one(run)
            run = []
        run.append(delta)
        reached = places[-1] if places else reached
    if run:
        yield _one(run)


def _places(delta: Delta) -> list[int]:
    return [place for place, part in enumerate((delta.reasoning, delta.text, delta.tool_calls)) if part]


def _one(run: Sequence[Delta]) -> Delta:
    if len(run) == 1:
        return run[0]
    return replace(
        run[-1],  # which has the figures, if it is the answer's last
        text="".join(delta.text for delta in run),
        token_ids=tuple(chain.from_iterable(delta.token_ids for delta in run)),
        logprobs=tuple(chain.from_iterable(delta.logprobs for delta in run)),
        reasoning="".join(delta.reasoning for delta in run),
        tool_calls=joined_calls([piece for delta in run for piece in delta.tool_calls]),
    )


def joined_calls(pieces: Sequence[ToolCallPiece]) -> tuple[ToolCallPiece, ...]:
    """Return one piece for each call: LangChain reads each piece in a chunk as a call of its own."""
    calls: dict[int, ToolCallPiece] = {}
    for piece in pieces:
        call = calls.get(piece.index)
        calls[piece.index] = (
            piece
            if call is None
            else ToolCallPiece(
                piece.index, call.id or piece.id, call.name or piece.name, call.arguments + piece.arguments
            )
        )
    return tuple(calls.values())
