"""Text as the tokens over which COCO's caption evaluation counts: the Penn Treebank's, by Java's rules.

That evaluation calls Stanford CoreNLP 3.4.1's PTBTokenizer in lower case and drops punctuation. Here the
tokens are found in Python: its rules were learnt from what the program answers, not from its source. As
there, of all rules the one that takes the most characters wins. Quirks that published numbers hold: a
bracket stays as a word ("-lrb-": only its upper-case form is dropped), "3.5x4" is 3.5 and x4, "m²" is m
and ², ",5" keeps its comma, and characters that the program does not know vanish.
"""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache

PTB = "Penn Treebank tokens in lower case without punctuation, as COCO's; Chinese by characters"
"""What `ptb_words` gives, as a metric states it."""

# Abbreviations that keep their point; those before a number only; and those written with a capital.
_ALWAYS = (
    "adj|adm|adv|al|ala|apr|ariz|assn|assoc|asst|atty|aug|ave|bhd|bldg|blvd|brig|bros|calif|capt|"
    "cf|cie|cmdr|co|col|colo|conn|corp|cos|cpl|ct|dak|dec|dept|det|dr|drs|ens|esq|est|etc|ext|"
    "feb|fla|fri|ft|ga|gen|gov|hon|inc|ind|insp|intl|jan|jos|jr|jul|jun|kan|ky|lieut|lt|ltd|maj|"
    "mar|md|messrs|mich|minn|mme|mo|mon|mr|mrs|ms|mt|natl|neb|nev|nov|oct|okla|penn|pfc|plc|pres|"
    "prof|pvt|rd|rep|reps|rev|rt|sen|sens|sep|sept|seq|sfc|sgt|spc|sq|sr|st|ste|supt|sys|tel|"
    r"tenn|thu|thurs|treas|tue|tues|univ|va|vs|vt|wed|wis|wisc|wm|wyo|ph\.d|[a-z](?:\.[a-z])*"
)
_LOWER = "[Mm]fg|[Mm]tg|[Pp]te|[Pp]ty"
_BEFORE_NUMBER = "art|fig|figs|no|nos|op|pp|prop"
_CAPITAL = "ark|az|del|ill|la|mass|miss|ore|pa|tex|wash"
_FILES = (
    "bat|bmp|c|class|cgi|cpp|dll|doc|docx|exe|gif|gz|h|htm|html|jar|java|jpeg|jpg|mov|mp3|pdf|"
    "php|pl|png|ppt|ps|py|sql|tar|txt|wav|x|xml|zip|wma|wmv"
)

_SYMBOLS = (
    "\u00a1\u00a5-\u00a9\u00ac\u00ae-\u00b4\u00b6-\u00b9\u00bf\u00d7\u00f7\u037e\u0387\u0589\u05be"
    "\u05c0\u05c3\u05c6\u05f3\u05f4\u0600-\u0603\u0606-\u060c\u0614\u061b\u061e\u061f\u066a\u066d"
    "\u06d4\u0700-\u070d\u07f6-\u07f8\u0964\u0965\u0e3f\u0e4f\u1fbd\u2016\u2017\u201a\u201e-\u2023"
    "\u2030-\u2038\u203b\u203e-\u2042\u2044\u2070\u2074-\u207e\u2080-\u208e\u20a4\u2100\u2101"
    "\u2103-\u2106\u2108\u2109\u2114\u2116-\u2118\u211e-\u2123\u2125\u2127\u2129\u212e\u213a\u213b"
    "\u2140-\u2144\u214a-\u214d\u214f\u2155-\u215e\u2190-\u2bff\u3001\u3002\u3012\u30fb\uff01-\uff0f"
    "\uff1a-\uff20\uff3b-\uff40\uff5b-\uff65\uffe0\uffe1\uffe5\uffe6"
)
_MARKS = (
    "\u02c2-\u036f\u0483-\u0487\u0591-\u05bd\u05bf\u05c1\u05c2\u05c4\u05c5\u05c7\u0615-\u061a"
    "\u064b-\u065e\u0670\u06d6-\u06ed\u0900-\u0903\u093c\u093e-\u094e\u0e31\u0e34-\u0e3a\u0e47-\u0e4e"
)
_NO_LETTERS = (
    "".join(  # numbers that Python counts as letters of a word, and what Java's rules lack
        chr(code)
        for code in range(0x80, 0x10000)
        if unicodedata.category(chr(code)) in ("No", "Nl")
    )
    + "\u037f\u3105-\u312f\u31a0-\u31bf\U00010000-\U0010ffff"
)

