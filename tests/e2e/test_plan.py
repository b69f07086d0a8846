"""`medloupe plan` as a user types it."""

from __future__ import annotations

import json
from typing import Any


def test_a_published_recipe_is_planned_without_weights(medloupe: Any) -> None:
    shown = medloupe("plan", "litegpt_pubmedclip", "--gpus", "4", "--memory", "80")
    for words in ("6,738,415,616", "trained in identify", "33,554,432", "10,980 steps in all"):
        assert words in shown.out
    assert "GiB a GPU (4 of 80)" in shown.out
    assert "FSDP2" not in shown.out  # an 8-bit base is not sharded


def test_the_numbers_as_json(medloupe: Any) -> None:
    words = ("plan", "medm_vl_2d_tiny", "--json", "--rows", "align=1000", "--text-tokens", "40")
    made = json.loads(medloupe(*words).out)
    assert made["image_tokens"] == made["encoder_tokens"] == 49
    assert made["stages"][0]["rows"] == 1000
    assert made["stages"][1]["trainable"] == made["parameters"]  # every part trains


def test_a_mistake_names_the_remedy(medloupe: Any) -> None:
    failed = medloupe("plan", "litegpt_tiny", "--rows", "identify", code=2)
    assert "is not STAGE=N" in failed.err
    assert "Write --rows instruct=60000" in failed.err
