"""Rows packed behind a shared prefix against the same rows on their own, through the objective that a
stage trains with: the same summed loss and the same gradient of every parameter."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
from by_path import loaded
from PIL import Image
from tiny_vision import POOLING, SIDE, VIT, clip
from torch.nn.attention.flex_attention import flex_attention
from transformers import AutoConfig, PreTrainedTokenizerFast
from transformers.integrations import flex_attention as integration

from medloupe.data.dataset import Dataset, DatasetCard
from medloupe.errors import ConfigError
from medloupe.imaging.composed import SlicesTransform
from medloupe.imaging.slices import SliceSelection
from medloupe.imaging.transforms import ImageTransform
from medloupe.imaging.views import ViewTransform
from medloupe.models.encoders import Encoder, EncoderConfig
from medloupe.models.low_rank import LowRankConfig, attach
from medloupe.models.vlm import IMAGE_TOKEN, VisionLanguageModel, VLMConfig
from medloupe.processing import ImageSource, Processor, ProcessorConfig
from medloupe.processing.packing import Budget, row_cost
from medloupe.train.objectives.base import StageContext
from medloupe.train.objectives.language import LanguageObjective, LanguageObjectiveConfig
from medloupe.types import Conversation, ImageRef

TEXT = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "initializer_range": 0.2,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}
# Windows are shorter than a question; Qwen's layers take turns.
ALTERNATE = {"use_sliding_window": True, "sliding_window": 12, "max_window_layers": 1}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen2": ALTERNATE,
    "qwen3": {"head_dim": 8, **ALTERNATE},
    "mistral": {"sliding_window": 12},
}
COMPOSITIONS: dict[str, tuple[Any, Any, ViewTransform]] = {
    "one encoder": (clip(), {"name": "mlp"}, ImageTransform()),
    "scales": (
        {"name": "scales", "encoder": clip(), "scales": [SIDE, 2 * SIDE]},
        {"name": "mlp"},
        ImageTransform(),
    ),
    "two encoders": (
        {"name": "joined", "encoders": [clip(7), clip(14)]},
        {"name": "grouped", "group": 5},
        ImageTransform(),
    ),
    "pooled slices": (
        {"name": "slices", "encoder": clip()},
        POOLING,
        SlicesTransform(selection=SliceSelection(count=4)),
    ),
    "volumes": (
        {"name": "by_kind", "image": {"name": "tiles", "encoder": clip()}, "volume": VIT},
        {"name": "by_kind", "image": "mlp", "volume": {"name": "pooled", "window": [2, 1, 1]}},
        ImageTransform(),
    ),
}


@dataclass(frozen=True, kw_only=True)
class Lab:
    """A model, what feeds it, and its training rows."""

    model: VisionLanguageModel
    processor: Processor
    images: ImageSource
    rows: Sequence[Conversation]

    def objective(
        self, said: Callable[..., None] = lambda *_: None, **fields: Any
    ) -> LanguageObjective:
        context = StageContext(
            model=self.model,
            processor=self.processor,
            dataset=Dataset(
                root=self.images.root, card=DatasetCard(name="rows"), conversations=tuple(self.rows)
            ),
            images=self.images,
            frozen_encoder=False,
            precision="fp32",
            progress=said,
        )
        return LanguageObjective(LanguageObjectiveConfig(**fields), context)


@dataclass(frozen=True, kw_only=True)
class Learned:
    """The loss over all rows, how many targets it sums over, and its gradients."""

    loss: float
    count: float
    gradients: dict[str, torch.Tensor]

    @classmethod
    def of(cls, objective: LanguageObjective, batch: int, *, bf16: bool = False) -> Learned:
        """With so many rows in a micro-batch, accumulated."""
        objective.model.zero_grad()
        loss, count = 0.0, 0.0
        for start in range(0, len(objective.rows), batch):
            rows = range(start, min(start + batch, len(objective.rows)))
            micro = objective.micro(rows)
            with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                total = objective.loss(micro)
            total.backward()
            loss, count = loss + float(total.detach()), count + micro.count
        named = objective.model.named_parameters()
        gradients = {n: p.grad.clone() for n, p in named if p.grad is not None}
        return cls(loss=loss, count=count, gradients=gradients)

    def assert_equal(self, other: Learned, close: float = 1e-5) -> None:
        assert self.count == other.count > 0
        assert self.loss == pytest.approx(other.loss, rel=close)
        assert self.gradients.keys() == other.gradients.keys()
        whole = float(torch.stack([g.norm() for g in other.gradients.values()]).norm())
        for name, gradient in other.gradients.items():
            # some gradients are zero but for rounding (a key's bias): measured by the whole
            scale = max(float(gradient.norm()), 1e-3 * whole)
            assert float((self.gradients[name] - gradient).norm()) <= close * scale, name


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("files")
    rng = np.random.default_rng(0)
    for name, shape in {"a": (20, 50), "b": (44, 20), "c": (30, 30)}.items():
        Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8)).save(folder / f"{name}.png")
    for name, depth in {"deep": 9, "thin": 3}.items():
        voxels = rng.normal(0, 100, (24, 18, depth)).astype(np.float32)
        nibabel.save(nibabel.Nifti1Image(voxels, np.eye(4)), folder / f"{name}.nii.gz")
    return folder


@pytest.fixture(scope="module")
def words(tiny: ModuleType) -> PreTrainedTokenizerFast:
    made: PreTrainedTokenizerFast = tiny.tokenizer("bytes", "chatml")
    return made


A, B, C = (ImageRef(uri=f"{name}.png") for name in "abc")
DEEP, THIN = (ImageRef(uri=f"{name}.nii.gz", kind="volume") for name in ("deep", "thin"))


@pytest.fixture(scope="module")
def talks(tiny: ModuleType) -> dict[str, list[Conversation]]:
    """Rows by what is unusual about them."""

    def say(*turns: Any) -> Any:
        return turns

    def of(image: ImageRef) -> list[Any]:
        return [
            say((image, "Which side is the lesion on?"), ("left",)),
            say((image, "Which side has it?"), ("the right side",)),
            say((image, "Describe the findings."), ("A ring lesion.",)),
        ]

    turns = {
        "one image": of(A),
        "many images": [
            say((A, B, "Compare."), ("no change",)),
            say((A, B, "Compare the sides."), ("larger",)),
            say((A, C, "Compare."), ("smaller",)),
            say(("First ", A, " then ", B, "What changed?"), ("a wedge",)),
            *of(A)[:1],
        ],
        "text": [
            say(("What is a wedge?",), ("a shape",)),
            say(("What is a ring?",), ("another",)),
            *of(B)[:2],
        ],
        "turns": [
            say((A, "Plane?"), ("axial",), ("And the lesion?",), ("a ring",)),
            say((A, "Plane?"), ("axial",), ("Which side?",), ("left",)),
            say((A, "Side?"), ("left",), (B, "And here?"), ("right",)),
        ],
        "volumes": [
            *of(DEEP),
            *of(THIN),
            say((DEEP, "then ", THIN, "Which has it?"), ("the first",)),
        ],
    }
    return {
        name: [
            tiny.conversation(f"{name} {n}", *row, split="train", patient_id="p")
            for n, row in enumerate(rows)
        ]
        for name, rows in turns.items()
    }


MakeLab = Callable[..., Lab]


@pytest.fixture
def make_lab(
    folder: Path, words: PreTrainedTokenizerFast, talks: dict[str, list[Conversation]]
) -> MakeLab:
    """`make_lab("llama", "one image", "scales", tie_word_embeddings=True)`."""

    def make(
        family: str = "llama", rows: str = "one image", parts: str = "one encoder", **fields: Any
    ) -> Lab:
        encoder, connector, transform = COMPOSITIONS[parts]
        torch.manual_seed(5)
        config = EncoderConfig.parse(encoder)
        language = TEXT | FAMILIES.get(family, {}) | {"vocab_size": len(words)} | fields
        model = VisionLanguageModel(
            VLMConfig(
                encoder=config.to_dict(),
                connector=connector,
                language=AutoConfig.for_model(family, **language).to_dict(),
                image_token_id=words.convert_tokens_to_ids(IMAGE_TOKEN),
                attention="eager" if family == "gemma2" else "sdpa",
            )
        ).eval()
        with torch.no_grad():  # pixels must matter as much as words
            for part in (model.encoder, model.connector):
                for parameter in part.parameters():
                    parameter += 0.2 * torch.randn_like(parameter)
        view = config.fitted(transform)
        processor = Processor(
            ProcessorConfig(transform=view), words, model.layouts, model.config.image_token_id
        )
        return Lab(
            model=model, processor=processor, images=ImageSource(folder, view), rows=talks[rows]
        )

    return make


# Which rows stand together, by the numbers of the conversations.
TOGETHER = {
    "one image": [(0, 1, 2)],
    "many images": [(0, 1), (2, 4), (3,)],
    "text": [(0,), (1,), (2, 3)],
    "turns": [(0, 1, 2)],
    "volumes": [(0, 1, 2, 6), (3, 4, 5)],
}


def assert_packed_as_separate(lab: Lab, rows: str) -> None:
    packed = lab.objective(pack=True)
    assert [row.ids for row in packed.rows] == [
        tuple(f"{rows} {n}" for n in numbers) for numbers in TOGETHER[rows]
    ]
    separate = Learned.of(lab.objective(pack=False), 1)
    Learned.of(packed, len(packed.rows)).assert_equal(separate)
    assert len(separate.gradients) > 20
    assert float(separate.gradients["connector.layers.0.weight"].norm()) > 1e-3 * separate.loss


@pytest.mark.parametrize("rows", ["one image", "many images", "text", "turns"])
@pytest.mark.parametrize("family", FAMILIES)
def test_rows_of_every_form(make_lab: MakeLab, family: str, rows: str) -> None:
    assert_packed_as_separate(make_lab(family, rows), rows)


@pytest.mark.parametrize("rows", ["one image", "many images", "turns"])
@pytest.mark.parametrize("parts", ["scales", "two encoders"])
def test_several_scales_and_encoders(make_lab: MakeLab, parts: str, rows: str) -> None:
    lab = make_lab(parts=parts, rows=rows)
    packed, separate = lab.objective(pack=True), lab.objective(pack=False)
    assert len(packed.rows) < len(separate.rows)
    Learned.of(packed, len(packed.rows)).assert_equal(Learned.of(separate, 1))


@pytest.mark.parametrize("family", ["llama", "mistral"])
@pytest.mark.parametrize("parts", ["pooled slices", "volumes"])
def test_volumes(make_lab: MakeLab, family: str, parts: str) -> None:
    lab = make_lab(family, "volumes", parts)
    packed = lab.objective(pack=True)
    assert [row.ids for row in packed.rows] == [
        tuple(f"volumes {n}" for n in numbers) for numbers in TOGETHER["volumes"]
    ]
    Learned.of(packed, 2).assert_equal(Learned.of(lab.objective(pack=False), 1))


@pytest.mark.parametrize("family", FAMILIES)
def test_low_rank_adapters(make_lab: MakeLab, family: str) -> None:
    lab = make_lab(family, "turns")
    lab.model.requires_grad_(False)
    attach(lab.model, "language_model", LowRankConfig(rank=2))
    torch.manual_seed(8)
    with torch.no_grad():
        for name, parameter in lab.model.named_parameters():
            if "lora_B" in name:  # they begin as zeros
                parameter += 0.05 * torch.randn_like(parameter)
    packed = Learned.of(lab.objective(pack=True), 1)
    assert packed.gradients
    assert all("lora_" in name for name in packed.gradients)
    packed.assert_equal(Learned.of(lab.objective(pack=False), 1))


@pytest.mark.parametrize("batch", [1, 2, 3])
def test_micro_batches_add_up(make_lab: MakeLab, batch: int) -> None:
    lab = make_lab("qwen3", "many images")
    separate = Learned.of(lab.objective(pack=False), 1)
    Learned.of(lab.objective(pack=True), batch).assert_equal(separate)
    Learned.of(lab.objective(pack=False), batch).assert_equal(separate)


@pytest.mark.parametrize("family", FAMILIES)
def test_half_precision(make_lab: MakeLab, family: str) -> None:
    """Rounding differs, since sums are in another order; directions of all gradients agree."""
    lab = make_lab(family, "one image", initializer_range=0.1)
    packed = Learned.of(lab.objective(pack=True), 1, bf16=True)
    separate = Learned.of(lab.objective(pack=False), 1, bf16=True)
    assert packed.loss == pytest.approx(separate.loss, rel=2e-3)
    ours, theirs = (
        torch.cat([one.gradients[name].flatten() for name in separate.gradients])
        for one in (packed, separate)
    )
    assert float(torch.cosine_similarity(ours, theirs, dim=0)) >= 0.9999


@pytest.mark.parametrize(
    ("family", "fields"),
    [
        ("llama", {"tie_word_embeddings": True}),
        ("gemma2", {"head_dim": 8, "sliding_window": 12, "final_logit_softcapping": 2.0}),
        ("granite", {"logits_scaling": 4.0, "attention_multiplier": 0.3}),
    ],
)
@pytest.mark.parametrize("tokens", [1, 3, 1000])
def test_heads_that_are_tied_capped_and_scaled(
    make_lab: MakeLab,
    monkeypatch: pytest.MonkeyPatch,
    family: str,
    fields: dict[str, Any],
    tokens: int,
) -> None:
    """In chunks of so many tokens, against the model's own logits."""
    lab = make_lab(family, "turns", **fields)
    objective = lab.objective(pack=False)
    wanted = Learned.of(objective, 1)
    monkeypatch.setattr(
        "medloupe.models.logits.CHUNK_BYTES", 4 * tokens * len(lab.processor.tokenizer)
    )
    Learned.of(lab.objective(pack=True), 1).assert_equal(wanted)
    monkeypatch.setattr("medloupe.models.vlm.head_rule", lambda _: None)
    Learned.of(objective, 1).assert_equal(wanted)
    with torch.no_grad():
        batch = objective.micro(range(3)).batch
        whole = lab.model(
            input_ids=batch.input_ids,
            images=batch.images,
            labels=batch.labels,
            segments=batch.segments,
            position_ids=batch.position_ids,
        )
    assert float(whole.loss) * wanted.count == pytest.approx(wanted.loss, rel=1e-5)


