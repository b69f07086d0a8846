"""Thousands of damaged DICOM, NIfTI, PNG, JPEG and TIFF files, each under a limit of memory and time.

    python benchmarks/fuzz_images.py --count 5000 --seed 0

Every file must give an image of the right form or a MedLoupe error that names it. The files are those
of tests/imaging/mutate.py; workers are processes of their own, so that a decoder that crashes or hangs
is counted and the run goes on. Exits with 1 if there was anything else, and keeps those files.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "imaging"))
import mutate

MB = 2**20


def main() -> None:
    """Run and report."""
    wanted = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    wanted.add_argument("--count", type=int, default=5000)
    wanted.add_argument("--first", type=int, default=0, help="number of the first file")
    wanted.add_argument("--seed", type=int, default=0)
    wanted.add_argument("--only", default="", help="good files with this in their name")
    wanted.add_argument("--workers", type=int, default=1)
    wanted.add_argument("--seconds", type=float, default=30, help="for one file")
    wanted.add_argument("--memory", type=int, default=4096, help="address space of a worker, MB")
    wanted.add_argument("--keep", type=Path, default=Path("fuzz-failures"))
    wanted.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    args = wanted.parse_args()
    if args.worker:
        serve(args)
        return
    numbers = range(args.first, args.first + args.count)
    with ThreadPoolExecutor(args.workers) as pool:
        parts = [numbers[start :: args.workers] for start in range(args.workers)]
        results = [r for part in pool.map(lambda part: run(part, args), parts) for r in part]
    sys.exit(report(results, args))


def serve(args: argparse.Namespace) -> None:
    """A worker: numbers come in, what became of them goes out, one JSON line each."""
    good = chosen(args)
    limit = args.memory * MB
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    with tempfile.TemporaryDirectory() as folder:
        for line in sys.stdin:
            number = int(line)
            mutated = mutate.mutation(good, args.seed, number)
            path = Path(folder) / f"{number}"
            path.write_bytes(mutated.data)
            before = peak_memory(reset=True)
            outcome = mutate.attempt(path, number)
            grown = peak_memory() - before
            path.unlink()
            said = {"number": number, "name": mutated.name, "kind": outcome.kind}
            print(json.dumps({**said, "what": outcome.what, "grown": grown}), flush=True)


def chosen(args: argparse.Namespace) -> list[mutate.Seed]:
    return [good for good in mutate.seeds() if args.only in good.name]


def peak_memory(*, reset: bool = False) -> int:
    """The most bytes that this process had in memory, since the last reset (Linux)."""
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    lines = Path("/proc/self/status").read_text().splitlines()
    (peak,) = [line.split()[1] for line in lines if line.startswith("VmHWM")]
    return int(peak) * 1024


def run(numbers: range, args: argparse.Namespace) -> list[dict[str, Any]]:
    """Send the numbers to a worker, and begin another where one dies or hangs."""
    results: list[dict[str, Any]] = []
    worker = None
    for number in numbers:
        if worker is None:
            worker = begin(args)
        assert worker.stdin is not None
        assert worker.stdout is not None
        clock = threading.Timer(args.seconds, worker.kill)
        clock.start()
        try:
            worker.stdin.write(f"{number}\n")
            worker.stdin.flush()
            line = worker.stdout.readline()
        except BrokenPipeError:
            line = ""
        hung = clock.finished.is_set()
        clock.cancel()
        if line:
            results.append(json.loads(line))
        else:
            code = worker.wait()
            kind = "hung" if hung else f"crashed, exit code {code}"
            name = mutate.mutation(chosen(args), args.seed, number).name
            results.append({"number": number, "name": name, "kind": kind, "what": "", "grown": 0})
            worker = None
        if len(results) % 250 == 0:
            print(f"{len(results)} of {len(numbers)}", file=sys.stderr)
    if worker is not None:
        assert worker.stdin is not None
        worker.stdin.close()
        worker.wait()
    return results


def begin(args: argparse.Namespace) -> subprocess.Popen[str]:
    options = ["--worker", "--seed", str(args.seed), "--memory", str(args.memory)]
    options += ["--only", args.only]
    command = [sys.executable, "-X", "faulthandler", __file__, *options]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def report(results: list[dict[str, Any]], args: argparse.Namespace) -> int:
    """Print counts by format and outcome; keep the files that failed. 1 if there were any."""
    counts = Counter((suffix(result["name"]), result["kind"]) for result in results)
    for (kind, outcome), count in sorted(counts.items()):
        print(f"{kind:8} {outcome:28} {count:6}")
    print(f"most memory for one file: {max(r['grown'] for r in results) / MB:.0f} MB")
    bad = [r for r in results if r["kind"] not in ("image", "refused")]
    print(f"{len(results)} files, seed {args.seed}: {len(bad)} failures")
    good = chosen(args) if bad else []
    for result in bad:
        args.keep.mkdir(exist_ok=True)
        mutated = mutate.mutation(good, args.seed, result["number"])
        (args.keep / f"{args.seed}-{result['number']}").write_bytes(mutated.data)
        print(f"{result['kind']}: {result['name']}: {result['what'][:300]}")
    return min(len(bad), 1)


def suffix(name: str) -> str:
    """The format in a mutation's name."""
    for known in (".dcm", ".nii.gz", ".nii", ".png", ".jpg", ".tif"):
        if known in name:
            return known
    return name


if __name__ == "__main__":
    main()
