"""Messages on the line between a program and an engine in a process of its own."""

import pickle
import socket

import pytest

from chancellor.engines import Delta, TokenLogprob
from chancellor.engines.vllm_apart_wire import Frames, framed, packed, portable, receive, unpacked
from chancellor.errors import ChancellorError, PromptTooLongError


def test_pieces_of_messages() -> None:
    bytes_ = framed(["one"]) + framed({"two": 2}) + framed("x" * 1000)
    frames, found = Frames(), []
    for at in range(0, len(bytes_), 7):
        found += frames.feed(bytes_[at : at + 7])
    assert found == [["one"], {"two": 2}, "x" * 1000]


def test_the_other_end_is_gone() -> None:
    ours, theirs = socket.socketpair()
    theirs.sendall(framed("whole") + b"\0\0")
    theirs.close()
    with ours:
        frames = Frames()
        assert receive(ours, frames) == ["whole"]
        with pytest.raises(EOFError):
            receive(ours, frames)


@pytest.mark.parametrize(
    "delta",
    [
        Delta("a", (1, 2)),
        Delta("", (3,), reasoning="hm"),
        Delta("a", (1,), logprobs=(TokenLogprob(1, "a", -0.5),)),
        Delta("", finish_reason="length", output_tokens=3),
        Delta("", model="other"),
    ],
)
def test_deltas_come_back_as_they_were(delta: Delta) -> None:
    assert unpacked(pickle.loads(pickle.dumps(packed(delta)))) == delta


def test_errors_that_cannot_be_pickled() -> None:
    error = PromptTooLongError("Too long.", hint="Be brief.")
    error.partial = lambda: None  # type: ignore[attr-defined]
    found = portable(error)
    assert (type(found), found.message, found.hint) == (PromptTooLongError, "Too long.", "Be brief.")
    assert isinstance(pickle.loads(pickle.dumps(portable(ValueError("bad")))), ChancellorError)
