"""Drafts that name a person, a hospital or an author that the source does not name.

Persons are found by the de-identification's rules (a title, a signature, credentials), by a common given
name before another capitalised word, and where they are cited; institutions by the word that ends their
name. Eponyms (Crohn's disease, Kerley lines) are words of the trade and no names.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

from medloupe.data.audit.text import words_of
from medloupe.imaging.deidentify.text import finder
from medloupe.synthesis.filters.texts import drafted_text, has_chinese, source_text
from medloupe.synthesis.types import Draft, Filter, Seen, SourceRow

_GIVEN: Final = (
    "James|Robert|John|Michael|David|William|Richard|Joseph|Thomas|Charles|Christopher|Daniel|Matthew"
    "|Anthony|Mark|Steven|Paul|Andrew|Joshua|Kenneth|Kevin|Brian|George|Timothy|Ronald|Edward|Jason"
    "|Jeffrey|Ryan|Jacob|Gary|Nicholas|Eric|Jonathan|Stephen|Larry|Justin|Scott|Brandon|Benjamin|Samuel"
    "|Gregory|Alexander|Patrick|Frank|Raymond|Jack|Dennis|Peter|Henry|Mary|Patricia|Jennifer|Linda"
    "|Elizabeth|Barbara|Susan|Jessica|Sarah|Karen|Lisa|Nancy|Betty|Sandra|Margaret|Ashley|Kimberly|Emily"
    "|Donna|Michelle|Carol|Amanda|Melissa|Deborah|Stephanie|Rebecca|Sharon|Laura|Cynthia|Kathleen|Amy"
    "|Angela|Shirley|Anna|Emma|Maria|Juan|Carlos|Luis|Jose|Mohammed|Ahmed|Ali|Fatima|Wei|Li|Hiroshi|Anne"
    "|Jane|Alice|Julia|Sophie|Hans|Pierre|Giovanni|Ivan|Olga|Rahul|Priya"
)
_BEHIND_NO_NAME: Final = (
    r"(?:'s\b|\s+(?:disease|syndrome|sign|lines?|bodies|body|cells?|tumou?r|lymphoma|fracture"
    r"|node|nodes|view"
    r"|method|stain|phenomenon|classification|score|criteria|deformity|duct|triangle|space|hernia))"
)
_SURNAMES: Final = (
    "[王李张刘陈杨赵黄周吴徐孙胡朱高林何郭马罗梁宋郑谢韩唐冯于董"
    "萧程曹袁邓许傅沈曾彭吕苏卢蒋蔡贾丁魏薛叶]"
)
_PERSON: Final = re.compile(
    rf"\b(?P<x>(?:{_GIVEN})\s+(?:[A-Z]\.\s*)?[A-Z][a-z]+(?:-[A-Z][a-z]+)?)(?!{_BEHIND_NO_NAME})\b"
    r"|\b(?P<cited>[A-Z][a-z]+(?:-[A-Z][a-z]+)?)(?:\s+et\s+al\b|\s+and\s+colleagues\b)"
    r"|\b(?:named|called|patient|by\s+name)\s+(?P<named>[A-Z][a-z]+\s+[A-Z][a-z]+)\b"
    r"|(?:患者|病人|名叫|叫做|姓名为?"
    rf"|名为)(?P<zh>{_SURNAMES}[某\u4e00-\u9fff]{{1,2}})"
    r"(?=[，。、的（(]|先生|女士|$)"
    rf"|由(?P<by>{_SURNAMES})(?=[\u4e00-\u9fff]{{0,2}}?(?:医生|医师|主任|教授|大夫))"
)
_INSTITUTION: Final = re.compile(
    r"\b(?P<x>(?:(?:[A-Z][\w'’-]+|of|the|St\.?)\s+){1,5}?"
    r"(?:Hospital|University|Clinic|Institute|Infirmary|Medical\s+Cent(?:er|re)"
    r"|Health\s+System|Foundation)|University\s+of\s+(?:the\s+)?[A-Z][a-z]+)\b"
    r"|(?P<zh>[\u4e00-\u9fff]{2,10}?(?:医院|医科大学|大学|研究所|卫生院|诊所))"
)
# What stands before "医院" without naming one: "建议到医院就诊", "在当地医院", "某医院".
_NO_NAME_ZH: Final = re.compile(
    r"(?:到|去|往|在|于|由|向|该|某|当地|外|本|我|综合|专科|正规|专业|上级|大型|附近|一家"
    r"|同级|及时到|尽快到|前往)(?:医院|诊所)$"
)
_GENERIC: Final = frozenset(
    {"the", "a", "an", "of", "this", "that", "local", "teaching"}
) | frozenset({"university", "hospital", "clinic", "institute", "medical", "center", "centre"})
_find = finder()


class Names(Filter):
    """Invents a person's or an institution's name."""

    def judge(self, row: SourceRow, draft: Draft, seen: Seen) -> str | None:
        text = drafted_text(draft)
        known = source_text(row)
        words = set(words_of(known))
        for name in _names(text):
            named = [word for word in words_of(name) if word not in _GENERIC]
            # A Chinese name is one run of characters, and every character a word: only the run counts.
            if named and name not in known and (has_chinese(name) or not set(named) <= words):
                return f"the source has no such name: {name!r}"
        return None


def _names(text: str) -> Iterator[str]:
    for finding in _find(text):
        if finding.kind == "name":
            yield text[finding.start : finding.end]
    for match in _PERSON.finditer(text):
        yield match[str(match.lastgroup)]
    for match in _INSTITUTION.finditer(text):
        name = match[str(match.lastgroup)]
        if not _NO_NAME_ZH.search(name):
            yield name
