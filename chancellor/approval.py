"""Whether a text only approves what was proposed."""

import re
from typing import Final

__all__ = ["approves"]

_FEW_WORDS: Final = 8
_FEW_CHARACTERS: Final = 300
"""More than these are not looked at: a long text without spaces is one word."""
_SIGNS: Final = frozenset("\U0001f44d\U0001f44c\U0001f64c\U0001f91d\U0001f4af\U0001f680\u2705\u2714")
"""Thumbs up, and the like."""
_WORD: Final = re.compile(rf"[^\W_]+(?:'[^\W_]+)*|[{''.join(_SIGNS)}]|^\+1$")
_NO_PROSE: Final = re.compile(
    r"[?\uff1f<>{}|\\^$@`\U0001f44e\u274c\u26d4\U0001f6d1]|#(?!\d)|(?:\d|\b[a-z])\s*[/=+*%]\s*(?:\d|[a-z]\b)|"
    r"^do (?:you|we|i)\b|\bit works\b|\b(?:nice|good|great|cool|awesome|excellent|fine|perfect) try\b",
    re.IGNORECASE,
)
"""Questions, formulas, code, thumbs down, and what only sounds like approval."""
_EMPHASIS: Final = re.compile(r"(?<!\w)\*+(?=\S)|(?<=\S)\*+(?!\w)")


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_ANYWHERE: Final = _words("ok okay okey k option")
_NOUNS: Final = _words("approach plan version way idea solution suggestion proposal variant changes change step steps")
_ACTS: Final = _words("implement apply run start begin execute deploy commit push merge ship try finish")
_MAKING: Final = _words("write build create add make fix send draft")
_NUMBERS: Final = re.compile(r"\d+|[b-d]")
_LANGUAGES: Final[tuple[tuple[frozenset[str], frozenset[str]], ...]] = (
    (  # English
        _words(
            """y ya yes yep yup yeah yea aye sure please go going continue proceed do carry agree agreed absolutely
            definitely certainly indeed good fine right alright perfect great excellent awesome cool nice
            exactly correct affirmative lgtm approve approved accept accepted confirm confirmed works deal use
            take pick choose"""
        ),
        _words(
            """it that this them those these so then now all both on ahead with for keep sounds looks seems makes
            sense that's let's let us the an a of to me i you we very much course and just first second third
            last one two three number thanks thank thx ty"""
        )
        | _NOUNS
        | _ACTS
        | _MAKING,
    ),
    (  # German
        _words(
            """ja jo jawohl gerne gern genau klar natürlich passt einverstanden weiter los bitte gut super perfekt
            prima richtig stimmt ordnung mach mache fahr setz leg nimm freigegeben genehmigt"""
        ),
        _words(
            """so es das dies dann jetzt alles beide mit die der den dem erste ersten zweite zweiten dritte dritten
            variante in um fort klingt sieht aus sehr danke dir vielen dank doch einfach und"""
        ),
    ),
    (  # French
        _words(
            """oui ouais d'accord vas allez continue continuez parfait bien bon sûr exactement exact entendu
            volontiers marche fais faites procède procédez validé approuvé prends prenez"""
        ),
        _words(
            """y le la les ça c'est s'il te vous plaît plait merci beaucoup très tout avec première premier
            deuxième seconde troisième solution approche l'option cela et"""
        ),
    ),
    (  # Spanish
        _words(
            """sí si claro vale adelante continúa continua continúe sigue siga acuerdo perfecto exacto correcto
            hazlo dale bien bueno procede proceda aprobado usa usemos toma"""
        ),
        _words(
            """por favor gracias muchas está esta eso así de con la el las los primera primero segunda segundo
            tercera opción opcion todo muy y supuesto"""
        ),
    ),
    (  # Italian
        _words(
            """sì si certo bene d'accordo procedi proceda continua continui avanti perfetto esatto giusto vai fallo
            approvato usa prendi ottimo"""
        ),
        _words(
            """va vado pure per favore grazie mille con la il prima primo seconda secondo terza opzione così tutto
            questo e molto"""
        ),
    ),
    (  # Portuguese
        _words(
            """sim claro continua continue prossiga siga perfeito certo exato exatamente ótimo bom boa bem vai vá
            pode concordo aprovado combinado faça faz use"""
        ),
        _words(
            """por favor obrigado obrigada muito está tudo isso assim em frente com a o primeira primeiro segunda
            segundo terceira opção continuar prosseguir seguir fazer e"""
        ),
    ),
    (  # Dutch
        _words(
            """ja jawel graag zeker prima akkoord goed perfect precies klopt doe doen ga verder doorgaan uitstekend
            top natuurlijk goedgekeurd gebruik neem"""
        ),
        _words(
            """door maar is het dat dit zo dan nu alles met de eerste tweede derde optie aanpak alsjeblieft
            alstublieft aub dank bedankt je u wel gang en heel klinkt ziet er uit"""
        ),
    ),
)
"""Of each language the words that approve, and what may stand beside them: any other word is work of its own."""
_UNSPACED: Final = re.compile(
    r"[请請]*(?:好的?|可以|[是对對]的?|行|没问题|沒問題|同意|当然|當然|[没沒][错錯]|继续|繼續|就这样|就這樣|就这么办|开始|開始|做|[吧啊呀呢了]|谢谢|謝謝)+"
    r"|(?:それで|そのまま)?(?:はい|ええ|うん|いいです|いいよ|了解|承知しました|わかりました|もちろん|その通り|賛成|大丈夫|どうぞ|"
    r"お願い(?:します)?|続けて|進めて|やって|です|ください|ね)+"
)
"""The same for Chinese and Japanese, where what stands between two commas is one word."""
_BARE: Final = re.compile(r"[请請吧啊呀呢了]+|谢谢[了你]?|謝謝|(?:です|ください|ね)+")
"""What stands beside a word of these, and approves nothing by itself."""