@pytest.mark.parametrize("aware", [True, False])
def test_images_that_see_their_question_are_not_shared(
    tiny: ModuleType, tmp_path: Path, words: PreTrainedTokenizerFast, aware: bool
) -> None:
    kit = loaded(Path(__file__).parents[1] / "models" / "adapters" / "kit.py")
    model = kit.tiny_vlm(len(words), kit.hia(instruction_aware=aware))
    kit.stir(model.adapter)
    transform = (
        kit.hia().for_base(kit.base_encoder()).fitted(kit.base_encoder().fitted(ImageTransform()))
    )
    data = tiny.dataset(tmp_path, images=3)
    processor = Processor(
        ProcessorConfig(transform=transform), words, model.layouts, model.config.image_token_id
    )
    lab = Lab(
        model=model,
        processor=processor,
        images=ImageSource(tmp_path, transform),
        rows=data.conversations,
    )
    said: list[str] = []
    packed = lab.objective(lambda what, *_: said.append(what), pack=True)
    assert len(packed.rows) == (10 if aware else 4)
    assert ("not packed: images see their question" in said) is aware
    Learned.of(packed, 3).assert_equal(Learned.of(lab.objective(pack=False), 1), 1e-4)


def test_the_budget_splits_rows_and_changes_nothing(make_lab: MakeLab) -> None:
    lab = make_lab("mistral", "one image")
    whole = lab.objective(pack=True)
    (row,) = whole.rows
    token = lab.processor.image_token_id
    cost = row_cost(row, image_token_id=token, cost_of=whole.cost_of)
    assert cost.image_tokens == 4
    assert (cost.passes, cost.voxels) == (1, 3 * SIDE * SIDE)
    assert cost.text_tokens == len(whole.rows[0].input_ids) - 4
    halves = lab.objective(pack=True, budget={"text_tokens": cost.text_tokens - 1})
    assert [len(row.ids) for row in halves.rows] == [2, 1]
    Learned.of(halves, 2).assert_equal(Learned.of(whole, 1))


