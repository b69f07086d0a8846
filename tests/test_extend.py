"""docs/extend.md: every block of Python is run as it stands, from outside of the package."""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import yaml

from medloupe.config import ComponentConfig
from medloupe.data.datasets.base import DatasetConfig
from medloupe.errors import ConfigError
from medloupe.evaluate.scorers.base import Scorer
from medloupe.models.adapters import AdapterConfig
from medloupe.models.connectors import ConnectorConfig
from medloupe.models.encoders import EncoderConfig
from medloupe.recipes import run
from medloupe.recipes.config import RunConfig
from medloupe.reproduce.parts import SmallLanguage
from medloupe.types import ImageLayout

PAGE = Path(__file__).resolve().parents[1] / "docs" / "extend.md"
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
FILE = re.compile(r"# (my_lab/\w+\.py)\n")
# The only line that is changed: a small language model in place of the starter's 135 million.
SOURCE = 'LanguageConfig(source="starter")'
COMPONENTS: list[tuple[type[ComponentConfig], str]] = [
    (DatasetConfig, "my_lab.squares:SquaresConfig"),
    (EncoderConfig, "my_lab.patches:PatchesConfig"),
    (ConnectorConfig, "my_lab.pool:MyPoolConfig"),
    (AdapterConfig, "my_lab.shift:ShiftConfig"),
    (Scorer, "my_lab.first_word:FirstWord"),
]


def blocks(language: str) -> list[str]:
    return [text for name, text in BLOCK.findall(PAGE.read_text("utf-8")) if name == language]


def silent(what: str, done: int, total: int) -> None:
    """Nobody watches."""


@pytest.fixture(scope="module")
def outside(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with the package my_lab, made of the page's blocks, in which the last one has run."""
    folder = tmp_path_factory.mktemp("outside")
    scripts = []
    for text in blocks("python"):
        found = FILE.match(text)
        if found is None:
            scripts.append(text)
            continue
        file = folder / found[1]
        file.parent.mkdir(exist_ok=True)
        file.write_text(text.replace(SOURCE, f'LanguageConfig(source="{folder}/language")'))
    (folder / "my_lab" / "__init__.py").touch()
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        patch.chdir(folder)
        squares = importlib.import_module("my_lab.squares")
        data = squares.SquaresConfig().prepare(folder / "texts", root=None, progress=silent)
        small = SmallLanguage(vocabulary=300, width=16, hidden=32, layers=1, heads=2, steps=2)
        processor = importlib.import_module("my_lab.recipe").squares().processor
        small.made(folder / "language", data, processor, silent)
        for script in scripts:
            exec(compile(script, str(PAGE), "exec"), {"__name__": "page"})
        yield folder
    for name in [name for name in sys.modules if name.split(".")[0] == "my_lab"]:
        del sys.modules[name]


def test_the_page_shows_each_part_once() -> None:
    files = [found[1] for text in blocks("python") if (found := FILE.match(text))]
    names = ("squares", "patches", "pool", "shift", "first_word", "recipe")
    assert files == [f"my_lab/{name}.py" for name in names]
    assert sum(SOURCE in text for text in blocks("python")) == 1


def test_the_run_is_whole(outside: Path) -> None:
    for file in ("model/config.json", "eval.jsonl", "report.html", "manifest.json"):
        assert (outside / "runs/squares" / file).is_file(), file
    written = RunConfig.from_yaml(outside / "squares.yaml")
    assert written == importlib.import_module("my_lab.recipe").squares()


def test_the_yaml_on_the_page_is_a_part_of_it(outside: Path) -> None:
    (text,) = blocks("yaml")
    whole = yaml.safe_load((outside / "squares.yaml").read_text())
    for part, fields in yaml.safe_load(text)["model"].items():
        assert fields.items() <= whole["model"][part].items()


def test_code_from_elsewhere_is_asked_for(outside: Path) -> None:
    folder, data = outside / "runs/squares/model", outside / "data/squares"
    with pytest.raises(ConfigError, match="--trust-code"):
        run.load(folder, root=data)
    predict = run.load(folder, root=data, trust_code=True)
    assert type(predict.model.connector).__module__ == "my_lab.pool"


@pytest.mark.parametrize(("family", "name"), COMPONENTS)
def test_a_part_is_named_and_comes_back(
    outside: Path, family: type[ComponentConfig], name: str
) -> None:
    made = family.parse({"name": name})
    assert made.name == name
    assert family.parse(made.to_dict()) == made


def test_the_parts_keep_their_contracts(outside: Path) -> None:
    """As tests/contracts asks of MedLoupe's own."""
    encoder = EncoderConfig.parse({"name": COMPONENTS[1][1]}).build()
    views = torch.randn(3, 3, 64, 64)
    features = encoder(views)
    assert features.shape == (3, encoder.layout.tokens, encoder.channels)
    assert torch.allclose(features[1:2], encoder(views[1:2]), atol=1e-5)
    config = ConnectorConfig.parse({"name": COMPONENTS[2][1]})
    connector = config.build(encoder.channels, 16)
    for grid in (encoder.layout, ImageLayout(depth=3, rows=8, columns=8)):
        tokens = connector(torch.randn(2, grid.tokens, encoder.channels), grid)
        assert tokens.shape == (2, connector.layout(grid).tokens, 16)
    adapter = AdapterConfig.parse({"name": COMPONENTS[3][1]}).build(16, 4)
    tokens = torch.randn(2, 5, 16)
    assert not torch.equal(adapter(0, tokens, None, None), tokens)
    adapter.reset()
    assert torch.equal(adapter(0, tokens, None, None), tokens)
    with pytest.raises(ConfigError, match="does not divide"):
        connector.layout(ImageLayout(rows=7, columns=8))
