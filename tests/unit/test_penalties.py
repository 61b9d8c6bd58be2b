"""What changes the logits in the worker of a TransformersEngine."""

import pytest

torch = pytest.importorskip("torch")

from transformers import RepetitionPenaltyLogitsProcessor  # noqa: E402

from chancellor.engines.transformers_guides import Penalties, Shifts  # noqa: E402

PAD, PROMPT, ANSWER = 0, 2, 5
IDS = torch.tensor([[PAD, PAD, PROMPT, PROMPT, ANSWER, ANSWER]])
BEGINS = [(2, 4)]


def shifted(shifts: Shifts) -> list[float]:
    scores = torch.tensor([[1.0, 1.0, 1.0, -1.0, -1.0, -1.0]])
    values: list[float] = Penalties([shifts], BEGINS)(IDS, scores)[0].tolist()
    return values


def test_repetition_counts_the_prompt_and_not_its_padding() -> None:
    assert shifted(Shifts(repetition=2.0)) == [1.0, 1.0, 0.5, -1.0, -1.0, -2.0]
    scores = torch.tensor([[1.0, 1.0, 1.0, -1.0, -1.0, -1.0]])
    theirs = RepetitionPenaltyLogitsProcessor(2.0)(IDS[:, 2:], scores)
    assert theirs[0].tolist() == shifted(Shifts(repetition=2.0))


def test_the_others_count_the_answer() -> None:
    assert shifted(Shifts(presence=0.5)) == [1.0, 1.0, 1.0, -1.0, -1.0, -1.5]
    assert shifted(Shifts(frequency=0.5)) == [1.0, 1.0, 1.0, -1.0, -1.0, -2.0]


def test_all_of_it_in_vllms_order() -> None:
    shifts = Shifts(presence=1.0, frequency=0.5, repetition=2.0, biases=((ANSWER, 5.0), (1, 3.0)))
    assert shifted(shifts) == [1.0, 4.0, 0.5, -1.0, -1.0, (-1.0 + 5.0) / 2.0 - 2 * 0.5 - 1.0]


def test_nothing_is_changed_where_nothing_is_asked() -> None:
    assert shifted(Shifts()) == [1.0, 1.0, 1.0, -1.0, -1.0, -1.0]
