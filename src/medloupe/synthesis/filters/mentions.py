"""Drafts that speak of the text behind the image: a reader of the image has no caption."""

from __future__ import annotations

import re
from typing import Final

from medloupe.synthesis.filters.texts import drafted_text, excerpt
from medloupe.synthesis.types import Draft, Filter, Seen, SourceRow

# Verbs that make a noun before them a text: "the report states", but "the report of a colleague".
_SAYS: Final = (
    r"(?:also |further |specifically |clearly |only )?"
    r"(?:says?|states?|describes?|mentions?|notes?|reads?|explains?|indicates?|reports?|suggests?"
    r"|tells?|specif(?:y|ies)|does(?: not|n't)|did(?: not|n't)|stated|described|noted|provided)\b"
).replace(" ", r"\ ")
_TEXT: Final = (
    r"(?:text|passage|report|legend|description|abstract|excerpt|paragraph|sentence|article|source)"
)
_ENGLISH: Final = re.compile(
    rf"""
    \bcaption(?:s|ed)?\b
    | (?<!worth\ )(?<!not\ to\ )\bmention(?:s|ed|ing)?\b
    # "context" is the source, unless it is a circumstance: "in the context of", "clinical context".
    | (?:\bthe|\bthis|\byour|\bprovided|\bgiven|\bfigure|\babove)\ context\b(?!\ of\b)
    | \bcontext(?:ual)?\ (?:information|text|sentence|provided|given|{_SAYS})
    | \b(?:from|by|per|according\ to|based\ on)\ (?:the\ )?context\b
    | \b(?:figure|image|fig\.?)\ (?:legend|description|title)s?\b
    | \b(?:according\ to|based\ on|as\ per|from|per|in|following)\ (?:the\ |this\ |your\ )?
      (?:(?:provided|given|accompanying|original|source|radiology|pathology|written|figure|above)\ )*
      {_TEXT}(?!\ (?:annotation|overlay|label|marker|box|in\ the\ (?:image|corner|upper|lower|top
        |bottom|left|right)))\b
    | \b(?:the|this)\ (?:(?:provided|given|accompanying|radiology|original)\ )*{_TEXT}
      \ (?:above\ |itself\ )?{_SAYS}
    | \b(?:provided|given|accompanying|supplied)\ (?:text|report|information|description|details
      |labels?|passage|data)\b
    | \b(?:information|text|description|details)\ (?:that\ (?:is|was)\ |which\ (?:is
      |was)\ )?(?:provided|given|supplied)\b
    | \bas\ (?:stated|described|reported|noted|indicated|written|outlined|referenced|discussed)\b
      (?!\ by\ (?:the\ )?arrow)
    | \b(?:the|these|its)\ (?:authors?|paper|manuscript|publication|article
      |abstract)\b(?!\ (?:tape|towel|sheet|label))
    | \bauthors?\b
    # A teacher that owns up to having no image.
    | \bhave\ (?:only\ )?(?:the|a)\ (?:written\ )?(?:description|text)\b
    | \b(?:cannot|can't|can\ not|unable\ to|not\ able\ to)\ (?:directly\ |actually\ )?
      (?:see|view|access|look\ at)\ (?:the|this|any|your)\ (?:actual\ )?(?:image|figure|picture)
    | \bno\ access\ to\ the\ (?:actual\ )?(?:image|figure)
    | \bas\ an\ AI\b | \brely\ on\ the\ (?:information|description|text)
    | \bin\ (?:this|the)\ (?:paper|article|manuscript|publication)\b
    | \b(?:Figure|Fig\.?)\ ?S?\d+
    | \bground[- ]truth\b | \blabel\ list\b | \b(?:the|these)\ labels\ (?:say|state|list|include|indicate)
    """,
    re.IGNORECASE | re.VERBOSE,
)
_CHINESE: Final = re.compile(
    "图注|图题|图例说明|图片说明|图像说明|说明文字|标题(?:中|里|提|说|写)|上下文|语境|前后文"
    "|(?<![英中日法德俄韩])文中|原文|正文|文本(?!框|标注|标记)|文字(?:描述|说明|资料|内容|信息)"
    "|提到|提及|(?<!无)所述|上述(?:描述|资料|信息|报告)|据(?:描述|报道|报告)|描述(?:中|里)|如描述"
    "|(?:根据|依据|按照|按|从|结合)(?:所给|给定|提供|给出|该|此|这份|上面)?的?(?:文字|描述"
    "|说明|报告|资料|信息|材料|标签|标注信息)"
    "|(?:所给|给定|提供|给出)的(?:文字|描述|说明|报告|资料|信息|材料|标签|内容)"
    "|报告(?:中|里|提示|指出|显示|描述|称|说|写|认为)|(?:这篇|该|本)(?:文章|论文|研究)|作者"
    "|看不到(?:这张|这幅|该)?(?:图像|图片|原图)|无法(?:直接)?(?:看到|查看|访问)(?:这张|这幅|该)?(?:图像|图片|原图)"
    "|作为(?:一个|一名)?(?:AI|人工智能|语言模型)"
    "|论文|图\\s?\\d+(?!\\s?(?:层|帧))"
)


class Mentions(Filter):
    """Says "caption", "context", "mentioned", or otherwise shows that it was written from a text."""

    def judge(self, row: SourceRow, draft: Draft, seen: Seen) -> str | None:
        text = drafted_text(draft)
        found = _ENGLISH.search(text) or _CHINESE.search(text)
        if found is None:
            return None
        return f"speaks of its source: {excerpt(text, *found.span())!r}"