@contextmanager
def counted_passes(encoder: Encoder) -> Iterator[list[int]]:
    """How many pictures or volumes each network inside the encoder was given."""
    inner = [part for part in encoder.modules() if isinstance(part, Encoder)]
    leaves = [part for part in inner if sum(isinstance(m, Encoder) for m in part.modules()) == 1]
    passes: list[int] = []
    handles = [
        leaf.register_forward_pre_hook(lambda _, args: passes.append(len(args[0])))
        for leaf in leaves
    ]
    yield passes
    for handle in handles:
        handle.remove()


@pytest.mark.parametrize("parts", COMPOSITIONS)
def test_images_cost_what_is_read_of_them(make_lab: MakeLab, parts: str) -> None:
    lab = make_lab(parts=parts)
    objective = lab.objective(pack=False)
    kinds = lab.model.encoder.kinds
    for ref in [ref for ref in (A, DEEP, B, THIN) if ref.kind in kinds]:
        (image,) = lab.images.inputs([ref])
        assert image.views is not None
        views = image.views if isinstance(image.views, tuple) else (image.views,)
        cost = objective.cost_of(ref)
        with counted_passes(lab.model.encoder) as passes:
            assert cost.image_tokens == len(lab.model.image_tokens([image])[0])
        assert cost.passes == sum(passes)
        assert cost.voxels == sum(view.numel() for view in views)
        assert cost.text_tokens == 0


