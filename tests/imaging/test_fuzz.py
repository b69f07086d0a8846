"""Mutated files of every format end in an image of the right form or an error that names them.

`benchmarks/fuzz_images.py` does the same to thousands, under limits of memory and time.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from pathlib import Path
from types import ModuleType

import nibabel
import numpy as np
import pytest
from by_path import loaded


@pytest.fixture(scope="module")
def mutate() -> ModuleType:
    return loaded(Path(__file__).with_name("mutate.py"))


def test_the_good_files_are_read(mutate, tmp_path):
    for number, seed in enumerate(mutate.seeds()):
        path = tmp_path / "good"
        path.write_bytes(seed.data)
        outcomes = [mutate.attempt(path, 3 * number) for number in range(4)]
        assert "image" in [outcome.kind for outcome in outcomes], (seed.name, outcomes)
        assert all(outcome.good for outcome in outcomes), (seed.name, outcomes)


def test_mutations_follow_from_their_number(mutate):
    good, again = mutate.seeds(), mutate.seeds()
    first, second = ([mutate.mutation(one, 7, n) for n in range(60)] for one in (good, again))
    assert first == second
    originals = {hashlib.sha256(seed.data).digest() for seed in good}
    changed = [hashlib.sha256(one.data).digest() not in originals for one in first]
    assert sum(changed) > 50


def test_values_at_the_end_of_float32_are_shown(mutate, tmp_path):
    """Their range is no float32."""
    voxels = np.array([-3e38, 0, 3e38, np.inf, np.nan, 1], np.float32).reshape(3, 2, 1)
    nibabel.save(nibabel.Nifti1Image(voxels, np.eye(4)), tmp_path / "a.nii")
    assert mutate.attempt(tmp_path / "a.nii", 0).kind == "image"


def test_mutated_files(mutate, tmp_path):
    good = mutate.seeds()
    kinds: Counter[str] = Counter()
    for number in range(450):
        mutated = mutate.mutation(good, 1, number)
        path = tmp_path / "mutated"
        path.write_bytes(mutated.data)
        outcome = mutate.attempt(path, number)
        assert outcome.good, (mutated.name, outcome)
        kinds[outcome.kind] += 1
    assert min(kinds["image"], kinds["refused"]) > 90
