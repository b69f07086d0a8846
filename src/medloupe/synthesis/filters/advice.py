"""Drafts that give medical advice: a treatment, a test to be done, a diagnosis told to the reader.

To be sent to a doctor is no advice ("please consult a radiologist"), and neither is what was done
("after chemotherapy").
"""

from __future__ import annotations

import re
from typing import Final

from medloupe.synthesis.filters.texts import excerpt, sentences
from medloupe.synthesis.types import Draft, Filter, Seen, SourceRow

_MEASURE: Final = (
    r"(?:treatment|therapy|surgery|surgical\s\w+|resection|biopsy|biopsies|antibiotics?"
    r"|antivirals?|steroids?|corticosteroids?|medications?|drugs?"
    r"|chemotherapy|radiotherapy|radiation|intervention|operation|drainage|intubation"
    r"|ventilation|transfusion|admission|hospitali[sz]ation"
    r"|follow-?up|re-?imaging|surveillance|monitoring|CT|MRI|PET|ultrasound|endoscopy"
    r"|colonoscopy|scan|imaging|x-?ray|blood tests?|tests?|testing|vaccination"
    r"|anticoagula\w+|aspirin|insulin|painkillers?|analgesics?|ibuprofen|paracetamol"
    r"|acetaminophen|rest|exercise|diet|immobili[sz]ation|cast|splint|thoracentesis"
    r"|bronchoscopy|excision|removal)"
)
_ENGLISH: Final = re.compile(
    rf"""
    \b(?:I|we)(?:'d|\ would|\ strongly|\ also)*\ (?:recommend|advise|suggest)\b(?!\ that\ the\ image)
    | \b(?:is|are|be)\ (?:strongly\ |highly\ |usually\ |generally\ |typically\ )?(?:recommended
      |advised|warranted|indicated(?!\ (?:by|with|in))|advisable|mandatory)\b
    | \b(?:recommend(?:s|ed|ing)?|advis(?:e|ed|ing)|prescrib(?:e|es|ed|ing)|consider(?:ing)?
      |start(?:ing)?|initiat(?:e|ing)|administer(?:ing)?|undergo(?:ing)?|requires?|needs?|schedule
      |order)
      \ (?:\w+\ |an?\ |to\ ){{0,3}}?{_MEASURE}\b
    | \b(?:should|must|needs?\ to|ought\ to|has\ to
      |have\ to)\ (?:\w+\ ){{0,2}}?(?:be\ )?(?:treated|operated|given|started|take|undergo|receive
      |stop|avoid|begin|start|resected|removed|drained|biopsied|hospitali[sz]ed|admitted|repeated
      |monitored|followed|managed|prescribed|administered|immobili[sz]ed|get)\b
    | \b{_MEASURE}\ (?:\w+\ ){{0,2}}?(?:should|must|is\ (?:needed|required|necessary)
      |are\ (?:needed|required|necessary)|(?:may|might|would|will)\ be\ (?:needed|required|necessary
      |beneficial|considered|helpful))\b
    | \b(?:treatment|management)\ (?:of\ choice|options?\ (?:include|are)|plan|(?:typically
      |usually|often|generally)\ (?:involves|includes|consists))
    | \b(?:should|must|needs\ to|need\ to|has\ to)\ (?:\w+\ )?
      (?:drain|remove|treat|operate|repeat|prescribe|resect|biopsy|excise|immobili[sz]e|admit)\b
    | \bthe\ next\ step\b | \bnext\ steps?\ (?:is|would|should|could|may)
    | \b(?:first-line|standard)\ (?:treatment|therapy)
    | \b(?<!if\ )you(?:\ (?:probably|likely|definitely|clearly|may))?\ (?:have|are\ suffering|need
      |should|must)\b(?!\ (?:a\ question|any|questions|to\ (?:consult|see|speak)|consult|see\ an?
      |seek|speak|talk|contact|discuss|always\ consult|look|focus|note|notice))
    | \byour\ (?:cancer|tumou?r|disease|condition|symptoms|diagnosis|prognosis
      |doctor\ should\ (?:prescribe|give|order))
    | \b\d+\s?mg\b[^.]*\b(?:daily|twice|every|per\ day|orally|once)\b | \bdos(?:e|age)\ (?:of|should|is)\ \d
    | \bprognosis\ is\ (?:good|poor|excellent|bad|guarded|favou?rable)
    | \b(?:safe|okay|fine)\ to\ (?:stop|continue|take|ignore|skip)
    | \bno\ (?:further\ )?(?:treatment|follow-?up|action|surgery)\ (?:is\ )?(?:needed|required|necessary)
    """,
    re.IGNORECASE | re.VERBOSE,
)
_CONSULT: Final = re.compile(
    r"\b(?:consult(?:ing|ation|ed)?|seek(?:ing)?|speak(?:ing)? (?:with|to)"
    r"|talk(?:ing)? (?:with|to)|see(?:ing)?|contact(?:ing)?|ask(?:ing)?|discuss\w*"
    r"|evaluat\w+ by|review(?:ed)? by|interpret\w* by|advice of|opinion of|assessment by)\b"
    r"[^.]{0,60}?\b(?:professional|physician|doctor|radiologist|pathologist|specialist"
    r"|clinician|provider|expert|oncologist|surgeon|medical (?:advice|attention|opinion))s?\b",
    re.IGNORECASE,
)
_CHINESE: Final = re.compile(
    "(?:建议|推荐|宜|应当?|应该|需要?|必须|最好|务必|可以?考虑|不妨)(?:您|患者|病人|其"
    "|你)?(?:立即|尽快|尽早|及时|定期|进一步|首先|进行|接受|行|给予|使用|采用|采取|做|开始"
    "|积极|按时|密切|继续|每日|长期|[一二三四五六七八九十半\\d]+(?:个)?(?:年|月|周"
    "|天)后){0,4}"
    "(?:手术|治疗|化疗|放疗|服(?:用|药)|口服|用药|注射|抗生素|抗炎|抗感染|激素|活检|穿刺|复查"
    "|随访|随诊|复诊|引流|切除|住院|输液|输血|卧床|休息|戒烟|忌口|增强扫描|增强CT|增强检查|CT"
    "|MRI|磁共振|检查|观察|监测|固定|石膏)"
    "|(?:首选|标准|常规|推荐的?)(?:的)?(?:治疗|疗法|方案|药物)|治疗(?:方案|方法|措施)(?:包括"
    "|有|是|为|主要)|(?:剂量|用量)(?:为|是)?\\d|每日[一二三\\d]+次"
    "|您(?:患有|得了|可能(?:患|得)|的(?:癌症|肿瘤|病情|疾病))|你(?:患有|得了)|预后(?:较?好"
    "|良好|较?差|不良)|无需(?:治疗|处理|手术|复查|特殊处理)|不(?:需要|必|用)(?:治疗|手术"
    "|复查)"
)
_CONSULT_ZH: Final = re.compile(
    "咨询|就医|就诊|请教|寻求|由(?:专业)?(?:的)?(?:医生|医师|放射科)|医生(?:的)?(?:意见|判断"
    "|解读)|专业(?:医生|医师|人员)"
)
# What was done, or is seen to have been done, and why the image was made.
_DONE: Final = re.compile(
    r"\b(?:was|were|had|has been|have been|underwent|received|after|before|prior to|following"
    r"|post-?|status post|previous|during)\b"
    r"|术后|治疗后|化疗后|放疗后|治疗前|术前|曾|已(?:行|接受|经)|接受了|接受过",
    re.IGNORECASE,
)
_STRONG: Final = re.compile(
    r"\b(?:recommend|advise|suggest|should|must|need|you|your|prognosis|indicated|warranted)"
    r"|建议|推荐|应|需|您|预后|首选",
    re.IGNORECASE,
)