def test_rows_beyond_the_budget_stay_alone_and_it_is_said_once(make_lab: MakeLab) -> None:
    said: list[str] = []
    lab = make_lab()
    objective = lab.objective(lambda what, *_: said.append(what), budget={"voxels": 100})
    assert [len(row.ids) for row in objective.rows] == [1, 1, 1]
    assert [text for text in said if "budget" in text] == [
        "3 rows cost more than the budget, each stays alone"
    ]


def test_runs_that_limited_tokens_alone_still_load() -> None:
    older = LanguageObjectiveConfig.parse({"name": "language", "pack": True, "row_tokens": 77})
    assert older == LanguageObjectiveConfig(pack=True, budget=Budget(text_tokens=77))
    assert LanguageObjectiveConfig.parse(older.to_dict()) == older


def test_a_family_that_cannot_be_told_gets_rows_of_their_own(make_lab: MakeLab) -> None:
    """And it is said, once; who insists is refused."""
    lab = make_lab("qwen3_next", head_dim=8, num_experts=2, layer_types=["linear_attention"] * 2)
    said: list[str] = []
    objective = lab.objective(lambda what, *_: said.append(what))
    assert [len(row.ids) for row in objective.rows] == [1, 1, 1]
    (text,) = [text for text in said if text.startswith("not packed")]
    assert text.startswith(
        "not packed: questions cannot be packed for 'qwen3_next': on a narrow copy"
    )
    with pytest.raises(ConfigError, match=r"packed for 'qwen3_next'.*pack=false"):
        lab.objective(pack=True)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("family", FAMILIES)
