"""What is asked, in several wordings per task, as plain data.

Each family of wordings asks for the same thing, so that any of them fits any answer: singular, plural
and uncountable names, one box or five. None tells how many there are. Slots in braces are filled by
the builders. The Chinese wordings were written beside the English ones, not translated from them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

from medloupe.types import Language

Wordings = Mapping[Language, tuple[str, ...]]

PROMPTS: Mapping[str, Wordings] = {
    "classification": {
        "en": (
            "Which category does this image belong to?",
            "How would you classify this image?",
            "What does this image show?",
            "Name the class of this image.",
        ),
        "zh": (
            "这张图像属于哪一类？",
            "请对这张图像进行分类。",
            "这张图像显示的是什么？",
            "请说出这张图像的类别。",
        ),
    },
    "labels": {
        "en": (
            "Which of these apply to the image: {classes}?",
            "Name all that can be seen, out of: {classes}.",
            "Out of {classes}, which are present?",
            "Select every label that fits: {classes}.",
        ),
        "zh": (
            "以下哪些符合这张图像：{classes}？",
            "请从以下各项中选出图像中可见的所有项：{classes}。",
            "图像中存在以下哪些情况：{classes}？",
            "请选择所有适用的标签：{classes}。",
        ),
    },
    "presence": {
        "en": (
            "Does the image show any {label}?",
            "Can any {label} be seen?",
            "Is there any sign of {label}?",
            "Is there evidence of {label}?",
        ),
        "zh": (
            "图像中是否存在{label}？",
            "这张图像是否显示{label}？",
            "是否可见{label}？",
            "是否有{label}的征象？",
        ),
    },
    "report": {
        "en": (
            "Write the {sections} of the report for this examination.",
            "Report this examination: {sections}.",
            "Act as the reporting radiologist and give the {sections}.",
            "Read the examination and write down the {sections}.",
        ),
        "zh": (
            "请为本次检查撰写报告的{sections}。",
            "请报告本次检查：{sections}。",
            "请以报告医师的身份写出{sections}。",
            "请阅读本次检查并写出{sections}。",
        ),
    },
    "caption.brief": {
        "en": (
            "Say briefly what the image shows.",
            "Describe the image in a few words.",
            "Give a short caption for this image.",
            "Sum up the image in one or two sentences.",
            "What is the main content of the image? Be brief.",
        ),
        "zh": (
            "请简要说明图像内容。",
            "请用几句话概括这张图像。",
            "请为这张图像写一个简短的说明。",
            "请用一两句话总结图像。",
            "这张图像的主要内容是什么？请简要回答。",
        ),
    },
    "caption.detailed": {
        "en": (
            "Describe the image in detail.",
            "Give a full account of what can be seen in the image.",
            "Write a thorough caption for this image.",
            "Explain in detail what this image shows.",
            "Go through the image and describe everything of note.",
        ),
        "zh": (
            "请详细描述这张图像。",
            "请全面说明图像中可见的内容。",
            "请为这张图像写一段详尽的说明。",
            "请详细解释这张图像所显示的内容。",
            "请逐一描述图像中值得注意的内容。",
        ),
    },
    "rec": {
        "en": (
            "Locate the {label}.",
            "Find the {label} in the image.",
            "Show with a box where the {label} can be seen.",
            "Box the {label}.",
        ),
        "zh": (
            "{label}在哪里？",
            "请在图像中定位{label}。",
            "请用框标出{label}的位置。",
            "请框出{label}。",
        ),
    },
    "reg": {
        "en": (
            "What is in this box: ",
            "Describe the region ",
            "Name what lies in the region ",
            "What can be seen here: ",
        ),
        "zh": (
            "框内是什么：",
            "请描述该区域：",
            "请说出该区域内的内容：",
            "此处可见什么：",
        ),
    },
    "findings": {
        "en": (
            "List the findings with boxes, or say that there is no finding.",
            "Name each abnormal finding and where it lies; if the image is normal, say so.",
            "Describe the important findings and mark each with a box, or state that none is seen.",
            "Which findings are there, and where? If there is none, say so.",
        ),
        "zh": (
            "请列出异常所见并用框标出；若无异常，请说明。",
            "请说出每一处异常及其位置；若图像正常，请说明。",
            "请描述重要所见并逐一标出位置，若无则说明未见异常。",
            "有哪些异常所见，位于何处？若无，请说明。",
        ),
    },
    "identify": {
        "en": (
            "List the findings, or say that there is no finding.",
            "Name every abnormal finding; if the image is normal, say so.",
            "Which findings can be seen? If there is none, say so.",
            "What is abnormal in this image? If nothing is, say so.",
        ),
        "zh": (
            "请列出异常所见；若无异常，请说明。",
            "请说出每一处异常；若图像正常，请说明。",
            "可见哪些异常所见？若无，请说明。",
            "这张图像有何异常？若无，请说明。",
        ),
    },
    "diagnosis": {
        "en": (
            "What is the diagnosis?",
            "Which diagnosis fits the image as a whole?",
            "Which disease does this examination point to?",
            "Give your diagnosis.",
        ),
        "zh": (
            "诊断是什么？",
            "综合整张图像，符合什么诊断？",
            "本次检查提示什么疾病？",
            "请给出诊断。",
        ),
    },
    "diagnosis.listed": {
        "en": (
            "Which of these diagnoses are present, any number of them: {classes}?",
            "Select every diagnosis that applies: {classes}.",
            "Out of {classes}, which fit the image as a whole?",
            "Give your diagnosis, one or several of: {classes}.",
        ),
        "zh": (
            "以下诊断中存在哪些（可多选）：{classes}？",
            "请选择所有符合的诊断：{classes}。",
            "综合整张图像，以下哪些诊断成立：{classes}？",
            "请从以下各项中给出一个或多个诊断：{classes}。",
        ),
    },
    "comparison": {
        "en": (
            "Compare the two examinations.",
            "What has changed between the two examinations?",
            "How does the later examination differ from the earlier one?",
            "Describe the course from the first of these examinations to the second.",
        ),
        "zh": (
            "请对比这两次检查。",
            "两次检查之间有何变化？",
            "后一次检查与前一次相比有何不同？",
            "请描述从前一次到后一次检查的变化过程。",
        ),
    },
    "comparison.several": {
        "en": (
            "Compare these examinations.",
            "What has changed from the first of these examinations to the last?",
            "How does the last examination differ from the first one?",
            "Describe the course over these examinations.",
        ),
        "zh": (
            "请对比以上各次检查。",
            "从首次检查到末次检查有何变化？",
            "末次检查与首次检查相比有何不同？",
            "请描述这几次检查之间的变化过程。",
        ),
    },
    "order": {
        "en": (
            "Which of the two images was taken later, the first or the second?",
            "Both images show the same patient. Is the first or the second the later one?",
            "Which image is the follow-up: the first or the second?",
            "Put the images in order of time: was the first or the second taken later?",
        ),
        "zh": (
            "哪一张图像拍摄得更晚，第一张还是第二张？",
            "两张图像属于同一患者，较晚的是第一张还是第二张？",
            "哪一张是复查图像：第一张还是第二张？",
            "请按时间判断：第一张和第二张中哪一张拍摄得更晚？",
        ),
    },
}


@dataclass(frozen=True)
class Wording:
    """A question in words and its number within its family."""

    text: str
    number: int


def word(
    family: str, record: str, task: str, *, language: Language, seed: int = 0, **slots: str
) -> Wording:
    """The wording that record `record` gets: a hash of record, task and seed chooses it."""
    wordings = PROMPTS[family][language]
    digest = hashlib.sha256(f"{seed}:{task}:{record}".encode()).digest()
    number = int.from_bytes(digest[:8], "big") % len(wordings)
    return Wording(wordings[number].format(**slots), number)