def approves(text: str) -> bool:
    """Return whether a text is a few words of approval, such as "yes, go ahead with option 2", and nothing besides.

    Known are eight words, and 300 characters, at most of English, German, French, Spanish, Italian, Portuguese, Dutch,
    Chinese or Japanese, and a few signs, by tables. What has any other word in it, or a question mark, is work of its
    own.
    """
    text = text.strip()
    if len(text) > _FEW_CHARACTERS or len(text.split(None, _FEW_WORDS)) > _FEW_WORDS:
        return False
    text = _EMPHASIS.sub("", text).strip()
    if _NO_PROSE.search(text):
        return False
    words = [found.group().casefold() for found in _WORD.finditer(text.replace("\u2019", "'"))]
    left = [word for word in words if word not in _SIGNS and word != "+1" and not _UNSPACED.fullmatch(word)]
    if all(_BARE.fullmatch(word) for word in words):
        return False
    return not left or any(_all_approve(left, *tables) for tables in _LANGUAGES)


def _all_approve(words: list[str], approving: frozenset[str], beside: frozenset[str]) -> bool:
    others = [word for word in words if word not in approving and word not in _ANYWHERE]
    if len(others) == len(words) or not all(word in beside or _NUMBERS.fullmatch(word) for word in others):
        return False
    return not _orders(words, approving)


def _orders(words: list[str], approving: frozenset[str]) -> bool:
    """Return whether something new is ordered in English: "please write a plan", while "yes, write it" approves."""
    acts = [place for place, word in enumerate(words) if word in _ACTS or word in _MAKING]
    assent = (
        word != "please" and (word in approving or word in _ANYWHERE) for word in words[: acts[0] if acts else None]
    )
    if not acts:
        return not _NOUNS.isdisjoint(words) and not any(assent)
    new = {"a", "an"} | (_NOUNS if not _MAKING.isdisjoint(words) else frozenset())
    return not any(assent) or not new.isdisjoint(words[acts[0] :])
