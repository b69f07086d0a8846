"""Lookup tables of DICOM: modality and VOI tables, and the three of a colour palette.

Written here because pydicom 3.0 indexes tables of 8-bit entries with 8-bit numbers (index 256
wraps), reads 16-bit palettes of big endian files in the byte order of the machine, and follows byte
offsets of segmented palettes as if they counted words.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from medloupe.errors import ImageError

_ENTRIES_OF_ZERO: Final = 65536  # a descriptor's 0 entries mean 2^16 (PS3.3 C.11.1.1.1)
_COLOURS: Final = ("Red", "Green", "Blue")
_DISCRETE, _LINEAR, _INDIRECT = 0, 1, 2  # PS3.3 C.7.9.2


@dataclass(frozen=True)
class Table:
    """`entries[0]` for values up to `first`, then one entry a value, the last for all above."""

    first: int
    entries: NDArray[np.uint16]
    bits: int

    def look_up(self, values: NDArray[Any]) -> NDArray[np.uint16]:
        """The entry of every value, which may lie outside of the table."""
        # int64: values are up to 32 bits, and the first may be negative
        index = np.clip(np.rint(values).astype(np.int64) - self.first, 0, len(self.entries) - 1)
        found: NDArray[np.uint16] = self.entries[index]
        return found


def table_of(item: Dataset, *, signed: bool, little: bool, name: str) -> Table:
    """The table of an item of Modality or VOI LUT Sequence (PS3.3 C.11.1.1.1, C.11.2.1.1).

    `signed` says whether the values looked up may be negative: the first mapped value of many
    files is stored as an unsigned number, though it is not.

    Raises:
        ImageError: the data are not as long as the descriptor says.
    """
    count, first, bits = _descriptor(item, "LUTDescriptor", signed, name)
    entries = _entries(item.get("LUTData"), count, bits, little, name, "LUTData")
    if int(entries.max()) >= 1 << bits:  # PS3.3 C.11.2.1.1: bits may be given too small
        bits = 16
    return Table(first, entries, bits)


def palette(dataset: Dataset, name: str) -> tuple[Table, Table, Table]:
    """The red, green and blue tables of PS3.3 C.7.6.3.1.5 and .6, segmented (C.7.9.2) or not.

    Raises:
        ImageError: a table is missing or not as long as its descriptor says.
    """
    little = bool(dataset.original_encoding[1])
    signed = bool(dataset.get("PixelRepresentation"))
    return tuple(_colour(dataset, c, signed, little, name) for c in _COLOURS)  # type: ignore[return-value]


def colours(pixels: NDArray[Any], tables: tuple[Table, Table, Table]) -> NDArray[np.uint8]:
    """`[H, W, 3]`: pixels through the palette; of 16-bit entries the upper 8 bits.

    Writers exist that put 8-bit entries into 16-bit words and say 16: tables without any entry
    above 255 are taken as they are.
    """
    looked_up = [table.look_up(pixels) for table in tables]
    deep = any(table.bits > 8 and int(table.entries.max()) > 255 for table in tables)
    shown = np.stack(looked_up, axis=-1)
    result: NDArray[np.uint8] = (shown >> 8 if deep else shown).astype(np.uint8)
    return result


def _colour(dataset: Dataset, colour: str, signed: bool, little: bool, name: str) -> Table:
    descriptor = f"{colour}PaletteColorLookupTableDescriptor"
    count, first, bits = _descriptor(dataset, descriptor, signed, name)
    keyword = f"{colour}PaletteColorLookupTableData"
    if dataset.get(keyword) is None and dataset.get(f"Segmented{keyword}") is not None:
        keyword = f"Segmented{keyword}"
        data = np.frombuffer(dataset[keyword].value, _word(bits, little))
        entries = _expand(data, count, bits, name, keyword)
    else:
        entries = _entries(dataset.get(keyword), count, bits, little, name, keyword)
    if bits <= 8 and int(entries.max()) > 255:  # 8 significant bits, at the upper end of a word
        entries = np.right_shift(entries, np.uint16(8))
    return Table(first, entries, bits)


def _descriptor(item: Dataset, keyword: str, signed: bool, name: str) -> tuple[int, int, int]:
    """(number of entries, first value mapped, bits of an entry)."""
    value = item.get(keyword)
    if value is None or isinstance(value, int | str | bytes) or len(value) != 3:
        raise _bad("a lookup table needs a descriptor of three numbers", name, keyword)
    count, first, bits = (int(number) for number in value)
    if not 1 <= bits <= 16:
        raise _bad(f"a lookup table cannot have entries of {bits} bits", name, keyword)
    if signed and first >= 32768:
        first -= 65536
    return count % _ENTRIES_OF_ZERO or _ENTRIES_OF_ZERO, first, bits


def _entries(
    data: object, count: int, bits: int, little: bool, name: str, keyword: str
) -> NDArray[np.uint16]:
    """The entries as numbers: from words, or from bytes where there is one byte an entry."""
    if isinstance(data, bytes):
        words = np.frombuffer(data[: len(data) // 2 * 2], "<u2" if little else ">u2")
        packed = bits <= 8 and len(data) in (count, count + count % 2)
        # packed bytes follow each other from the low byte of each word on (PS3.5 8.2)
        numbers = np.frombuffer(words.astype("<u2").tobytes() + data[len(words) * 2 :], np.uint8)
        entries = numbers if packed else words
    else:
        entries = np.atleast_1d(np.asarray(data if data is not None else [], dtype=np.int64))
    if len(entries) < count:
        raise _bad(f"the lookup table has {len(entries)} of {count} entries", name, keyword)
    return entries[:count].astype(np.uint16)


def _word(bits: int, little: bool) -> str:
    return "u1" if bits <= 8 else "<u2" if little else ">u2"


def _expand(
    data: NDArray[Any], count: int, bits: int, name: str, keyword: str
) -> NDArray[np.uint16]:
    """A segmented table (PS3.3 C.7.9.2) as its entries.

    Indirect segments repeat earlier ones, which may not be indirect themselves.
    """
    values = [int(number) for number in data]
    entries: list[int] = []
    place = 0
    while len(entries) < count and place + 1 < len(values):
        opcode, length = values[place : place + 2]
        if opcode == _INDIRECT:
            # least significant word (or byte) first
            parts = values[place + 2 : place + (6 if bits <= 8 else 4)]
            offset = sum(part << ((8 if bits <= 8 else 16) * i) for i, part in enumerate(parts))
            source = offset if bits <= 8 else offset // 2
            for _ in range(length):
                source = _segment(values, source, entries, name, keyword)
            place += 2 + len(parts)
        else:
            place = _segment(values, place, entries, name, keyword)
    if len(entries) < count:
        raise _bad(f"the lookup table has {len(entries)} of {count} entries", name, keyword)
    return np.array(entries[:count]).astype(np.uint16)


def _segment(values: list[int], place: int, entries: list[int], name: str, keyword: str) -> int:
    """Append a discrete or linear segment that starts at `place`; returns where it ends."""
    if place + 2 >= len(values) or values[place] not in (_DISCRETE, _LINEAR):
        raise _bad(f"a segmented lookup table has no segment at {place}", name, keyword)
    opcode, length = values[place : place + 2]
    if opcode == _DISCRETE:
        entries += values[place + 2 : place + 2 + length]
        return place + 2 + length
    if not entries:
        raise _bad("a segmented lookup table starts with a linear segment", name, keyword)
    start, end = entries[-1], values[place + 2]
    entries += np.rint(np.linspace(start, end, length + 1)[1:]).astype(int).tolist()
    return place + 3


def _bad(rule: str, name: str, keyword: str) -> ImageError:
    return ImageError(rule, remedy="Export the file again", file=name, field=keyword)
