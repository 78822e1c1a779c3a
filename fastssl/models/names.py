"""What characters are called: the phrases glyph_clip's text tower is trained on, and the prompts a class name turns into."""

from __future__ import annotations

import functools
import unicodedata
from collections.abc import Sequence

DIGITS = "0123456789"
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
# No character that is another one's twin once its size and place are lost (full stop and middle dot, omicron and o, ...):
# a tight crop shows both alike, and the loss would only teach that a coin was thrown.
GREEK = "αβγδεζηθκλμξπρστφχψωΓΔΘΛΞΠΣΦΨΩ"
CYRILLIC = "джийфцшщыюяБДЖИЙФЦЮЯЭ"
SYMBOLS = "!#$%&()*+/<=>?@[]{}~÷×±≠≤≥≈∞∫√∂∇∈∀∃∅∩∪⊂⊃⊕←→↑↓↔€£¥§¶†©½¼"
CHARACTERS = DIGITS + LETTERS + GREEK + CYRILLIC + SYMBOLS

_NUMBER_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
TEMPLATES = (
    "{}",
    "a {}",
    "the {}",
    "the character {}",
    "the sign {}",
    "handwritten {}",
    "a written {}",
    "a picture of {}",
    "a photo of a {}.",
    "an image of the {}",
)


@functools.cache
def phrases(character: str) -> tuple[str, ...]:
    """Names of one character, the Unicode name first: '3' -> 'digit three', 'three', '3', 'the digit 3', ..."""
    name = unicodedata.name(character).lower()
    if character in DIGITS:
        word = _NUMBER_WORDS[int(character)]
        return (
            name,
            word,
            character,
            f"digit {character}",
            f"number {word}",
            f"number {character}",
            f"figure {word}",
            f"numeral {character}",
        )
    if character in LETTERS:
        case, plain = ("capital", "uppercase") if character.isupper() else ("small", "lowercase")
        return (name, character, f"{case} letter {character}", f"{plain} {character}", f"letter {character}", f"{case} {character}")
    short = name.removesuffix(" sign").replace(" letter", "")
    return tuple(dict.fromkeys((name, short, character)))


@functools.cache
def _owners() -> dict[str, str]:
    return {phrase: character for character in reversed(CHARACTERS) for phrase in phrases(character)}


def prompts(name: str, templates: Sequence[str] = TEMPLATES) -> list[str]:
    """Prompts whose mean embedding stands for the class `name`.

    A character, or any phrase that `phrases` lists for one, becomes all phrases of that character; any other name stands alone.
    Each is put into every template, at its {}.
    """
    text = " ".join(name.replace("_", " ").split())
    owners = _owners()
    character = owners.get(text) or owners.get(text.lower())
    known = phrases(character) if character else (text,)
    return [template.replace("{}", phrase) for phrase in known for template in templates]
