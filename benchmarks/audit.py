"""How long a leak audit takes on many images, and that its search does not grow with the square.

    python benchmarks/audit.py --images 100000

Prints, for a quarter, a half and all of the images: seconds of the audit by file hash alone (hashes
stated by the rows), seconds of the search for near duplicates among perceptual hashes, pairs compared
there, and beside it the pairs that comparing all with all would take. A thousand copies are planted,
each up to 8 bits away, a fifth of the images is held out, and a tenth of all are alike (12 bits about one
of 50 centres), as radiographs are. Decoding is not in it: `medloupe audit` prints what it takes.
"""

from __future__ import annotations

import argparse
import hashlib
import time
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from medloupe.data.audit import AuditConfig, AuditSet, audit
from medloupe.data.audit.hamming import HammingIndex
from medloupe.data.audit.look import CROPS
from medloupe.types import ImageRef, Record

PLANTED = 1000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=100_000)
    images = parser.parse_args().images
    print("images   hash audit (s)   near search (s)   pairs compared   all pairs   found")
    for number in (images // 4, images // 2, images):
        by_hash = time_hash_audit(number)
        seconds, compared, found = time_near_search(number)
        every = number // 5 * (number - number // 5)
        print(f"{number:7,} {by_hash:14.1f} {seconds:17.1f} {compared:16,} {every:14,} {found:7,}")


def time_hash_audit(number: int) -> float:
    """An audit of records that state the hashes of their files."""
    rows = tuple(
        Record(
            id=f"r{n}",
            patient_id=f"p{n}",
            images=(ImageRef(uri=f"{n}.png", sha256=hashlib.sha256(str(n).encode()).hexdigest()),),
            split="test" if n % 5 == 0 else "train",
        )
        for n in range(number)
    )
    begun = time.perf_counter()
    report = audit([AuditSet("bench", Path(), rows)], AuditConfig(images="hash"), workers=1)
    assert not report.findings
    return time.perf_counter() - begun


def time_near_search(number: int) -> tuple[float, int, int]:
    """Seconds, pairs compared, and how many of the planted copies were met."""
    rng = np.random.default_rng(0)
    hashes = rng.integers(0, 2**64, number, dtype=np.uint64)
    centres = rng.integers(0, 2**64, 50, dtype=np.uint64)
    alike = number // 10
    hashes[:alike] = flipped(centres[rng.integers(0, 50, alike)], 12, rng)
    held = np.arange(number - number // 5, number)
    hashes[held[:PLANTED]] = flipped(hashes[:PLANTED], 8, rng)
    begun = time.perf_counter()
    # as the audit does it: all images are filed with each crop, held-out ones ask with each crop
    whole = HammingIndex(hashes, 8)
    cropped = HammingIndex(np.repeat(hashes, len(CROPS) - 1), 8)
    met = set()
    for index, queries in ((whole, np.repeat(hashes[held], len(CROPS))), (cropped, hashes[held])):
        per_query = len(queries) // len(held)
        per_filed = len(index.hashes) // number
        for query, filed in index.pairs(queries):
            query, filed = query // per_query, filed // per_filed
            planted = query[(filed == query) & (query < PLANTED)]
            met |= set(planted.tolist())
    return time.perf_counter() - begun, whole.compared + cropped.compared, len(met)


def flipped(hashes: NDArray[np.uint64], most: int, rng: np.random.Generator) -> NDArray[np.uint64]:
    """Each hash with up to `most` of its bits flipped."""
    order = np.argsort(rng.random((len(hashes), 64)), axis=1)[:, :most]
    keep = np.arange(most)[None] < rng.integers(0, most + 1, len(hashes))[:, None]
    bits = np.where(keep, np.uint64(1) << order.astype(np.uint64), np.uint64(0))
    return hashes ^ np.bitwise_or.reduce(bits, axis=1)


if __name__ == "__main__":
    main()