# A letter; a letter or digit; a word; an apostrophe.
L = rf"(?:[^\W\d_{_NO_LETTERS}]|[{_MARKS}])"
A = rf"(?:[^\W_{_NO_LETTERS}]|[{_MARKS}])"
W = f"{L}{A}*"
_APO = "['’\u0092]"
_DASH = "[-_\u2010\u2011]"

_RULES = [
    rf"{W}(?:[.!?]{W})*",
    rf"{W}(?:\.{W})*\.(?=[,:;])",
    rf"{A}+(?:{_DASH}{A}+)*(?:\.(?=[,:;]))?",
    r"[A-Za-z0-9]+(?:[.,][A-Za-z0-9]+)*[.,]?(?:-[A-Za-z0-9]+)+",
    r"[A-Za-z0-9]+(?:-[A-Za-z]+){0,2}"
    r"(?:/[A-Za-z0-9]+(?:-[A-Za-z]+){0,2}){1,2}",
    r"(?:\d{1,4}[- \xa0])?\d{1,4}/\d{1,4}",
    r"[-+]?(?:\d*(?:[.,:]\d+)+|\d+)",
    r"(?:\(\d{2,3}\)[ \xa0]?|\d{2,4}[- \xa0])\d{3,4}[- \xa0]?\d{3,5}",
    rf"(?i:{_ALWAYS})\.",
    rf"(?:{_LOWER})\.",
    rf"(?i:{_BEFORE_NUMBER})\.(?=\s?\d)",
    rf"(?:{_CAPITAL.title()}|{_CAPITAL.upper()})\.",
    rf"[A-Za-z0-9]+(?:\.[A-Za-z0-9]+)*\.(?i:{_FILES})(?![A-Za-z0-9])",
    r"</?[A-Za-z][\w:.-]*(?:\s+[\w:.-]+(?:=(?:\"[^\"]*\"|'[^']*'|\w+))?)*\s*/?>|<!--.*?-->",
    r"&(?i:amp|lt|gt|quot|nbsp|mdash|ndash);|&#\d+;",
    r"(?:mailto:|<)?[\w.+-]+(?:@[\w-]+(?:\.[\w-]+)*)+>?",
    rf"@[A-Za-z_]\w*|#{L}+|#+|@+",
    r"https?://[^\s\"<>|()]+[./:][^\s\"<>|()]*[^\s\"<>|().,;:!?]/?",
    rf"(?:www\.(?:[\w-]+\.)+[A-Za-z]{{2,4}}|(?:{W}\.)+(?i:com|net|org|edu))"
    r"(?:/[^\s\"<>|()]+[^\s\"<>|().,;:!?{}-])?",
    r"[<>]?[:;=][-o']?[()DPdpO@\[\]|\\{](?![A-Za-z0-9])|[<>^-]_[<>^-]",
    r"[A-Z]+(?:(?:&|&amp;)[A-Z]+)+",
    r"[A-Z]{1,3}\$",
    r"[CcFf]#|[Cc]\+\+",
    rf"[dlnoA-HJ-XZ]{_APO}{L}{{2,}}|[djlyDJLY]{_APO}|[A-Za-z]+[AEIOUaeiou]{_APO}[aeiouA-Z][A-Za-z]*",
    rf"(?i:[eo]{_APO}er|ne{_APO}er)|{_APO}[nN](?:{_APO}|(?![\w.]))",
    rf"(?i:o{_APO}clock|c{_APO}mon|d{_APO}ye|ol{_APO}|(?:dunk|someth)in{_APO}|n(?:{_APO}|`)t)",
    rf"{_APO}(?i:(?:s|d|m|re|ve|ll|till?|em|cause)(?![A-Za-z]))|{_APO}\d0s|{_APO}\d\d(?!\S)",
    r"(?i:'t(?=is|was))",
    r"\.{3,}|\*+|_+|[!?]+|-{2,}|<<|>>|\\\*",
]  # fmt: skip
_KNOWN = [re.compile(rule) for rule in _RULES]
_PLAIN = re.compile(r"[A-Za-z]+(?=\s|$)")
_CLITIC = re.compile(rf"{_APO}(?:s|d|m|re|ve|ll)|n{_APO}t|{_APO}t")
_NEGATED = re.compile(rf"([A-Za-z]+)n(?:{_APO}|`)t", re.IGNORECASE)

