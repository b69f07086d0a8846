"""One run without a break and one that is killed over and over: `python kills.py LAB OUT KILLS`.

Torch is imported once; every start is a fork, one thread, before anything is computed. Every other kill
comes from outside at a random moment of a step or of the save after it, the others in the middle of a save:
a random share of its bytes is written.
"""

from __future__ import annotations

import io
import json
import os
import random
import signal
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from by_path import loaded

from medloupe.train import TrainConfig, files
from medloupe.train.files import save_synced

TINY = loaded(Path(__file__).with_name("tiny.py"))


def config(prefetch: int) -> TrainConfig:
    """Two stages of 16 steps, a checkpoint after each step."""
    fields = ["stages.0.steps=16", "stages.1.steps=16", "save_every=1", f"prefetch={prefetch}"]
    made: TrainConfig = TINY.two_stages().with_overrides(fields)
    return made


def dying(share: float, number: int) -> Callable[[Path, Mapping[str, Any]], None]:
    """A save whose `number`-th call is killed when `share` of the file is written."""
    calls = 0

    def save(path: Path, state: Mapping[str, Any]) -> None:
        nonlocal calls
        calls += 1
        if calls < number:
            save_synced(path, state)
            return
        whole = io.BytesIO()
        torch.save(dict(state), whole)
        path.write_bytes(whole.getvalue()[: int(share * len(whole.getvalue()))])
        os.kill(os.getpid(), signal.SIGKILL)

    return save


def started(lab: Path, out: Path, prefetch: int, save: Any = save_synced) -> tuple[int, int]:
    """A process that trains, and a pipe with a byte for every step."""
    told, tell = os.pipe()
    child = os.fork()
    if child:
        os.close(tell)
        return child, told
    try:
        files.save_synced = save
        trainer = TINY.Lab(lab).trainer(
            out,
            config(prefetch),
            progress=lambda what, *_: os.write(tell, b".") if what.startswith("train") else None,
        )
        trainer.fit(resume=True)
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


def ended(child: int, told: int) -> int:
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    os.close(told)
    return code


def main(lab: Path, out: Path, kills: int) -> None:
    rng = random.Random(6)
    child, told = started(lab, out / "whole", prefetch=2)
    os.read(told, 1)
    begun = time.perf_counter()
    while os.read(told, 1):
        pass
    interval = (time.perf_counter() - begun) / 32
    codes = [ended(child, told)]
    for number in range(kills):
        if number % 2:
            save = dying(rng.random(), rng.randint(1, 3))
            child, told = started(lab, out / "broken", number % 3, save)
        else:
            child, told = started(lab, out / "broken", number % 3)
            os.read(told, 1)
            signal.sigtimedwait([signal.SIGCHLD], rng.random() * 1.5 * interval)
            os.kill(child, signal.SIGKILL)
        codes.append(ended(child, told))
    codes.append(ended(*started(lab, out / "broken", prefetch=2)))
    (out / "codes.json").write_text(json.dumps(codes))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))
