"""Run as a script with a folder: CheXbert's and RadGraph's files as radeval's caches hold them, tiny and
with random weights, and what they say of pairs of texts.

    HF_HOME=F/hf XDG_CACHE_HOME=F/xdg HF_HUB_OFFLINE=1 python tiny_radeval.py F pairs.json

F/expected.json then holds, for each pair of a truth and an answer, RadGraph's numbers by radeval's own
entrance, and CheXbert's by hand: the entrance takes CUDA for granted, and its counting fails with
scikit-learn 1.9.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from tiny_bert import made_bert

WORDS = (
    "[PAD] [UNK] [CLS] [SEP] [MASK] a b 1 2 the left right lung is clear no effusion heart large ."
)


def hub_folder(cache: Path, name: str) -> Path:
    """Where a hub's cache keeps the files of a repository."""
    root = cache / f"models--{name.replace('/', '--')}"
    files = root / "snapshots" / "0"
    files.mkdir(parents=True)
    (root / "refs").mkdir()
    (root / "refs" / "main").write_text("0")
    return files


def make_chexbert(folder: Path, bert: torch.nn.Module) -> list[torch.Tensor]:
    """Thirteen heads of four classes, one of two, on a BERT. Returns their matrices; they add nothing."""
    state = {f"module.bert.{name}": value for name, value in bert.state_dict().items()}
    heads = [torch.randn(4 if head < 13 else 2, 16) for head in range(14)]
    for number, head in enumerate(heads):
        state[f"module.linear_heads.{number}.weight"] = head
        state[f"module.linear_heads.{number}.bias"] = torch.zeros(len(head))
    torch.save({"model_state_dict": state}, folder / "chexbert.pth")
    return heads


def make_radgraph(folder: Path) -> None:
    """A DyGIE++ model of entities and relations."""
    (folder / "vocabulary").mkdir(parents=True)
    vocabulary = {
        "non_padded_namespaces": ("*labels", "*tags"),
        "radgraph-xl__ner_labels": (
            "",
            "Anatomy::definitely present",
            "Observation::definitely present",
            "Observation::definitely absent",
        ),
        "radgraph-xl__relation_labels": ("", "located_at", "modify"),
    }
    for name, lines in vocabulary.items():
        text = "".join(f"{line}\n" for line in lines)
        (folder / "vocabulary" / f"{name}.txt").write_text(text)
    bert = {"model_name": "bert-base-uncased", "max_length": 64}
    config = {
        "dataset_reader": {"max_span_width": 3, "token_indexers": {"bert": bert}},
        "vocabulary": {},
        "model": {
            "type": "dygie",
            "embedder": {"token_embedders": {"bert": bert}},
            "initializer": {},
            "module_initializer": {},
            "feature_size": 4,
            "max_span_width": 3,
            "target_task": "relation",
            "loss_weights": {"ner": 1.0, "relation": 1.0, "coref": 0.0, "events": 0.0},
            "feedforward_params": {"num_layers": 1, "hidden_dims": 8, "dropout": 0.0},
            "modules": {
                "ner": {},
                "relation": {"spans_per_word": 0.5},
                "coref": {"spans_per_word": 0.3, "max_antecedents": 10},
                "events": {
                    "trigger_spans_per_word": 0.3,
                    "argument_spans_per_word": 0.8,
                    "loss_weights": {"trigger": 1.0, "arguments": 1.0},
                },
            },
        },
    }
    (folder / "config.json").write_text(json.dumps(config))

    # the model is built where its weights are read: let it be built once without any
    from radeval.metrics.radgraph._vendor import core
    from RadEval.metrics.radgraph._vendor.dygie.models.dygie import DyGIE

    built: list[torch.nn.Module] = []
    load, restore = torch.load, DyGIE.load_state_dict
    torch.load = lambda *_, **__: {}
    DyGIE.load_state_dict = lambda self, *_, **__: built.append(self)
    core.RadGraph(model_type="radgraph-xl", cuda=-1)
    torch.load, DyGIE.load_state_dict = load, restore
    torch.save(built[0].state_dict(), folder / "weights.th")


def found(text: str, bert: torch.nn.Module, heads: list[torch.Tensor]) -> list[bool]:
    """CheXbert's fourteen labels, by hand: classes 1 (positive) and 3 (uncertain) are findings."""
    words = torch.tensor([[WORDS.split().index(w) for w in f"[CLS] {text} [SEP]".split()]])
    with torch.no_grad():
        state = bert.eval()(words).last_hidden_state[0, 0]
    return [int((head @ state).argmax()) in (1, 3) for head in heads]


def main() -> None:
    import radeval

    sys.modules["RadEval"] = radeval
    root, pairs = Path(sys.argv[1]), json.loads(Path(sys.argv[2]).read_text(encoding="utf-8"))
    torch.manual_seed(0)
    place = hub_folder(root / "hf" / "hub", "bert-base-uncased")
    # a wide range, so that texts differ
    bert = made_bert(place, WORDS.split(), layers=1, initializer_range=1.0)
    heads = make_chexbert(hub_folder(root / "xdg" / "chexbert", "StanfordAIMI/RRG_scorers"), bert)
    make_radgraph(root / "xdg" / "radgraph" / "0.1.18" / "radgraph-xl")

    entrance = radeval.RadEval(metrics=["radgraph"], per_sample=True, show_progress=False)
    truths, answers = (list(texts) for texts in zip(*pairs, strict=True))
    numbers = entrance(refs=truths, hyps=answers)
    agree = [
        [a == b for a, b in zip(found(truth, bert, heads), found(answer, bert, heads), strict=True)]
        for truth, answer in pairs
    ]
    five = (1, 4, 5, 7, 9)  # cardiomegaly, oedema, consolidation, atelectasis, effusion
    numbers["chexbert_14"] = [sum(row) / 14 for row in agree]
    numbers["chexbert_5"] = [sum(row[place] for place in five) / 5 for row in agree]
    rows = [{name: float(numbers[name][n]) for name in numbers} for n in range(len(pairs))]
    (root / "expected.json").write_text(json.dumps(rows))


if __name__ == "__main__":
    main()