_IN_TWO = {"cannot": 3, "gonna": 3, "gotta": 3, "wanna": 3, "lemme": 3, "gimme": 3}
_WRITTEN = {
    "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-", "¢": "cents", "£": "#", "¤": "$", "€": "$",
    "₠": "$", "\u0080": "$", "¼": "1/4", "½": "1/2", "¾": "3/4", "⅓": "1/3", "⅔": "2/3", "&lt;": "<",
    "&gt;": ">",
}  # fmt: skip
_ONE = re.compile(rf"[!-/:-@\[-`{{-~{_SYMBOLS}¢£¤€₠\u0080¼½¾⅓⅔]")
_NO_TOKEN = frozenset({*"\"'`.?!,:;-", "''", "``", "&quot;", "&nbsp;", "&mdash;", "&ndash;"})


@lru_cache(maxsize=2**12)  # the metrics of one flavour follow each other row by row
def ptb_tokens(text: str) -> tuple[str, ...]:
    """Tokens in order. One with a no-break space within ("1 1/2") counts as one for ROUGE only."""
    text = text.replace("\u00ad", "").replace("&apos;", "'")
    tokens: list[str] = []
    place = 0
    while place < len(text):
        found = _longest(text, place)
        tokens += _written(found)
        place += len(found) or 1  # white space, or what no rule knows
    return tuple(tokens)


def ptb_words(text: str) -> list[str]:
    """Tokens, split at every white space as COCO's BLEU and CIDEr split them."""
    return " ".join(ptb_tokens(text)).split()


def _longest(text: str, place: int) -> str:
    """What the rule that takes the most characters takes; "" where none begins."""
    plain = _PLAIN.match(text, place)
    if plain:
        return plain[0]
    found = max((m[0] for rule in _KNOWN if (m := rule.match(text, place))), key=len, default="")
    negated = _NEGATED.match(text, place)
    if negated and len(negated[1]) + 1 == len(found):
        return negated[1]
    one = None if found else _ONE.match(text, place)
    return one[0] if one else found


def _written(found: str) -> tuple[str, ...]:
    """The tokens as the program prints them; none for what COCO's evaluation drops."""
    low = found.lower()
    if not low or low in _NO_TOKEN or re.fullmatch(r"\.{3,}|--+", low):
        return ()
    if low in _IN_TWO:
        return low[: _IN_TWO[low]], low[_IN_TWO[low] :]
    if low[0] == "<" and len(low) > 3:
        return (low.replace(" ", "\u00a0"),)
    if _CLITIC.fullmatch(low):
        return (re.sub(_APO, "'", low),)
    low = (
        low.replace("(", "-lrb-").replace(")", "-rrb-").replace("&amp;", "&").replace(" ", "\u00a0")
    )
    return (_WRITTEN.get(low, low),)
