"""What the tests of `blobs` run in other processes: `python hammer.py fill|churn FOLDER ...`.

A blob's bytes follow from its number, so every process can tell whether it got the right ones.
"""

from __future__ import annotations

import hashlib
import random
import sys
from pathlib import Path

import numpy as np

from medloupe.imaging.blobs import BlobLog


def key(number: int) -> bytes:
    return hashlib.sha256(f"blob {number}".encode()).digest()


def payload(number: int) -> memoryview:
    """Between 1 byte and 200 kB, all telling their number."""
    size = 1 + (number * 7919) % 200_000
    return np.random.default_rng(number).integers(0, 256, size, dtype=np.uint8).data


def put(log: BlobLog, number: int) -> bool:
    return log.put(key(number), {"number": number}, payload(number))


def right(log: BlobLog, number: int) -> bool | None:
    """None where the blob is not there, else whether it is the right one."""
    blob = log.get(key(number))
    return (
        None
        if blob is None
        else (blob.meta, blob.payload)
        == (
            {"number": number},
            payload(number),
        )
    )


def churn(log: BlobLog, seed: int, blobs: int, steps: int) -> None:
    """Get and put at random, as several runs; exits with 1 at a wrong blob or a broken limit."""
    chance = random.Random(seed)
    hits = 0
    for step in range(steps):
        if step % 25 == 0:  # a new run: what the others did not use since may be dropped
            log = BlobLog(log.folder, log.limit_bytes)
        number = chance.randrange(blobs)
        found = right(log, number)
        if found is None:
            put(log, number)
        elif not found:
            sys.exit(f"wrong bytes for {number}")
        hits += bool(found)
        if log.bytes_used() > log.limit_bytes:
            sys.exit(f"{log.bytes_used()} bytes are over the limit")
    sys.stdout.write(f"{hits}\n")


def fill(log: BlobLog) -> None:
    """Put blobs until killed, saying each."""
    number = 0
    while True:
        put(log, number)
        sys.stdout.write(f"{number}\n")
        sys.stdout.flush()
        number += 1


if __name__ == "__main__":
    what, folder, limit, *rest = sys.argv[1:]
    opened = BlobLog(Path(folder), int(limit))
    if what == "fill":
        fill(opened)
    churn(opened, *map(int, rest))
