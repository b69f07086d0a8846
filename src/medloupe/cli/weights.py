"""`medloupe import` and `medloupe export`: checkpoints of other projects, both ways."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.markup import escape

from medloupe.cli import console

Out = Annotated[Path, typer.Option("--out", help="The folder to write.", show_default=False)]


def import_(
    source: Annotated[
        str,
        typer.Argument(
            help="A folder or hub id: LLaVA (transformers' or the original naming), TinyLLaVA, MedM-VL."
        ),
    ],
    out: Out,
    vision_tower: Annotated[
        str | None, typer.Option("--vision-tower", help="Where the vision tower lies.")
    ] = None,
    language: Annotated[
        str | None, typer.Option("--language", help="Where the language model's config lies.")
    ] = None,
    tokenizer: Annotated[
        str | None, typer.Option("--tokenizer", help="Where the tokenizer lies.")
    ] = None,
    prompt: Annotated[
        str | None,
        typer.Option("--prompt", help="The prompt format, if not the one of its family."),
    ] = None,
    allow: Annotated[
        list[str] | None,
        typer.Option("--allow", help="Prefix of tensors that may fit nothing; may be repeated."),
    ] = None,
) -> None:
    """Load a published checkpoint, with the prompt it was trained with, and save it as a model here.

    [dim]medloupe import llava-v1.5-7b --out models/llava --vision-tower clip-vit-large-patch14-336[/]
    [dim]medloupe ask --model models/llava --image scan.dcm "Is there a lesion?"[/]
    """
    console.quiet_libraries()
    from medloupe.models.weights import Parts
    from medloupe.processing.formats import prompt_format
    from medloupe.recipes.exchange import REPORT_FILE, import_model

    if prompt is not None:
        prompt_format(prompt)
    parts = Parts(vision_tower=vision_tower, language=language, tokenizer=tokenizer, prompt=prompt)
    report = import_model(source, out, parts, allow=allow or ())
    for line in report.lines():
        console.out.print(escape(line))
    console.out.print(f"every tensor by name: {escape(str(out / REPORT_FILE))}")


def export(
    model: Annotated[
        Path,
        typer.Option(
            "--model", help="The folder of a run, or of a saved model.", show_default=False
        ),
    ],
    out: Out,
    to: Annotated[
        Literal["llava"], typer.Option("--to", help="The format: transformers' LLaVA.")
    ] = "llava",
    trust_code: Annotated[
        bool,
        typer.Option("--trust-code", help="Allow a saved model to name code outside MedLoupe."),
    ] = False,
) -> None:
    """Write a model in a format that transformers, vLLM and SGLang load without MedLoupe.

    Only compositions that equal LLaVA's can be written so: a CLIP or SigLIP tower, an MLP of two
    layers, Llama, Mistral or Qwen. Others run under vLLM through MedLoupe's plugin.

    [dim]medloupe export --model runs/first --out exported[/]
    """
    console.quiet_libraries()
    del to
    from medloupe.recipes import run
    from medloupe.recipes.exchange import export_llava

    for note in export_llava(run.model_folder(model), out, trust_code=trust_code):
        console.out.print(f"[yellow]note:[/] its image processor cannot say {escape(note)}")
    console.out.print(f"{escape(str(out))}: LlavaForConditionalGeneration of transformers")
