"""Findings by name, in English and Chinese: what the filters can tell to be affirmed or denied.

A longer name hides a shorter one inside it ("pericardial effusion" is no "effusion", "支气管扩张" no
"扩张"). The list covers what captions and reports say most; what is not on it is not judged.
"""

from __future__ import annotations

import re
from typing import Final

_NAMES: Final[dict[str, tuple[str, str]]] = {
    "pericardial effusion": (
        r"pericardial (?:effusions?|fluid)",
        "心包(?:腔)?积液|心包(?:腔)?(?:少量|大量|中等量)积液",
    ),
    "joint effusion": (
        r"(?:joint|knee|suprapatellar) effusions?",
        "关节(?:腔)?(?:内)?(?:少量)?积液",
    ),
    "effusion": (r"effusions?|pleural fluid|h(?:a)?emothorax|hydrothorax", "胸腔积液|胸水|积液"),
    "pneumothorax": (r"(?:hydro)?pneumothora(?:x|ces)", "(?:液)?气胸"),
    "consolidation": (r"consolidat(?:ions?|ed|ive)", "实变"),
    "ground glass": (
        r"ground[- ]glass(?: opacit(?:y|ies)| opacifications?| attenuation)?|GGOs?",
        "磨玻璃(?:样|影|密度影|密度)?",
    ),
    "opacity": (
        r"opacit(?:y|ies)|opacifi(?:cation|cations|ed)|infiltrat(?:es?|ions?)",
        "(?:斑片|片状|团块状|条索|浸润|模糊|渗出)(?:状|样)?(?:高密度)?影|渗出",
    ),
    "edema": (r"o?edema(?:tous)?", "水肿"),
    "cardiomegaly": (
        r"cardiomegaly|(?:enlarged|enlargement of the) (?:heart|cardiac silhouette)|(?:heart"
        r"|cardiac silhouette|cardiac size|heart size) (?:is |appears "
        r"|was )?(?:\w+ly )?enlarged",
        "心(?:脏|影)(?:明显|轻度|略|稍)?(?:增大|扩大)",
    ),
    "atelectasis": (
        r"atelecta(?:sis|tic|ses)|lung collapse|collapsed lung",
        "(?:肺)?(?:膨胀)?不张",
    ),
    "pneumonia": (r"(?:broncho)?pneumonias?", "肺炎"),
    "fracture": (r"fractur(?:es?|ed)", "骨折"),
    "dislocation": (r"(?:sub)?luxations?|dislocat(?:ions?|ed)", "脱位"),
    "nodule": (r"(?:micro)?nodul(?:es?|ar|arity)", "结节"),
    "mass": (r"mass(?:es)?", "肿块|包块|占位"),
    "tumor": (
        r"tumou?rs?|neoplas(?:ms?|tic)|malignan(?:cy|t)|carcinoma|cancer",
        "肿瘤|恶性(?:病变|肿物)|癌",
    ),
    "cyst": (r"cysts?|cystic", "囊肿|囊性(?:病变|病灶|灶|变)?"),
    "hemorrhage": (r"ha?emorrhag(?:es?|ic)|bleed(?:ing)?|ha?ematomas?", "出血|血肿"),
    "infarct": (r"infarct(?:s|ions?|ed)?|isch(?:a)?emi(?:a|c)", "梗死|梗塞|缺血"),
    "calcification": (r"calcifi(?:cations?|ed|c)", "钙化"),
    "lymphadenopathy": (
        r"(?:lymph)?adenopathy|enlarged (?:\w+ )?(?:lymph )?nodes?",
        "淋巴结(?:明显)?(?:肿大|增大)",
    ),
    "hydronephrosis": (r"hydronephro(?:sis|tic)", "肾积水"),
    "stone": (
        r"calcul(?:us|i)|(?:gall|kidney )?stones?|(?:cholelith|nephrolith|urolith)iasis",
        "结石",
    ),
    "metastasis": (r"metasta(?:sis|ses|tic)", "转移"),
    "midline shift": (r"midline shift|shift of the midline", "中线(?:结构)?(?:移位|偏移)"),
    "enhancement": (r"enhanc(?:ement|ing|es)", "强化"),
    "necrosis": (r"necro(?:sis|tic)", "坏死"),
    "ascites": (r"ascites|free (?:intraperitoneal |abdominal )?fluid", "腹水|腹腔积液"),
    "stenosis": (r"stenos(?:is|es|ed)|narrowing|strictures?", "狭窄"),
    "thrombus": (
        r"thromb(?:us|i|osis|osed)|embol(?:us|i|ism)|filling defects?",
        "血栓|栓塞|充盈缺损",
    ),
    "bronchiectasis": (r"bronchiecta(?:sis|tic)", "支气管扩张"),
    "dilatation": (r"dilat(?:ed|ation|ion)|ectasia", "扩张"),
    "hernia": (r"herniat(?:ion|ions|ed)|hernias?|disc protrusion", "疝|突出|膨出"),
    "aneurysm": (r"aneurysms?|aneurysmal", "动脉瘤"),
    "fibrosis": (r"fibro(?:sis|tic)|scarring", "纤维化|瘢痕"),
    "inflammation": (r"inflam(?:mation|matory|ed)", "炎症|炎性|发炎"),
    "thickening": (r"thicken(?:ing|ed)", "增厚"),
    "emphysema": (r"emphysema(?:tous)?", "气肿"),
    "cavity": (r"cavitat(?:ion|ions|ing|ary)|cavitary lesions?", "空洞"),
    "scoliosis": (r"scolio(?:sis|tic)", "侧弯"),
    "ulcer": (r"ulcer(?:s|ation|ated)?", "溃疡"),
    "polyp": (r"polyps?|polypoid", "息肉"),
    "abscess": (r"abscess(?:es)?", "脓肿"),
    "free air": (r"pneumoperitoneum|free air|perforation", "穿孔|膈下游离气体|游离气体"),
    "mitosis": (r"mitos(?:is|es)|mitotic (?:figures?|activity)", "核分裂(?:象|像)?"),
    "atypia": (r"atypia|atypical cells|pleomorphism", "异型(?:性)?"),
    "granuloma": (r"granulom(?:as?|ata|atous)", "肉芽肿"),
    "device": (
        r"pacemakers?|(?:endotracheal|nasogastric|chest) tubes?|central (?:venous )?(?:line"
        r"|catheter)",
        "起搏器|气管插管|胃管|引流管|中心静脉导管",
    ),
    "invasion": (r"invasion|invades|invading", "侵犯|浸润"),
    "obstruction": (r"obstruct(?:ion|ed|ive|ing)", "梗阻|阻塞"),
    "atrophy": (r"atroph(?:y|ic)", "萎缩"),
    "displacement": (r"displace(?:d|ment)", "移位"),
    "hemangioma": (r"ha?emangiomas?", "血管瘤"),
    "splenomegaly": (
        r"splenomegaly|enlarged spleen|(?:spleen is|spleen appears) enlarged",
        "脾(?:脏)?(?:明显)?(?:肿大|增大)",
    ),
    "hepatomegaly": (
        r"hepatomegaly|enlarged liver|(?:liver is|liver appears) enlarged",
        "肝(?:脏)?(?:明显)?(?:肿大|增大)",
    ),
    "hyperintensity": (r"hyperintens(?:e|ity|ities)|high[- ]signal(?: intensity)?", "高信号"),
    "hypointensity": (r"hypointens(?:e|ity|ities)|low[- ]signal(?: intensity)?", "低信号"),
    "lesion": (r"lesions?", "病变|病灶|异常信号(?:灶|影)?"),
}

NAMES: Final = tuple(_NAMES)
_GROUPS: Final = tuple(f"f{number}" for number in range(len(NAMES)))
# Alternatives in the order of the table: compound names stand before their parts.
_PATTERN_EN: Final = re.compile(
    r"\b(?:"
    + "|".join(
        f"(?P<{group}>{_NAMES[name][0]})" for group, name in zip(_GROUPS, NAMES, strict=True)
    )
    + r")\b",
    re.IGNORECASE,
)
_PATTERN_ZH: Final = re.compile(
    "|".join(f"(?P<{group}>{_NAMES[name][1]})" for group, name in zip(_GROUPS, NAMES, strict=True))
)


def findings(text: str) -> list[tuple[str, int, int]]:
    """(name, start, end) of every finding, in order."""
    found = [
        (NAMES[int(str(match.lastgroup)[1:])], *match.span())
        for pattern in (_PATTERN_EN, _PATTERN_ZH)
        for match in pattern.finditer(text)
    ]
    return sorted(found, key=lambda item: item[1])