class Advice(Filter):
    """Gives medical advice."""

    def judge(self, row: SourceRow, draft: Draft, seen: Seen) -> str | None:
        for turn in draft.turns:
            for sentence in sentences(turn.answer):
                told = _CONSULT.sub("consult", sentence)
                found = _ENGLISH.search(told) or _advised_zh(sentence)
                if found is None or (_DONE.search(told) and not _STRONG.search(found[0])):
                    continue
                return f"gives advice: {excerpt(sentence, 0, 90)!r}"
            asked = _ASKS.search(turn.question)
            if asked is not None:
                return f"asks for advice: {turn.question!r}"
        return None


def _advised_zh(sentence: str) -> re.Match[str] | None:
    """Advice in a clause that does not send the reader to a doctor."""
    for clause in re.split("[，,]", sentence):
        found = _CHINESE.search(clause)
        if found is not None and not _CONSULT_ZH.search(clause):
            return found
    return None


_ASKS: Final = re.compile(
    r"\b(?:what|which|how)\b[^?]*\b(?:treat(?:ment|ed)?|therap(?:y|ies)|manage(?:d|ment)?"
    r"|medication|prescri\w+)\b[^?]*\b(?:recommend\w*|should|best|needed|appropriate"
    r"|option\w*|plan)\b"
    r"|\bshould (?:I|the patient|we|they|he|she)\b|\bdo I (?:need|have)\b|(?:应该|如何|怎么"
    r"|怎样|需要)(?:进行)?(?:治疗|用药|处理)|要不要(?:手术|吃药)|我(?:是不是|该)",
    re.IGNORECASE,
)
