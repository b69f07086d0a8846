"""One run of MedM-VL's training, called by `train.py` in an environment that can import it.

Its own `train()`, data set, collator, model, trainer and recipe; what is changed before and why:

- Python 3.11 refuses its templates, see `common.hashable_formatters`;
- the prompt of the language model and of the other sides, as a template added to its table;
- nothing is saved at the end.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

import common


def main() -> None:
    args = common.arguments()
    module = "lvlm.dataset.template.formatter"
    common.hashable_formatters(module, args.checkout / (module.replace(".", "/") + ".py"))
    training: Any = import_module("lvlm.train")
    recipe: Any = import_module("lvlm.utils.training_recipe.base").BaseTrainingRecipe
    recipe.save = lambda *_: None
    add_template()
    common.measure(args, training.train, flags(args))


def add_template() -> None:
    templates: Any = import_module("lvlm.dataset.template")
    base: Any = import_module("lvlm.dataset.template.base")
    forms: Any = import_module("lvlm.dataset.template.formatter")

    class ChatML(base.Template):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__(
                system=forms.EmptyFormatter(slot=common.SYSTEM),
                format_user=forms.StringFormatter(slot=common.USER),
                format_assistant=forms.StringFormatter(slot=common.ANSWER),
                separator=forms.EmptyFormatter(slot=["", ""]),
            )

        def make_labels(self, input_ids: Any, prompt: str, tokenizer: Any) -> Any:
            return common.masked(
                input_ids, prompt, lambda text: self.tokenizer_special_token(text, tokenizer)
            )

    templates.TEMPlATE_FACTORY["chatml"] = ChatML


def flags(args: Any) -> dict[str, Any]:
    return {
        "lvlm_llm_type": "llama",
        "lvlm_llm_name_or_path": f"{common.PARTS}/{common.LANGUAGE}",
        "lvlm_llm_max_length": 2048,
        "lvlm_llm_padding_side": "right",
        "lvlm_llm_attn_implementation": "sdpa",
        "lvlm_encoder_image_type": "clip",
        "lvlm_encoder_image_name_or_path": f"{common.PARTS}/{common.VISION}",
        "lvlm_encoder_image_select_layer": -1,
        "lvlm_encoder_image_select_feature": "patch",
        "lvlm_connector_image_type": "mlp",
        "lvlm_connector_image_name": "mlp2x_gelu",
        "lvlm_connector_image_path": f"{common.PARTS}/{common.CONNECTOR}/pytorch_model.bin",
        "data_path": common.written_rows(args.data, "medm_vl.json", listed=True),
        "image_dir": ".",
        "conv_version": "chatml",
        "training_recipe": "common",
        "tune_type_llm": "full",
        "tune_type_encoder_image": "frozen",
        "tune_type_connector_image": "full",
    }


if __name__ == "__main__":
    main()
