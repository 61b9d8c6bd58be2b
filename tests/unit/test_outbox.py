"""Messages to a process that may not take them."""

import multiprocessing
import os
import threading
from collections.abc import Callable

from chancellor.engines.outbox import Outbox

LARGE = b"x" * 200_000  # more than a pipe holds


def waited(what: Callable[[], bool]) -> bool:
    pause = threading.Event()
    return any(what() or pause.wait(0.02) for _ in range(500)) or what()


def closed(number: int) -> bool:
    try:
        os.fstat(number)
    except OSError:
        return True
    return False


def test_messages_arrive_in_their_order() -> None:
    ours, theirs = multiprocessing.Pipe()
    outbox, number = Outbox(ours, lambda: None), ours.fileno()
    for message in range(100):
        outbox.put(message)
    outbox.close()
    assert [theirs.recv() for _ in range(100)] == list(range(100))
    assert waited(lambda: closed(number))
    theirs.close()


def test_who_sends_does_not_wait_for_who_reads() -> None:
    ours, theirs = multiprocessing.Pipe()
    outbox = Outbox(ours, lambda: None)
    for _ in range(20):  # the first alone fills it
        outbox.put(LARGE)
    assert [theirs.recv() for _ in range(20)] == [LARGE] * 20
    outbox.close()
    theirs.close()


def test_the_other_end_is_gone_in_the_middle_of_a_message() -> None:
    lost = threading.Event()
    ours, theirs = multiprocessing.Pipe()
    outbox, number = Outbox(ours, lost.set), ours.fileno()
    outbox.put(LARGE)
    outbox.put(LARGE)
    theirs.close()
    assert lost.wait(10)
    outbox.put("more")  # goes nowhere
    assert not closed(number)
    outbox.close()
    assert waited(lambda: closed(number))
