"""A tokenizer for models without weights: made on the spot, of any size, with an id for every entry of the model.

It is a byte-level BPE, so that it encodes any text and gives it back. A common English word is one token, a rare one
a few; the ids that are left decode to made-up words, for a random model samples them all.
"""

import json
import tomllib
from collections.abc import Iterable, Iterator
from functools import cache
from importlib.resources import files
from itertools import chain, count, product
from pathlib import Path
from string import ascii_lowercase, ascii_uppercase, digits
from typing import Any, Final

__all__ = ["SMALLEST_VOCABULARY", "VOCABULARY_FORMAT", "write_tokenizer"]

VOCABULARY_FORMAT: Final = 1
"""Changes with what is written."""
SMALLEST_VOCABULARY: Final = 512
"""Below this there is no room for the 256 bytes and the special tokens."""
_BEGIN, _START, _END = "<|begin|>", "<|im_start|>", "<|im_end|>"
_TEMPLATE: Final = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_SPACE: Final = "\u0120"  # how byte-level vocabularies write a space
_CONSONANTS, _VOWELS = "bdfgjklmnprstvz", "aeiou"


def write_tokenizer(folder: Path, size: int, *, bos: int | None, eos: int | None, max_length: int) -> None:
    """Write tokenizer.json and tokenizer_config.json.

    Args:
        folder: where to.
        size: number of ids, from `SMALLEST_VOCABULARY` on.
        bos: id of the token that begins a text, where the model has one.
        eos: id of the token that ends a turn; None takes the first one free.
        max_length: longest text that the model takes, in tokens.
    """
    special = _special(size, bos, eos)
    free = _tokens()
    vocabulary = {special[number] if number in special else next(free): number for number in range(size)}
    tokenizer = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [_added(number, special[number]) for number in sorted(special)],
        "normalizer": None,
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
        "post_processor": None,
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": True,  # a whole word of the vocabulary is one token, whatever the merges make of it
            "vocab": vocabulary,
            "merges": [f"{one} {two}" for one, two in _merges() if {one, two, one + two} <= vocabulary.keys()],
        },
    }
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": None if bos is None else special.get(bos, _END),
        "eos_token": _END,
        "pad_token": _END,
        "clean_up_tokenization_spaces": False,
        "model_max_length": max_length,
        "chat_template": _TEMPLATE,
    }
    _write(folder / "tokenizer.json", tokenizer)
    _write(folder / "tokenizer_config.json", config)


def _special(size: int, bos: int | None, eos: int | None) -> dict[int, str]:
    """Return the special tokens by their ids."""
    special: dict[int, str] = {}
    for number, token in ((eos, _END), (bos, _BEGIN)):
        if number is not None and 0 <= number < size:
            special.setdefault(number, token)
    for token in (_END, _START):
        if token not in special.values():
            special[next(number for number in count() if number not in special)] = token
    return special


def _tokens() -> Iterator[str]:
    """Yield the ordinary tokens without end, the most useful ones first."""
    words = _data()["words"].split()
    capitals = (form for word in words for form in (word, word.capitalize()))
    inflected = (word + ending for word in words for ending in _data()["endings"].split())
    merged = (left + right for left, right in _merges())
    seen: set[str] = set()
    for token in chain(_alphabet(), _spaced(capitals), merged, _spaced(inflected), _made_up()):
        if token not in seen:
            seen.add(token)
            yield token


def _spaced(words: Iterable[str]) -> Iterator[str]:
    """Yield each word as it stands within a text and at its beginning."""
    for word in words:
        yield from (_SPACE + word, word)


def _made_up() -> Iterator[str]:
    """Yield words that can be spoken."""
    syllables = [consonant + vowel for consonant, vowel in product(_CONSONANTS, _VOWELS)]
    for length in count(3):
        for word in product(syllables, repeat=length):
            yield _SPACE + "".join(word)


@cache
def _merges() -> list[tuple[str, str]]:
    """Return what grows together in a word that is not of the vocabulary, the first first."""
    frequent = [(pair[0], pair[1]) for pair in _data()["pairs"].split()]
    pairs = dict.fromkeys([*frequent, *product(ascii_lowercase, ascii_lowercase)])
    # "i" + "on" and "io" + "n": which of them comes up depends on the pairs that were joined before.
    triples = [split for one in _data()["triples"].split() for split in ((one[0], one[1:]), (one[:2], one[2]))]
    joined = [left + right for left, right in frequent]
    return [
        *pairs,
        *product(digits, digits),
        (_SPACE, _SPACE),
        (_SPACE * 2, _SPACE * 2),
        *dict.fromkeys(triples),
        *dict.fromkeys((_SPACE, left + right) for left, right in (*pairs, *triples)),
        *((_SPACE, letter) for letter in ascii_lowercase + ascii_uppercase),
        *product(joined, joined),
    ]


@cache
def _alphabet() -> list[str]:
    """Return the letter that stands for each byte: the byte's own where it can be printed, else one from 256 on."""
    printable = {*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAC + 1), *range(0xAE, 0xFF + 1)}
    others = count(256)
    return [chr(byte if byte in printable else next(others)) for byte in range(256)]


@cache
def _data() -> dict[str, str]:
    return tomllib.loads(files("chancellor.checkpoints").joinpath("words.toml").read_text(encoding="utf-8"))


def _added(number: int, token: str) -> dict[str, Any]:
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return {"id": number, "content": token, **flags}


def _write(file: Path, content: dict[str, Any]) -> None:
    file.write_text(json.dumps(content, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
