"""One run of TinyLLaVA Factory's training, called by `train.py` in an environment that can import it.

Its own `train()`, data set, collator, model, trainer and recipe; what is changed before and why:

- deepspeed is a stub: `tinyllava.utils.train_utils` imports two names for ZeRO-3, which does not run here;
- Python 3.11 refuses its templates, see `common.hashable_formatters`;
- its logger asks torch.distributed for a rank, which there is only under a launcher: rank 0;
- the prompt of the language model and of the other sides, as a template registered with its factory;
- nothing is saved at the end.
"""

from __future__ import annotations

from importlib import import_module
from types import SimpleNamespace
from typing import Any

import common


def main() -> None:
    args = common.arguments()
    common.stub("deepspeed", zero=None)
    common.stub("deepspeed.runtime")
    common.stub("deepspeed.runtime.zero")
    common.stub("deepspeed.runtime.zero.partition_parameters", ZeroParamStatus=None)
    module = "tinyllava.data.template.formatter"
    common.hashable_formatters(module, args.checkout / (module.replace(".", "/") + ".py"))
    training: Any = import_module("tinyllava.train.train")
    log: Any = import_module("tinyllava.utils.logging")
    log.dist = SimpleNamespace(get_rank=lambda: 0)
    recipe: Any = import_module("tinyllava.training_recipe.base").BaseTrainingRecipe
    recipe.save = lambda *_: None
    add_template()
    common.measure(args, training.train, flags(args))


def add_template() -> None:
    templates: Any = import_module("tinyllava.data.template")
    forms: Any = import_module("tinyllava.data.template.formatter")

    class ChatML(templates.Template):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__(
                format_image_token=forms.StringFormatter(slot="<image>{{content}}"),
                format_user=forms.StringFormatter(slot=common.USER),
                format_assistant=forms.StringFormatter(slot=common.ANSWER),
                system=forms.EmptyFormatter(slot=common.SYSTEM),
                separator=forms.EmptyFormatter(slot=["", ""]),
            )

        def make_labels(self, input_ids: Any, prompt: str, tokenizer: Any) -> Any:
            return common.masked(
                input_ids, prompt, lambda text: self.tokenizer_image_token(text, tokenizer)
            )

    templates.register_template("chatml")(ChatML)


def flags(args: Any) -> dict[str, Any]:
    return {
        "model_name_or_path": f"{common.PARTS}/{common.LANGUAGE}",
        "vision_tower": f"{common.PARTS}/{common.VISION}",
        "pretrained_model_path": common.PARTS,
        "connector_type": "mlp2x_gelu",
        "mm_vision_select_layer": -1,
        "image_aspect_ratio": "square",
        "model_max_length": 2048,
        "tokenizer_use_fast": True,
        "data_path": common.written_rows(args.data, "tinyllava.json", listed=False),
        "image_folder": ".",
        "is_multimodal": True,
        "lazy_preprocess": True,
        "conv_version": "chatml",
        "training_recipe": "common",
        "tune_type_llm": "full",
        "tune_type_vision_tower": "frozen",
        "tune_type_connector": "full",
    }


if __name__ == "__main__":
    main()
