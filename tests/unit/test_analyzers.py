import pytest

from chancellor.analyzers import analyzer_of, rules
from chancellor.errors import UnknownChoiceError


@pytest.mark.parametrize(
    ("question", "level"),
    [
        ("What is 2+2?", "low"),
        ("Design a distributed cache", "low"),  # the ticket's rule misjudges it: few words are checked first
        ("one two three four five six seven eight nine", "low"),
        ("one two three four five six seven eight nine ten", "medium"),
        ("Please explain to me in detail how the tides of the sea work", "high"),
        ("Please EXPLAIN to me in detail how the tides of the sea work", "high"),
        ("Now, could you (compare) the tides of the sea with those of the air?", "high"),
        ("The designer of this house was an unexplained mystery to all of us then", "medium"),
        (" ".join(["word"] * 50), "medium"),
        (" ".join(["word"] * 51), "high"),
        ("a  b\n c\td   e", "low"),
    ],
)
def test_rules(question: str, level: str) -> None:
    made = rules(question)
    assert made["level"] == level
    assert made["analyzer"] == "rules"
    assert made["probability"] is None
    assert made["reasons"]


def test_unknown_analyzer() -> None:
    with pytest.raises(UnknownChoiceError, match="rules"):
        analyzer_of("oracle")