def test_on_a_gpu_a_batch_is_one_row_of_documents(
    make_lab: MakeLab, monkeypatch: pytest.MonkeyPatch, family: str
) -> None:
    """The forward pass alone, on a CPU that is taken for a GPU: FlexAttention has no backward there."""

    def plain(*args: Any, training: bool, **kwargs: Any) -> Any:
        del training
        return flex_attention(*args, **kwargs)

    lab = make_lab(family, "many images")
    separate = lab.objective(pack=False)
    wanted = Learned.of(separate, 1)
    assert not lab.model.joins_rows
    with monkeypatch.context() as patch:
        patch.setattr(VisionLanguageModel, "device", torch.device("cuda"))
        objective = lab.objective()
    monkeypatch.setattr(integration, "compile_friendly_flex_attention", plain)
    assert lab.model.joins_rows
    micro = objective.micro(range(3))
    assert micro.batch.input_ids.shape == (1, sum(len(row.input_ids) for row in objective.rows))
    assert (micro.padding, micro.count) == (0, wanted.count)
    with torch.no_grad():
        assert float(objective.loss(micro)) == pytest.approx(wanted.loss, rel=1e-5)
        # documents without any branch
        alone = [n for n, row in enumerate(objective.rows) if len(row.ids) == 1]
        both = objective.micro([*alone, *alone])
        one = float(objective.loss(objective.micro(alone)))
        assert float(objective.loss(both)) == pytest.approx(2 * one, rel=1e-5)
        # rows that are not packed stay apart also then, and take the way of sdpa
        assert len(separate.micro(range(3)).batch.input_ids) == 3
    Learned.of(separate, 2).assert_equal(wanted)


def test_on_a_cpu_rows_are_padded(make_lab: MakeLab) -> None:
    lab = make_lab(rows="many images")
    objective = lab.objective()
    assert not lab.model.joins_rows
    assert len(objective.micro(range(3)).batch.input_ids) == 3


def test_without_the_mask_the_loss_would_differ(
    make_lab: MakeLab, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The equality above is no accident of a weak model."""
    lab = make_lab()
    separate = Learned.of(lab.objective(pack=False), 1)
    packed = lab.objective(pack=True)

    def padding_alone(_: Any, segments: torch.Tensor, *__: Any) -> torch.Tensor:
        return (segments >= 0).long()

    monkeypatch.setattr(VisionLanguageModel, "_mask", padding_alone)
    blind = Learned.of(packed, 1)
    assert abs(blind.loss - separate.loss) > 1e-4 * separate.loss
    name = "connector.layers.0.weight"
    wanted = separate.gradients[name]
    assert float((blind.gradients[name] - wanted).norm()) > 0.1 * float(wanted.norm())


def test_runs_agree_to_the_bit(make_lab: MakeLab) -> None:
    one, two = (Learned.of(make_lab("qwen2", "turns").objective(), 1) for _ in range(2))
    assert one.loss == two.loss
    assert all(torch.equal(g, two.gradients[name]) for name, g in one.gradients.items())
