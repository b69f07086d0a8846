"""The log of blobs: many writers, killed writers, damaged bytes, and a limit that holds."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import threading
from pathlib import Path
from types import ModuleType

import pytest
from by_path import loaded

from medloupe.errors import ConfigError
from medloupe.imaging.blobs import BlobLog

HAMMER = Path(__file__).with_name("hammer.py")
PLENTY = 2**28


@pytest.fixture(scope="module")
def hammer() -> ModuleType:
    return loaded(HAMMER)


def start(what: str, folder: Path, limit: int, *numbers: int) -> subprocess.Popen[str]:
    command = [sys.executable, str(HAMMER), what, str(folder), str(limit), *map(str, numbers)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def only_shard(folder: Path) -> Path:
    (shard,) = folder.glob("*.shard")
    return shard


def test_a_blob_comes_back_in_this_and_in_a_later_process(tmp_path, hammer):
    log = BlobLog(tmp_path / "new" / "folder", PLENTY)
    assert hammer.right(log, 1) is None
    assert all(hammer.put(log, number) for number in range(20))
    later = BlobLog(log.folder, PLENTY)
    assert all(hammer.right(log, n) and hammer.right(later, n) for n in range(20))
    assert hammer.right(later, 20) is None
    used = log.bytes_used()
    assert hammer.put(later, 3)  # it is there already
    assert log.bytes_used() == used


def test_the_payload_is_a_read_only_map(tmp_path, hammer):
    log = BlobLog(tmp_path, PLENTY)
    hammer.put(log, 5)
    blob = log.get(hammer.key(5))
    assert blob is not None
    assert blob.payload.readonly
    assert type(blob.payload.obj).__name__ == "mmap"


def test_an_empty_payload(tmp_path):
    log = BlobLog(tmp_path, PLENTY)
    assert log.put(b"k" * 32, {"a": [1.5, None]}, memoryview(b""))
    blob = BlobLog(tmp_path, PLENTY).get(b"k" * 32)
    assert blob is not None
    assert (blob.meta, bytes(blob.payload)) == ({"a": [1.5, None]}, b"")


@pytest.mark.parametrize("limit", [PLENTY, 3 * 2**20])
def test_four_processes_at_once(tmp_path, hammer, limit):
    """Every blob that any of them got was right (they exit with 1 otherwise), and so is the rest."""
    workers = [start("churn", tmp_path, limit, seed, 60, 250) for seed in range(4)]
    hits = []
    for worker in workers:
        out, err = worker.communicate(timeout=120)
        assert worker.returncode == 0, err
        hits.append(int(out))
    log = BlobLog(tmp_path, limit)
    kept = [hammer.right(log, number) for number in range(60)]
    assert False not in kept
    assert min(hits) > 50
    assert log.bytes_used() <= limit
    assert kept.count(True) == 60 if limit == PLENTY else 5 < kept.count(True) < 60


def test_a_killed_writer(tmp_path, hammer):
    writer = start("fill", tmp_path, PLENTY)
    assert writer.stdout is not None
    said = [int(writer.stdout.readline()) for _ in range(20)]
    writer.kill()
    writer.communicate(timeout=60)
    log = BlobLog(tmp_path, PLENTY)
    assert all(hammer.right(log, number) for number in said)
    assert all(hammer.put(log, number) and hammer.right(log, number) for number in range(100, 105))
    later = BlobLog(tmp_path, PLENTY)
    assert all(hammer.right(later, number) for number in (*said, *range(100, 105)))


@pytest.mark.parametrize("kept", [0, 1, 63, 64, 65, 100, 150, 5000, -1])
def test_a_torn_tail_is_no_blob_and_is_not_written_behind(tmp_path, hammer, kept):
    """`kept` bytes of the last blob reached the disk."""
    log = BlobLog(tmp_path, PLENTY)
    hammer.put(log, 1)
    whole = only_shard(tmp_path).stat().st_size
    hammer.put(log, 2)
    end = only_shard(tmp_path).stat().st_size
    os.truncate(only_shard(tmp_path), end - 1 if kept < 0 else whole + kept)
    torn = BlobLog(tmp_path, PLENTY)
    assert hammer.right(torn, 1)
    assert hammer.right(torn, 2) is None
    assert hammer.put(torn, 2)
    assert hammer.put(torn, 3)
    later = BlobLog(tmp_path, PLENTY)
    assert [hammer.right(later, number) for number in (1, 2, 3)] == [True] * 3


# of the header: magic, key, lengths, checksums; then meta, padding (which nothing reads), payload
@pytest.mark.parametrize("at", [3, 20, 41, 50, 57, 61, 66, 2000])
def test_damaged_bytes_are_found_and_written_again(tmp_path, hammer, at):
    log = BlobLog(tmp_path, PLENTY)
    hammer.put(log, 2)
    hammer.put(log, 1)
    shard = only_shard(tmp_path)
    data = bytearray(shard.read_bytes())
    data[at] ^= 4
    shard.write_bytes(data)
    reopened = BlobLog(tmp_path, PLENTY)
    assert hammer.right(reopened, 2) is None
    assert hammer.right(reopened, 1) in (None, True)  # behind a damaged header nothing is found
    assert hammer.put(reopened, 2)
    assert hammer.put(reopened, 1)
    later = BlobLog(tmp_path, PLENTY)
    assert hammer.right(reopened, 2)
    assert hammer.right(reopened, 1)
    assert hammer.right(later, 2)
    assert hammer.right(later, 1)


def test_damage_after_the_scan_is_found(tmp_path, hammer):
    hammer.put(BlobLog(tmp_path, PLENTY), 2)
    log = BlobLog(tmp_path, PLENTY)
    assert hammer.right(log, 1) is None  # scans
    data = bytearray(only_shard(tmp_path).read_bytes())
    data[300] ^= 1
    with only_shard(tmp_path).open("r+b") as stream:
        stream.write(data)
    assert hammer.right(log, 2) is None


def test_the_first_blobs_of_a_run_stay_when_there_are_too_many(tmp_path, hammer):
    log = BlobLog(tmp_path, 2**20)
    kept = [hammer.put(log, number) for number in range(40)]
    assert True in kept
    assert False in kept
    assert log.bytes_used() <= 2**20
    assert [bool(hammer.right(log, number)) for number in range(40)] == kept
    assert not log.put(b"x" * 32, {}, memoryview(bytes(2**20)))  # larger than all


def test_a_later_run_drops_what_is_longest_unused(tmp_path, hammer):
    limit = 4 * 2**20
    first = BlobLog(tmp_path, limit)
    for number in range(200):
        hammer.put(first, number)
    shards = sorted(tmp_path.glob("*.shard"))
    assert len(shards) > 2
    before = [number for number in range(200) if hammer.right(first, number)]
    held = first.get(hammer.key(before[0]))
    assert held is not None
    for age, shard in enumerate(shards):  # the first was used last
        os.utime(shard, ns=(10**18 - age, 10**18 - age))
    second = BlobLog(tmp_path, limit)
    assert hammer.right(second, before[0])  # used now, so it stays
    new = range(1000, 1012)
    assert all(hammer.put(second, number) for number in new)
    assert second.bytes_used() <= limit
    assert shards[0].exists()
    assert not shards[-1].exists()
    assert all(hammer.right(second, number) for number in (before[0], *new))
    assert hammer.right(first, new[0])  # an older process sees both
    assert held.payload == hammer.payload(before[0])


def test_what_is_mapped_outlives_its_shard(tmp_path, hammer):
    log = BlobLog(tmp_path, PLENTY)
    hammer.put(log, 7)
    blob = log.get(hammer.key(7))
    assert blob is not None
    only_shard(tmp_path).unlink()
    assert blob.payload == hammer.payload(7)
    assert hammer.right(BlobLog(tmp_path, PLENTY), 7) is None
    assert hammer.put(log, 7)
    assert hammer.right(BlobLog(tmp_path, PLENTY), 7)


def test_a_pickled_log_belongs_to_the_same_run(tmp_path, hammer):
    log = BlobLog(tmp_path, PLENTY)
    hammer.put(log, 1)
    copy = pickle.loads(pickle.dumps(log))
    assert hammer.right(copy, 1)
    assert (copy.opened_ns, copy.limit_bytes) == (log.opened_ns, PLENTY)


def test_a_forked_log(tmp_path, hammer):
    log = BlobLog(tmp_path, PLENTY)
    hammer.put(log, 1)
    child = os.fork()
    if child == 0:
        os._exit(0 if hammer.right(log, 1) and hammer.put(log, 2) else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert hammer.put(log, 3)
    assert all(hammer.right(log, number) for number in (1, 2, 3))


def test_a_fork_while_another_thread_reads(tmp_path, hammer):
    """The child's copy of the mutex is held by a thread that it does not have."""
    log = BlobLog(tmp_path, PLENTY)
    hammer.put(log, 1)
    held, done = threading.Event(), threading.Event()

    def hold() -> None:
        with log._alone():
            held.set()
            done.wait()

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait()
    child = os.fork()
    if child == 0:
        signal.alarm(20)  # ends a child that waits for ever
        os._exit(0 if hammer.right(log, 1) else 1)
    status = os.waitpid(child, 0)[1]
    done.set()
    thread.join()
    assert status == 0


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot be used") as caught:
        BlobLog(tmp_path / "file" / "cache", PLENTY)
    assert caught.value.fault.file == str(tmp_path / "file" / "cache")
