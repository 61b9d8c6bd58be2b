"""Which texts do no more than approve, and which are work of their own."""

import pytest

from chancellor.approval import approves

APPROVALS = [
    *("Yes please, implement it", "ok go ahead and implement that", "yes, use the first approach", "approved"),
    *(
        "makes sense, proceed",
        "lgtm",
        "LGTM!",
        "\U0001f44d",
        "\U0001f44d\U0001f3fd",
        "+1",
        "\u2705 go",
        "ok \U0001f44d",
    ),
    *(
        "I agree",
        "go for it",
        "Deal, do it",
        "looks good to me",
        "works for me",
        "Approved, go ahead",
        "yes, do both",
        "Sounds good, merge it",
    ),
    *("Confirmed", "All right, please continue", "Sure, ship it", "Let's go with the second option", "cool, do that"),
    *("Okay, write it", "yes, apply the changes and continue", "Use option B", "Alright", "K"),
    *("option #2", "Yes, go ahead with option #2", "**yes**", "yes *please*", "yes/ok", "yes +1", "ok =)", "* yes"),
    *("yes - 100%", "that works", "yes, try it"),
    *("ja, mach weiter", "Ja, bitte", "Klingt gut, danke", "gerne", "Passt, leg los!", "in Ordnung", "Genau so"),
    *("ok, setz es um", "Nimm die zweite Variante"),
    *("oui", "Oui, vas-y", "d'accord, continuez", "D\u2019accord", "Parfait, merci", "c'est bon", "bien sûr"),
    *("sí", "Sí, por favor", "vale, adelante", "De acuerdo, continúa", "claro, hazlo", "está bien"),
    *("sì, procedi", "Va bene", "certo, vai avanti", "perfetto, grazie"),
    *("sim", "Sim, pode continuar", "claro, por favor", "vá em frente", "Está bem"),
    *("ja, ga verder", "prima, doe maar", "Akkoord", "ja graag, dank je wel", "is goed"),
    *("好的", "好的\uff0c请继续", "可以", "没问题\uff0c继续吧", "同意", "是的。", "請繼續", "OK\uff0c继续"),
    *("はい", "はい、お願いします", "続けてください", "了解です、進めてください", "いいですね", "それでお願いします"),
]
WORK = [
    *("yes, but also write a parser for CSV files", "Yes, and add a test for the parser", "ok, now explain it"),
    *("Sure, what is 2+2?", "no", "No, go on without it", "yes and no", "don't", "stop", "wait", "\U0001f44e"),
    *("ok \u274c", "Please design a distributed rate limiter", "Correct my grammar", "Go to Rome", "Do the dishes"),
    *("Good morning", "Write a poem", "Fix the bug in line 3", "implement a stack", "Implement it", "thanks", "2"),
    *("Use Python instead", "Take me to your leader", "pick a random number", "ok: 2+2", "1 + 1", "go test ./..."),
    *(
        "Do you agree",
        "Make a plan",
        "start",
        "the first one",
        "sounds strange",
        "right, but why",
        "Yes, in French",
        "ok `rm -rf`",
    ),
    *("Please write a plan", "make it good", "please fix the design", "the solution please", "ok, write a proposal"),
    *("Great, now create the version", "Yes, implement a solution", "bitte um Vorschlag", "faça o plano"),
    *(
        "nice try",
        "it works",
        "Good try!",
        "ok: 2*3",
        "ok, 6/3",
        "do a/b",
        "ok, 5 % 2",
        "do 3 = 3",
        "yes # no",
        "2 * 3",
    ),
    *("please fix #5", "approve $5"),
    *("ja, aber schreib auch einen Parser", "nein", "Weiter im Text mit Kapitel zwei bis neun und dann Schluss"),
    *("bitte übersetze das", "oui, mais en anglais", "non", "sí, pero en inglés", "no, gracias", "sì, ma in inglese"),
    *("sim, mas em inglês", "não", "ja, maar in het Engels", "nee", "gebruik Python"),
    *(
        "不",
        "谢谢",
        "请",
        "ください",
        "不好",
        "好的\uff0c但是用英文写",
        "OK \u8bf4",
        "可以吗\uff1f",
        "写一首诗",
        "いいえ",
        "はい、でも英語で",
        "続きを書いて",
    ),
    *("", "   ", "...", "!!!", "\U0001f600", "yes " * 9, "好的" * 200),
]


@pytest.mark.parametrize("text", APPROVALS)
def test_it_approves(text: str) -> None:
    assert approves(text)
    assert approves(f"  {text.upper()}\n")


@pytest.mark.parametrize("text", WORK)
def test_it_is_work_of_its_own(text: str) -> None:
    assert not approves(text)
