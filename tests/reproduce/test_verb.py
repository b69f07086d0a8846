"""`medloupe reproduce` as it is typed."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from medloupe.cli.app import app
from medloupe.errors import ConfigError
from medloupe.reproduce import Grid, grids


def test_the_grids_are_listed() -> None:
    found = CliRunner().invoke(app, ["reproduce", "--list"], env={"COLUMNS": "200"})
    assert found.exit_code == 0
    for name in (*grids.GRIDS, "litegpt_tables"):
        assert name in found.stdout


def test_the_list_of_a_grid_or_of_all_is_of_grids_alone() -> None:
    one = CliRunner().invoke(app, ["reproduce", "encoders", "--list"], env={"COLUMNS": "200"})
    assert one.exit_code == 0, one.exception
    assert "One encoder or two" in one.stdout
    assert "scales" not in one.stdout
    every = CliRunner().invoke(app, ["reproduce", "all", "--list"], env={"COLUMNS": "200"})
    assert every.exit_code == 0, every.exception
    assert all(name in every.stdout for name in grids.GRIDS)
    assert "medm_vl.fig3a" not in every.stdout


@pytest.mark.parametrize("name", ["encoders", "all"])
def test_a_grid_has_no_published_size(name: str, tmp_path: Path) -> None:
    typed = ["reproduce", name, "--scale", "full", "--out", str(tmp_path / "out")]
    found = CliRunner().invoke(app, typed)
    assert isinstance(found.exception, ConfigError)
    assert "only a paper's tables" in str(found.exception)
    assert not (tmp_path / "out").exists()


def test_a_grid_must_be_named() -> None:
    for arguments in (["reproduce"], ["reproduce", "scale"]):
        found = CliRunner().invoke(app, arguments)
        assert isinstance(found.exception, ConfigError)


def test_a_grid_runs_and_is_shown(
    tiny_grid: Grid, begun: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = shutil.copytree(begun, tmp_path / "out")
    monkeypatch.setattr(grids, "GRIDS", {"tiny": lambda: tiny_grid})
    asked = ["reproduce", "tiny", "--seeds", "1", "--out", str(out)]
    found = CliRunner().invoke(app, asked, env={"COLUMNS": "200"})
    assert found.exit_code == 0, found.exception
    assert "[2/2] two, seed 0" in found.stdout
    assert "two above one" in found.stdout
    assert "Direction as in the paper" in found.stdout
