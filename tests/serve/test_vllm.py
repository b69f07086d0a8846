"""The vLLM plugin's entry point, observed through a stand-in with the real registry's signature (vLLM 0.33,
`ModelRegistry.register_model(model_arch, model_cls)`). vLLM itself is not run here."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import json
import sys
import tomllib
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from medloupe.errors import MissingExtraError
from medloupe.serve import vllm as plugin

ROOT = Path(__file__).resolve().parents[2]

STAND_IN = '''
class _Registry:
    """Keeps what was registered; refuses what vLLM refuses."""

    def __init__(self):
        self.models = {"LlamaForCausalLM": "vllm.model_executor.models.llama:LlamaForCausalLM"}
        self.calls = []

    def get_supported_archs(self):
        return self.models.keys()

    def register_model(self, model_arch, model_cls):
        if not isinstance(model_arch, str) or len(model_cls.split(":")) != 2:
            raise TypeError(model_arch)
        self.calls.append((model_arch, model_cls))
        self.models[model_arch] = model_cls


ModelRegistry = _Registry()
'''


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """`stand_in("0.33.0")`: a package `vllm` of that version on the path."""

    def install(version: str) -> None:
        (tmp_path / "vllm").mkdir(exist_ok=True)
        (tmp_path / "vllm" / "__init__.py").write_text(STAND_IN)
        info = tmp_path / f"vllm-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {version}\n")
        monkeypatch.syspath_prepend(str(tmp_path))

    yield install
    sys.modules.pop("vllm", None)


def entry_point() -> importlib.metadata.EntryPoint:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    ((name, value),) = project["entry-points"]["vllm.general_plugins"].items()
    return importlib.metadata.EntryPoint(name, value, "vllm.general_plugins")


def test_the_entry_point_registers_our_architecture_once(stand_in: Any) -> None:
    stand_in("0.33.0")
    register = entry_point().load()
    register()
    register()  # vLLM calls a plugin in every process, in some more than once
    import vllm

    assert vllm.ModelRegistry.calls == [(plugin.ARCHITECTURE, plugin.MODEL)]
    module, _, name = plugin.MODEL.partition(":")
    source = ROOT / "src" / (module.replace(".", "/") + ".py")
    assert source.is_file()
    assert name == importlib.import_module(module).CLASS


def test_the_architecture_is_the_one_that_our_checkpoints_name(
    tiny: ModuleType, tmp_path: Path
) -> None:
    tiny.model(99, 98).save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())
    assert saved["architectures"] == [plugin.ARCHITECTURE]


def test_without_vllm_the_pip_line_is_told() -> None:
    if importlib.util.find_spec("vllm") is not None:
        pytest.skip("vLLM is installed here")
    with pytest.raises(MissingExtraError, match=r'vllm is not installed.*pip install "vllm>=0.33"'):
        plugin.register()


@pytest.mark.parametrize("version", ["0.6.6", "0.32.1"])
def test_an_old_vllm_is_refused_by_version(stand_in: Any, version: str) -> None:
    stand_in(version)
    with pytest.raises(MissingExtraError, match=f"vLLM {version} is too old"):
        plugin.register()


def test_a_prompt_has_one_placeholder_and_the_tokens_of_each_image(lab: Any) -> None:
    row = next(r for r in lab.dataset.conversations if r.images).without_answer()
    model = lab.model()
    context = lab.context(model)
    made = plugin.vllm_prompt(model, context.processor, context.images, row)
    token = context.processor.image_token_id
    tokens = made["multi_modal_data"]["image"]
    assert made["prompt_token_ids"].count(token) == len(tokens) == len(row.images)
    whole = [
        n for i in made["prompt_token_ids"] for n in ([i] * len(tokens[0]) if i == token else [i])
    ]
    assert whole == context.processor.encode(row, context.images.size_of).input_ids.tolist()
    with torch.no_grad():
        assert torch.equal(tokens[0], model.image_tokens(context.images.inputs(row.images))[0])


def test_neighbouring_images_stay_apart() -> None:
    ids = plugin.one_placeholder_each([5, 9, 9, 9, 9, 9, 6, 9, 9, 7], [2, 3, 2], 9)
    assert ids == [5, 9, 9, 6, 9, 7]


def test_a_prompt_without_images_stays_as_it_is() -> None:
    assert plugin.one_placeholder_each([1, 2, 3], [], 9) == [1, 2, 3]
