"""The words of questions and answers, in English and Chinese, as short as they can be."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from medloupe.types import Language


@dataclass(frozen=True)
class Words:
    """One language. `questions` have slots: kind, options, first, last. `roles` are what two or three
    examinations may be called."""

    language: Language
    questions: Mapping[str, str]
    names: Mapping[str, str]
    ordinals: tuple[str, str, str]
    examination: str
    or_: str
    comma: str
    lesion: str
    lesion_on: str
    no_lesion: str
    report_some: str
    report_none: str
    mention: str
    mention_on: str
    roles: Mapping[int, Sequence[tuple[str, ...]]]
    course_of: str
    course_comma: str

    def spoken(self, slot: str, value: str) -> str:
        """What fills a slot: a name, "ring, dark or wedge", or "first"."""
        if slot in ("first", "last"):
            return self.ordinals[int(value)]
        names = [self.names[name] for name in value.split(",")]
        return self.or_.join([self.comma.join(names[:-1]), names[-1]] if names[1:] else names)

    def lesion_at(self, kind: str, side: str) -> str:
        """ "ring lesion on the left"; without a side, "ring lesion"."""
        return self._sided(self.lesion, self.lesion_on, kind, side)

    def report(self, plane: str, diagnosis: str, lesions: Sequence[tuple[str, str]]) -> str:
        """A report on one slice; `lesions` are (kind, side)."""
        mentions = [self._sided(self.mention, self.mention_on, *lesion) for lesion in lesions]
        return (self.report_some if lesions else self.report_none).format(
            plane=self.names[plane].capitalize(),
            list=self.comma.join(mentions),
            diagnosis=self.names[diagnosis],
        )

    def course(self, changes: Sequence[tuple[str, str, str]]) -> str:
        """What became of lesions (kind, side, change) between two examinations."""
        said = [
            self.course_of.format(
                lesion=self._sided(self.mention, self.mention_on, kind, side),
                change=self.names[change],
            )
            for kind, side, change in changes
        ]
        return self.course_comma.join(said) or self.no_lesion

    def _sided(self, plain: str, sided: str, kind: str, side: str) -> str:
        if not side:
            return plain.format(kind=self.names[kind])
        return sided.format(kind=self.names[kind], side=self.names[side])


ENGLISH = Words(
    language="en",
    questions={
        "plane": "Which plane is this?",
        "presence": "Is there a {kind} lesion?",
        "side": "Which side is the {kind} lesion on?",
        "kind": "What is the largest lesion: {options}?",
        "count": "How many lesions are there?",
        "size": "Is the {kind} lesion small or large?",
        "diagnosis": "What is the diagnosis?",
        "change": "How has the {kind} lesion changed?",
        "change_between": "How has the {kind} lesion changed from the {first} to the {last}"
        " examination?",
        "comparison": "Compare the two examinations.",
        "comparison_between": "Compare the last examination with the first.",
        "findings": "List the lesions with boxes.",
        "report": "Write a short report.",
        "rec": "Where is the {kind} lesion?",
        "reg": "What is in this box: ",
    },
    names={
        name: name
        for name in (
            *("bright", "dark", "ring", "wedge", "streak", "cluster", "spiculated", "cystic"),
            *("target", "crescent", "axial", "coronal", "sagittal", "left", "right"),
            *("yes", "no", "small", "large", "0", "1", "2", "3", "4"),
            *("normal", "neoplastic", "vascular", "inflammatory"),
            *("new", "grown", "unchanged", "shrunk", "gone"),
        )
    },
    ordinals=("first", "second", "third"),
    examination="{ordinal} examination: ",
    or_=" or ",
    comma=", ",
    lesion="{kind} lesion",
    lesion_on="{kind} lesion on the {side}",
    no_lesion="no lesion",
    report_some="{plane} slice. Lesions: {list}. Impression: {diagnosis}.",
    report_none="{plane} slice. No lesion. Impression: {diagnosis}.",
    mention="{kind}",
    mention_on="{kind} on the {side}",
    roles={
        2: (
            ("First examination", "Second examination"),
            ("Before surgery", "After surgery"),
            ("Before treatment", "After treatment"),
        ),
        3: (
            ("First examination", "Second examination", "Third examination"),
            ("Before surgery", "After surgery", "Follow-up"),
        ),
    },
    course_of="{lesion}: {change}",
    course_comma=", ",
)

CHINESE = Words(
    language="zh",
    questions={
        "plane": "这是什么切面？",
        "presence": "是否有{kind}病灶？",
        "side": "{kind}病灶在哪一侧？",
        "kind": "最大的病灶是哪种：{options}？",
        "count": "有几个病灶？",
        "size": "{kind}病灶是大还是小？",
        "diagnosis": "诊断是什么？",
        "change": "{kind}病灶有何变化？",
        "change_between": "{kind}病灶从{first}到{last}检查有何变化？",
        "comparison": "比较这两次检查。",
        "comparison_between": "将末次检查与首次检查进行比较。",
        "findings": "列出病灶及其位置。",
        "report": "写一份简短报告。",
        "rec": "{kind}病灶在哪里？",
        "reg": "框内是什么：",
    },
    names={
        **{"bright": "高信号", "dark": "低信号", "ring": "环形", "wedge": "楔形", "streak": "条状"},
        **{"cluster": "簇状", "spiculated": "毛刺状", "cystic": "囊性", "target": "靶形"},
        **{"crescent": "新月形", "axial": "轴位", "coronal": "冠状位", "sagittal": "矢状位"},
        **{"left": "左侧", "right": "右侧", "yes": "是", "no": "否", "small": "小", "large": "大"},
        **{"0": "0", "1": "1", "2": "2", "3": "3", "4": "4"},
        **{"normal": "正常", "neoplastic": "肿瘤", "vascular": "血管病", "inflammatory": "炎症"},
        **{"new": "新发", "grown": "增大", "unchanged": "不变", "shrunk": "缩小", "gone": "消失"},
    },
    ordinals=("第一次", "第二次", "第三次"),
    examination="{ordinal}检查：",
    or_="或",
    comma="、",
    lesion="{kind}病灶",
    lesion_on="{side}{kind}病灶",
    no_lesion="无病灶",
    report_some="{plane}图像。病灶：{list}。诊断：{diagnosis}。",
    report_none="{plane}图像。无病灶。诊断：{diagnosis}。",
    mention="{kind}",
    mention_on="{side}{kind}",
    roles={
        2: (("第一次检查", "第二次检查"), ("手术前", "手术后"), ("治疗前", "治疗后")),
        3: (("第一次检查", "第二次检查", "第三次检查"), ("手术前", "手术后", "复查")),
    },
    course_of="{lesion}{change}",
    course_comma="，",
)

WORDS: Mapping[Language, Words] = {"en": ENGLISH, "zh": CHINESE}
