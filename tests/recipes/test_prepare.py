"""What was prepared is used again only if neither the config nor the source has changed."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from medloupe.data.dataset import load_dataset
from medloupe.data.datasets.base import DatasetConfig
from medloupe.errors import ConfigError, DataError
from medloupe.recipes.prepare import SOURCE_FILE, prepare

TABLE = "image,label\na.png,x\nb.png,y\n"


def silent(what: str, done: int, total: int) -> None:
    """Nobody watches."""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "source"
    folder.mkdir()
    for number, name in enumerate(("a.png", "b.png")):
        Image.new("L", (20, 20), 50 * number).save(folder / name)
    (folder / "t.csv").write_text(TABLE)
    return folder


def test_the_same_source_is_not_read_again(root: Path, tmp_path: Path) -> None:
    config, out, said = DatasetConfig.parse("folder"), tmp_path / "out", list[str]()
    made = prepare(config, out, root=root, progress=silent, tell=said.append)
    assert said == []
    assert prepare(config, out, root=root, progress=silent, tell=said.append) == made
    assert said == [f"{out}: already prepared, nothing read again"]
    # a run that goes on without --root takes what it has, wherever the source went
    assert prepare(config, out, root=None, progress=silent) == made


def _edited(root: Path) -> Path:
    (root / "t.csv").write_text(TABLE.replace("b.png,y", "b.png,z"))
    return root


def _touched(root: Path) -> Path:
    os.utime(root / "b.png", ns=(1, 1))
    return root


def _one_more(root: Path) -> Path:
    (root / "notes.txt").touch()
    return root


def _another(root: Path) -> Path:
    other = root.with_name("other")
    other.mkdir()
    return other


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        (_edited, "files in .* were changed, added or removed"),
        (_touched, "files in .* were changed, added or removed"),
        (_one_more, "3 files then, 4 now"),
        (_another, "prepared from .*source, not from .*other"),
        (lambda root: root.with_name("nowhere"), "prepared from .*source, not from .*nowhere"),
        (lambda root: root.rename(root.with_name("gone")).with_name("source"), "no longer there"),
    ],
)
def test_another_source_is_refused(
    root: Path, tmp_path: Path, change: Callable[[Path], Path], rule: str
) -> None:
    config, out = DatasetConfig.parse("folder"), tmp_path / "out"
    made = prepare(config, out, root=root, progress=silent)
    with pytest.raises(DataError, match=rule) as caught:
        prepare(config, out, root=change(root), progress=silent)
    assert caught.value.fault.file == str(out)
    assert "--out" in caught.value.fault.remedy
    assert load_dataset(out) == made


def test_a_set_of_unknown_source_is_not_taken_for_this_one(root: Path, tmp_path: Path) -> None:
    config, out = DatasetConfig.parse("folder"), tmp_path / "out"
    prepare(config, out, root=root, progress=silent)
    (out / SOURCE_FILE).unlink()
    with pytest.raises(DataError, match="not known whether"):
        prepare(config, out, root=root, progress=silent)


@pytest.mark.parametrize("place", [".", "out", "deep/out", ".."])
def test_out_and_root_may_not_lie_inside_each_other(root: Path, place: str) -> None:
    before = sorted(root.rglob("*"))
    with pytest.raises(ConfigError, match="lie inside each other"):
        prepare(DatasetConfig.parse("folder"), root / place, root=root, progress=silent)
    assert sorted(root.rglob("*")) == before
