"""Text as the tokens over which COCO's caption evaluation counts: the Penn Treebank's, in lower case.

That evaluation calls Stanford CoreNLP 3.4.1's PTBTokenizer and drops punctuation. This is a tokenizer of
our own for what reports and captions are made of: words, numbers, units, abbreviations, contractions,
brackets. Where several of its forms fit, the one that takes the most characters is taken, as there.
docs/metrics.md says on how many texts the two differ. Quirks that published numbers hold: a bracket stays
as a word ("-lrb-": only its upper-case form is dropped), "3.5x4" is 3.5 and x4, "m²" is m and ².
"""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache

PTB = "Penn Treebank tokens in lower case without punctuation, as COCO's; Chinese by characters"
"""What `ptb_words` gives, as a metric states it."""


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Which of some 190 common abbreviations keep their point was asked of the program, one after another: those
# that do anywhere; those that do with a capital alone; those that do before a number.
_WITH_POINT = _words(
    "adm al ala apr ariz assn asst atty aug ave bldg blvd bros calif capt cf cie cmdr co col colo conn "
    "corp cos cpl ct dec dept det dr ens esq est etc ext feb fla fri ft ga gen gov hon inc ind insp intl "
    "jan jr jul jun kan ky lt ltd maj mar md messrs mich minn mlle mme mo mon mont mr mrs ms mt natl neb "
    "nev nov oct okla penn pres prof pvt rd rep rev sen sep sept seq sgt sq sr st ste supt sys tel tenn "
    "thu thurs treas tue tues univ va vs vt wed wis wyo ph.d"
)
_WITH_CAPITAL = _words("ark del ill la mass miss ore pa tex wash")
_BEFORE_NUMBER = _words("art fig figs no nos op pp prop")

# Python takes "²" and "Ⅱ" for parts of a word; the program knows nothing beyond 16 bits.
_NUMERALS = "".join(
    sign for code in range(0x80, 0x10000) if unicodedata.category(sign := chr(code)) in ("No", "Nl")
)
_NEITHER = rf"{_NUMERALS}\U00010000-\U0010ffff"
_LETTER = rf"(?:[^\W\d_{_NEITHER}]|[\u0300-\u036f])"
_SIGN = rf"(?:[^\W_{_NEITHER}]|[\u0300-\u036f])"  # a letter or a digit
_END = r"(?!\w)"
_FORMS = [
    re.compile(form)
    for form in (
        rf"{_LETTER}{_SIGN}*(?:[.?!]{_LETTER}{_SIGN}*)*",  # "end.Next" has no space to be cut at
        rf"{_SIGN}+(?:[-_]{_SIGN}+)*",
        rf"(?:{_SIGN}+[.,])*{_SIGN}+(?:-{_SIGN}+)+",
        r"\d+[- \xa0]\d+/\d+",
        r"[-+]?(?:\d+|[.,:]\d+)(?:[.,:]\d+)*",
        r"[A-Z]+(?:&(?:amp;)?[A-Z]+)+",
        rf"[DLOdlo]['’]{_LETTER}{{2,}}",
        rf"{_SIGN}[\w.+-]*@{_SIGN}+(?:[.-]{_SIGN}+)*",
        r"(?:https?://|www\.)[^\s()<>\"]*[^\s()<>\".,;:!?]",
        r"[!?]+|\*+|_+|\.{2,}|-{2,}",
        rf"(?i:['’](?:s|d|m|t|re|ve|ll){_END})",
        r"&(?:amp|lt|gt|quot|nbsp);",
        r"</?[A-Za-z]\w*>",
        r"[:;]-?[()]",
    )
]
_NEGATED = re.compile(rf"({_LETTER}+)(n['’]t){_END}", re.IGNORECASE)
_INITIALS = re.compile(rf"{_LETTER}(?:\.{_LETTER})*")
_NUMBER_NEXT = re.compile(r"\.\s?\d")
_STROKED = re.compile(rf"{_SIGN}+(?:-{_LETTER}+)*")
_IN_TWO = {"cannot": 3, "gonna": 3, "gotta": 3, "wanna": 3, "lemme": 3, "gimme": 3}
_BRACKETS = (("(", "-lrb-"), (")", "-rrb-"))
_PRINTED = {
    "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-", "£": "#",
    "€": "$", "¢": "cents", "¼": "1/4", "½": "1/2", "¾": "3/4", "&amp;": "&", "&lt;": "<", "&gt;": ">",
}  # fmt: skip
_DROPPED = re.compile(r"['\"`.?,:;!“”‘’„…–—-]|\.{2,}|-{2,}|&quot;|&nbsp;")


@lru_cache(maxsize=2**12)  # the metrics of one flavour follow each other row by row
def ptb_tokens(text: str) -> tuple[str, ...]:
    """Tokens in order. One with a no-break space within ("1 1/2") counts as one for ROUGE only."""
    text = text.replace("\u00ad", "")
    tokens: list[str] = []
    place = 0
    while place < len(text):
        found = _token(text, place)
        tokens += _printed(found)
        place += len(found) or 1  # white space, or what is no token
    return tuple(tokens)


def ptb_words(text: str) -> list[str]:
    """Tokens, split at every white space as COCO's BLEU and CIDEr split them."""
    return " ".join(ptb_tokens(text)).split()


def _token(text: str, place: int) -> str:
    """The token that begins at a place; "" where none does."""
    negated = _NEGATED.match(text, place)
    if negated:
        return negated[1]
    if text[place : place + 3].lower() in ("n't", "n’t"):
        return text[place : place + 3]
    found = max((m[0] for form in _FORMS if (m := form.match(text, place))), key=len, default="")
    found = max(found, _slashed(text, place), key=len)
    if found:
        return found + "." if _keeps_point(found, text, place + len(found)) else found
    sign = text[place]
    known = unicodedata.category(sign)[0] in "PS" or sign in "¹²³¼½¾"
    return sign if known and sign < "\ufff0" else ""


def _slashed(text: str, place: int) -> str:
    """Up to three words with strokes between them ("left/right"); a stroke ends at a hyphened number."""
    taken = 0
    end = place
    while taken < 3:
        word = _STROKED.match(text, end + bool(taken))
        if word is None or (taken and text[end] != "/"):
            break
        end, taken = word.end(), taken + 1
        if not text.startswith("/", end):
            break
    return text[place:end] if taken > 1 else ""


def _keeps_point(word: str, text: str, end: int) -> bool:
    """Whether the point after a word is part of it."""
    if not text.startswith(".", end):
        return False
    if text[end + 1 : end + 2] in (",", ";", ":"):  # the point is no end of a sentence then
        return word[0].isalpha()
    low = word.lower()
    if low in _WITH_POINT or _INITIALS.fullmatch(low):
        return True
    if low in _WITH_CAPITAL:
        return word[0].isupper()
    return low in _BEFORE_NUMBER and _NUMBER_NEXT.match(text, end) is not None


def _printed(found: str) -> tuple[str, ...]:
    """The tokens as the program prints them; none for what COCO's evaluation drops."""
    low = found.lower()
    if not low or _DROPPED.fullmatch(low):
        return ()
    if low in _IN_TWO:
        return low[: _IN_TWO[low]], low[_IN_TWO[low] :]
    for written, printed in (("’", "'"), ("&amp;", "&"), (" ", "\u00a0"), *_BRACKETS):
        low = low.replace(written, printed)
    return (_PRINTED.get(low, low),)
