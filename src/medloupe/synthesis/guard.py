"""What may not leave: sources whose agreement forbids it, and texts that name somebody.

MIMIC-CXR and the other credentialed sets of PhysioNet may not be sent to services that keep what they are
sent (https://physionet.org/news/post/gpt-responsible-use); other agreements forbid all sharing. Such a
source is known by its name, its licence or its access text, and is refused to a teacher elsewhere unless
the config's `permission` names it. What cannot be told to be local counts as elsewhere.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from typing import Final

from medloupe.data.dataset import DatasetCard
from medloupe.imaging.deidentify.text import finder
from medloupe.synthesis.filters.texts import parts
from medloupe.synthesis.types import SourceRow, SynthesisError

# Sets under agreements that forbid passing the data on, by how a word of their names begins.
_NAMES: Final = re.compile(
    r"(?:mimic|vindr|eicu|chexpert|chexplus|chexlocalize|padchest|brax|i2b2|n2c2|hirid|amsterdamumcdb"
    r"|emory|egdcxr|reflacx|mscxr|radgraph|radnli|medvqagi|ukbiobank|adni|oasis|nlst|rexgradient)"
)
_TEXT: Final = re.compile(
    r"\bcredentialed\b|\bphysionet\b.*\b(?:credentialed|restricted)\b|\bdata[- ]use agreement\b|\bDUA\b"
    r"|\bdata (?:transfer|sharing|access) agreement\b|\bCITI\b|\bnot public\b"
    r"|\bconfidential\b|\binternal use\b"
    r"|\bproprietary\b|\brestricted (?:health|access|data)\b|\bforbids?\b"
    r"|\bmust not be (?:shared|sent|disclosed)\b"
    r"|\bmay not be (?:shared|sent|disclosed|redistributed)\b|\bno (?:sharing|redistribution"
    r"|third part(?:y|ies))\b"
    r"|\bprivate data\b|\bin-house\b|\bhospital use only\b"
    r"|数据使用协议|保密|不公开|不得(?:外传|转让|共享|分享|传播)|禁止(?:外传|共享|分享|传播)"
    r"|仅限(?:院内|内部)|内部数据",
    re.IGNORECASE,
)
_NOT: Final = re.compile(
    r"\b(?:no|without(?: an?| any)?|not under an?) (?:signed )?(?:data[- ]use agreement|DUA"
    r"|credential\w*)|无需(?:签署)?数据使用协议",
    re.IGNORECASE,
)
_find = finder()


def forbids_external(*, dataset: str, licence: str, access: str) -> str | None:
    """By what a source shows that it may not be sent out, or None."""
    if any(map(_NAMES.match, _joined(dataset))):
        return f"its name, {dataset!r}"
    for field, text in (("licence", licence), ("access", access)):
        found = _TEXT.search(_NOT.sub("", text))
        if found is not None:
            return f"its {field}, which says {found[0]!r}"
    return None


def refuse_external(source: DatasetCard | SourceRow, receiver: str, permission: str) -> None:
    """Refuse a teacher or an endpoint elsewhere what the source's agreement keeps here.

    `permission` lifts this where it names the data set: one sentence cannot stand for every source.

    Raises:
        SynthesisError: the agreement forbids it and `permission` does not name the data set.
    """
    dataset = source.name if isinstance(source, DatasetCard) else source.dataset
    shown = forbids_external(dataset=dataset, licence=source.licence, access=source.access)
    if shown is None or permits(permission, dataset):
        return
    named = f"names {dataset!r}" if dataset else "names the data set, which these rows do not"
    raise SynthesisError(
        f"the source may not be sent to {receiver!r}, which is not on this machine or network: "
        f"{shown}, means that its agreement keeps it here",
        remedy="Stay on this machine or network; or, if your agreement allows this service, set "
        f"permission to a sentence that says so and {named}",
        row=source.id if isinstance(source, SourceRow) else None,
        field="permission",
    )


def permits(permission: str, dataset: str) -> bool:
    """Whether a statement names the data set, as a whole word; "MIMIC-CXR" names "mimic_cxr"."""
    wanted = re.findall(r"[a-z0-9]+|[\u4e00-\u9fff]+", dataset.lower())
    if not wanted:
        return False
    pattern = r"[\s_-]*".join(re.escape(word) for word in wanted)
    return (
        re.search(rf"(?<![a-z0-9]){pattern}(?![a-z0-9_]|-[a-z0-9])", permission.lower()) is not None
    )


def flags(row: SourceRow) -> tuple[str, ...]:
    """Names, dates and other identifiers in what would be sent: of which kinds, never what they say.

    The number is that of the part that holds most: a report's sections repeat its text.
    """
    counts: Counter[str] = Counter()
    for text in (*parts(row), *row.sections):
        counts |= Counter(finding.kind for finding in _find(text))
    return tuple(
        f"{number} {kind}{'s' if number > 1 else ''}" for kind, number in sorted(counts.items())
    )


def _joined(name: str) -> Iterator[str]:
    """The name from each of its words on, without what stands between words."""
    words = re.findall(r"[a-z0-9]+", name.lower())
    return ("".join(words[at:]) for at in range(len(words)))
