"""One catalogue of all that Kuwa says to people: on terminals and on its pages, in English and Traditional Chinese.

Option help, errors and logs are in English and are not in the catalogue.
"""

from __future__ import annotations

from kuwa.home import Language
from kuwa.words.catalogue import Words
from kuwa.words.en import EN
from kuwa.words.zh_tw import ZH_TW

__all__ = ["Words", "preferred", "words_in"]


def words_in(language: Language) -> Words:
    return ZH_TW if language == "zh-TW" else EN


def preferred(accept_language: str) -> Words:
    """The texts in the language that `Accept-Language` prefers; English if it names none of ours."""
    best, found = 0.0, EN
    for part in accept_language.split(","):
        tag, _, rest = part.strip().partition(";")
        quality = _quality(rest)
        language = {"zh": ZH_TW, "en": EN}.get(tag.strip().lower().split("-")[0])
        if language is not None and quality > best:
            best, found = quality, language
    return found


def _quality(parameters: str) -> float:
    name, _, value = parameters.strip().partition("=")
    if not name:
        return 1.0
    try:
        return float(value) if name.strip() == "q" else 1.0
    except ValueError:
        return 0.0
