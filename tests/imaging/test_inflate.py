"""Gzip against Python's own, and streams that are broken or lie."""

from __future__ import annotations

import gzip
import tracemalloc
import zlib

import numpy as np
import pytest

from medloupe.imaging.inflate import INFLATE_ERRORS, checksum, inflate

NOISE = np.random.default_rng(0).integers(0, 40, 3_000_000, dtype=np.uint8).tobytes()
PACKED = gzip.compress(NOISE, 1)


@pytest.mark.parametrize("wanted", [0, 1, 99, 100, 101, 2**20, 2**20 + 1, len(NOISE)])
def test_the_start_of_a_stream(wanted):
    seen = []

    def end(start: bytes) -> int:
        seen.append(start)
        return wanted

    assert inflate(PACKED, 100, end) == NOISE[:wanted]
    assert seen == [NOISE[:100]]


def test_several_members_and_zeros_behind():
    packed = b"".join(gzip.compress(part) for part in (b"abc" * 9, b"", b"z" * 7)) + bytes(5)
    assert inflate(packed, 5, lambda _: 34) == b"abc" * 9 + b"z" * 7
    with pytest.raises(EOFError, match="ends after 34 of 35"):
        inflate(packed, 5, lambda _: 35)


@pytest.mark.parametrize("cut", [1, 4, 8, 9, 1000, 10**6])
def test_a_stream_that_is_cut_off(cut):
    with pytest.raises(EOFError):
        inflate(PACKED[:-cut], 100, lambda _: len(NOISE))


@pytest.mark.parametrize("at", [0, 2, 3000, 10**6, -7, -1])
def test_a_damaged_stream(at):
    damaged = bytearray(PACKED)
    damaged[at] ^= 0x55
    with pytest.raises(INFLATE_ERRORS):
        inflate(bytes(damaged), 100, lambda _: len(NOISE))


def test_a_small_file_gets_a_small_memory():
    bomb = gzip.compress(bytes(10**8))
    tracemalloc.start()
    with pytest.raises(EOFError, match="cannot hold"):
        inflate(gzip.compress(b"small"), 5, lambda _: 2**40)
    assert len(inflate(bomb, 5, lambda _: 1000)) == 1000
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 10**7


def test_the_checksum_is_that_of_zlib():
    assert checksum(b"ab", memoryview(b""), memoryview(b"cde")) == zlib.crc32(b"abcde")
