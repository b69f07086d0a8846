"""2D images, volumes and text in any mix and order: batched, packed and generated as one at a time.

Three compositions: slices of volumes behind the encoder of pictures, with as many tokens as slices;
slices pooled to a fixed number beside tiles; a 3D encoder beside two joined ones.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
from PIL import Image
from tiny_vision import POOLING, VIT, clip
from transformers import LlamaConfig

from medloupe.errors import ConfigError, PromptError
from medloupe.generate import ChatSession, GenerateConfig, Predictor
from medloupe.imaging.composed import SlicesTransform
from medloupe.imaging.slices import SliceSelection
from medloupe.imaging.transforms import ImageTransform
from medloupe.imaging.views import ViewTransform
from medloupe.models.encoders import EncoderConfig
from medloupe.models.vlm import IMAGE_TOKEN, VisionLanguageModel, VLMConfig
from medloupe.processing import ImageSource, Processor, ProcessorConfig, collate, pack_branches
from medloupe.processing.packing import Budget
from medloupe.train.objectives.base import FrozenFeatures, StageContext
from medloupe.train.objectives.costs import ImageCosts
from medloupe.train.objectives.grounding import GroundingObjectiveConfig
from medloupe.types import Box, Conversation, ImageRef, ModelInput

# fp32; a batch pads, and rows of another length sum in another order.
CLOSE = {"rtol": 1e-5, "atol": 1e-5}
COMPOSITIONS: dict[str, tuple[Any, Any, ViewTransform]] = {
    "slices": (
        {"name": "slices", "encoder": clip(), "chunk": 5},
        "mlp",
        SlicesTransform(selection=SliceSelection(count=4)),
    ),
    "pooled slices, tiles": (
        {
            "name": "by_kind",
            "image": {"name": "tiles", "encoder": clip()},
            "volume": {"name": "slices", "encoder": clip()},
        },
        {"name": "by_kind", "image": "mlp", "volume": POOLING},
        ImageTransform(),
    ),
    "3D, joined": (
        {
            "name": "by_kind",
            "image": {"name": "joined", "encoders": [clip(7), clip(14)]},
            "volume": VIT,
        },
        {
            "name": "by_kind",
            "image": {"name": "grouped", "group": 5},
            "volume": {"name": "pooled", "window": [2, 1, 1]},
        },
        ImageTransform(),
    ),
}
DEPTHS = {"deep": 9, "thin": 3, "same": 9}


def picture(name: str) -> ImageRef:
    return ImageRef(uri=f"{name}.png")


def volume(name: str) -> ImageRef:
    return ImageRef(uri=f"{name}.nii.gz", kind="volume")


def frame(name: str, number: int) -> ImageRef:
    return ImageRef(uri=f"{name}.nii.gz", frame=number)


@dataclass(frozen=True, kw_only=True)
class Lab:
    model: VisionLanguageModel
    processor: Processor
    images: ImageSource

    def row(self, conversation: Conversation) -> ModelInput:
        return self.processor.encode(conversation, self.images.size_of)

    def loss(self, rows: Sequence[ModelInput]) -> torch.Tensor:
        """The summed loss of rows as one batch."""
        refs = [ref for row in rows for ref in row.images]
        batch = collate(rows, pad_id=0, images=self.images.inputs(refs))
        return self.model.label_loss(
            batch.input_ids,
            batch.labels,
            batch.position_ids,
            batch.segments,
            self.model.image_tokens(batch.images),
        )[0]

    def gradients(self, batches: Sequence[Sequence[ModelInput]]) -> tuple[float, dict[str, Any]]:
        self.model.zero_grad()
        total = torch.stack([self.loss(rows) for rows in batches]).sum()
        total.backward()
        found = {n: p.grad for n, p in self.model.named_parameters() if p.grad is not None}
        return float(total.detach()), {name: grad.clone() for name, grad in found.items()}

    def predictor(self, **fields: Any) -> Predictor:
        config = GenerateConfig(**{"precision": "fp32", "max_new_tokens": 8, **fields})
        return Predictor(self.model, self.processor, self.images, config)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("files")
    rng = np.random.default_rng(0)
    for name, (rows, columns) in {"wide": (20, 50), "tall": (44, 20), "again": (20, 50)}.items():
        pixels = rng.integers(0, 256, (rows, columns), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{name}.png")
    for name, depth in DEPTHS.items():
        voxels = rng.normal(0, 100, (24, 18, depth)).astype(np.float32)
        nibabel.save(nibabel.Nifti1Image(voxels, np.eye(4)), folder / f"{name}.nii.gz")
    return folder


@pytest.fixture(scope="module", params=list(COMPOSITIONS))
def lab(request: pytest.FixtureRequest, tiny: ModuleType, folder: Path) -> Lab:
    encoder, connector, transform = COMPOSITIONS[request.param]
    words = tiny.tokenizer("bytes", "chatml")
    torch.manual_seed(5)
    config = EncoderConfig.parse(encoder)
    model = VisionLanguageModel(
        VLMConfig(
            encoder=config.to_dict(),
            connector=connector if isinstance(connector, dict) else {"name": connector},
            language=LlamaConfig(
                vocab_size=len(words),
                hidden_size=32,
                intermediate_size=48,
                num_hidden_layers=2,
                num_attention_heads=4,
                num_key_value_heads=2,
                max_position_embeddings=512,
                initializer_range=0.3,
                bos_token_id=None,
                eos_token_id=None,
                pad_token_id=None,
            ).to_dict(),
            image_token_id=words.convert_tokens_to_ids(IMAGE_TOKEN),
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
    return Lab(model=model, processor=processor, images=ImageSource(folder, view))


@pytest.fixture(scope="module")
def rows(tiny: ModuleType) -> list[Conversation]:
    """Every mix: alone, before and after text, several of one kind, both kinds, both orders, turns."""
    say: Callable[..., Conversation] = tiny.conversation
    box = Box(label="", x1=4, y1=3, z1=1, x2=20, y2=9, z2=2)
    return [
        say("text", ("What is a wedge?",), ("a shape",)),
        say("picture", (picture("wide"), "Side?"), ("left",)),
        say("volume", (volume("deep"), "Side?"), ("right side",)),
        say("thin", (volume("thin"), "Where is the lesion?"), ("here ", box)),
        say("late", ("Look at ", volume("same"), " and say its side"), ("left",)),
        say("both", (picture("tall"), volume("thin"), "Compare."), ("no change",)),
        say("swapped", (volume("thin"), " then ", picture("tall"), "Compare."), ("new",)),
        say("two", (volume("deep"), volume("thin"), "Which has it?"), ("the first",)),
        say("slice", (frame("deep", 4), volume("deep"), "Is it in this slice?"), ("yes",)),
        say(
            "turns",
            (picture("again"), "Plane?"),
            ("axial",),
            (volume("same"), "And the lesion?"),
            ("a ring",),
        ),
        say("many", *[(picture("wide"), volume("deep"), picture("tall"), "?"), ("no",)] * 2),
    ]


def assert_equal(ours: dict[str, Any], wanted: dict[str, Any]) -> None:
    assert ours.keys() == wanted.keys()
    whole = torch.stack([grad.norm() for grad in wanted.values()]).norm()
    for name, grad in wanted.items():
        # some gradients are zero but for rounding (a key's bias): measured by the whole
        apart = (ours[name] - grad).norm() / torch.maximum(grad.norm(), 1e-3 * whole)
        assert float(apart) < 1e-4, name


def test_the_processor_states_the_tokens_that_the_model_makes(
    lab: Lab, rows: list[Conversation]
) -> None:
    for conversation in rows:
        row = lab.row(conversation)
        tokens = lab.model.image_tokens(lab.images.inputs(row.images))
        stated = int((row.input_ids == lab.model.config.image_token_id).sum())
        assert stated == sum(map(len, tokens)), conversation.id


def test_a_mixed_batch_learns_what_its_rows_do(lab: Lab, rows: list[Conversation]) -> None:
    encoded = [lab.row(row) for row in rows]
    together, gradients = lab.gradients([encoded])
    alone, wanted = lab.gradients([[row] for row in encoded])
    assert together == pytest.approx(alone, rel=1e-5)
    assert_equal(gradients, wanted)
    backwards, other = lab.gradients([encoded[::-1]])
    assert backwards == pytest.approx(alone, rel=1e-5)
    assert_equal(other, wanted)
    for part in ("encoder", "connector", "language_model"):
        grown = [name for name in wanted if name.startswith(part) and wanted[name].any()]
        assert len(grown) > 3, part


def test_images_of_one_shape_are_encoded_together(lab: Lab) -> None:
    """deep and same have as many slices, wide and again are as large: one batch each."""
    refs = [volume("deep"), picture("wide"), volume("thin"), volume("same"), picture("again")]
    images = lab.images.inputs(refs)
    tokens = lab.model.image_tokens(images)
    shapes = {image.kind: 0 for image in images}
    for kind in shapes:
        calls: list[int] = []
        encoder = lab.model.encoder.for_kind(kind)
        hook = encoder.register_forward_pre_hook(lambda *_, calls=calls: calls.append(1))
        lab.model.image_tokens([image for image in images if image.kind == kind])
        hook.remove()
        shapes[kind] = len(calls)
    assert shapes["image"] == 1
    fixed = not lab.model.encoder.for_kind("volume").cuts
    assert shapes["volume"] == (1 if fixed else 2)
    for one, image in zip(tokens, images, strict=True):
        torch.testing.assert_close(lab.model.image_tokens([image])[0], one, **CLOSE)


def test_questions_packed_behind_a_volume(lab: Lab, tiny: ModuleType) -> None:
    say: Callable[..., Conversation] = tiny.conversation
    shown = ("First ", picture("tall"), volume("deep"), " then ", volume("thin"))
    asked = [
        say("a", (*shown, "Which side?"), ("left",)),
        say("b", (*shown, "Is there a lesion?"), ("yes, a ring",)),
        say("c", (*shown, "Where?"), (Box(label="", x1=1, y1=1, z1=1, x2=9, y2=9, z2=2, image=2),)),
        say("d", (volume("thin"), "Which side?"), ("right",)),
        say("e", (volume("thin"), "Is there a lesion?"), ("no",)),
    ]
    encoded = [lab.row(row) for row in asked]
    packed = pack_branches(
        encoded,
        image_token_id=lab.processor.image_token_id,
        cost_of=ImageCosts(lab.model, lab.processor, lab.images),
        budget=Budget(),
    )
    assert [row.ids for row in packed] == [("a", "b", "c"), ("d", "e")]
    loss, gradients = lab.gradients([packed])
    alone, wanted = lab.gradients([[row] for row in encoded])
    assert loss == pytest.approx(alone, rel=1e-5)
    assert_equal(gradients, wanted)


def test_batched_answers_are_those_of_one_at_a_time(lab: Lab, rows: list[Conversation]) -> None:
    asked = [*rows, *(row.model_copy(update={"id": f"{row.id} again"}) for row in rows)]
    together = lab.predictor(batch_size=7)(asked)
    plain = lab.predictor(share_prefix=False, batch_size=1)(asked[: len(rows)])
    for one, row, number in zip(together, asked, range(len(asked)), strict=True):
        assert one.token_ids == plain[number % len(rows)].token_ids, row.id
        prompt = lab.row(row.without_answer())
        ids = prompt.input_ids[None]
        theirs = lab.model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            images=lab.images.inputs(prompt.images),
            do_sample=False,
            max_new_tokens=8,
            eos_token_id=list(lab.processor.end_token_ids),
            pad_token_id=0,
        )
        assert one.token_ids == tuple(theirs[0, ids.shape[1] :].tolist()), row.id
    assert len({one.token_ids for one in together}) > len(rows) // 2


def test_answers_follow_the_images(lab: Lab, tiny: ModuleType) -> None:
    """Another volume in the same words gives another first step, so it is the volume that is read."""
    say: Callable[..., Conversation] = tiny.conversation
    asked = [say(name, (volume(name), "Side?")) for name in DEPTHS]
    firsts = {one.log_probs[0] for one in lab.predictor()(asked)}
    assert len(firsts) == len(DEPTHS)


def test_a_conversation_over_turns(lab: Lab) -> None:
    session = ChatSession(lab.predictor())
    session.ask("Plane?", [picture("wide"), volume("thin")])
    session.ask("And the lesion?")
    last = session.ask("And here?", [volume("deep")])
    assert [ref.kind for ref in session.conversation.images] == ["image", "volume", "volume"]
    assert last.token_ids


def test_kept_features_of_volumes_stand_on_their_grid(lab: Lab, rows: list[Conversation]) -> None:
    context = StageContext(
        model=lab.model,
        processor=lab.processor,
        dataset=None,  # type: ignore[arg-type]
        images=lab.images,
        frozen_encoder=True,
        precision="fp32",
        progress=lambda *_: None,
    )
    frozen = FrozenFeatures(context)
    refs = [volume("thin"), picture("tall"), volume("deep"), volume("same")]
    kept = frozen.of(refs)
    for one, ref in zip(kept, refs, strict=True):
        assert one.features is not None
        assert one.grid is not None
        assert len(one.features) == one.grid.tokens
        assert one.kind == ref.kind
    tokens = lab.model.image_tokens(kept)
    for one, other in zip(tokens, lab.model.image_tokens(lab.images.inputs(refs)), strict=True):
        torch.testing.assert_close(one, other, **CLOSE)


def test_a_model_without_the_kind_says_so(tiny: ModuleType, folder: Path) -> None:
    words = tiny.tokenizer("bytes", "chatml")
    model = tiny.model(len(words), words.convert_tokens_to_ids(IMAGE_TOKEN))
    processor = tiny.processor(model, words)
    images = ImageSource(folder, processor.config.transform)
    row = tiny.conversation("r", (volume("thin"), "Side?"), ("left",))
    with pytest.raises(PromptError, match=r"row 'r'.*is a volume; .*reads 2D images"):
        processor.encode(row, images.size_of)


def test_grounding_needs_pictures(lab: Lab) -> None:
    model = SimpleNamespace(encoder=lab.model.encoder.for_kind("volume"))
    context = SimpleNamespace(model=model, images=lab.images)
    if "image" in model.encoder.kinds:
        return  # slices take pictures too
    with pytest.raises(ConfigError, match="grounding looks at 2D images"):
        GroundingObjectiveConfig().build(context)  # type: ignore[arg-type]
