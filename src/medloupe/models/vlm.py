"""The composed model: encoder -> connector -> spliced at image tokens -> language model, in which an
adapter may change image tokens between layers.

A Hugging Face `PreTrainedModel` with `generate`, `save_pretrained` and `from_pretrained`. Its config
holds the resolved config of every part, so a saved folder builds and loads without any other file.
The image token is a placeholder only: its embedding is never read, so the vocabulary does not grow.
Images of one conversation may differ in kind and shape; those alike are encoded as one batch.
Shapes: B rows, L tokens, N images, T features and U tokens of an image, S tokens of all images, C
encoder channels, D language-model width, V vocabulary.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import reduce
from itertools import accumulate
from pathlib import Path
from typing import Any, Literal, Self, cast, get_args

import torch
from torch.nn import functional as F
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    GenerationMixin,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.modeling_outputs import CausalLMOutputWithPast

from medloupe.config import trusting_code
from medloupe.errors import CheckpointError, ConfigError, PromptError
from medloupe.models.adapters import Adapter, AdapterConfig, Span
from medloupe.models.attention import BLOCKS, Mask, documents, mask_plan
from medloupe.models.connectors import Connector, ConnectorConfig
from medloupe.models.encoders import Encoder, EncoderConfig
from medloupe.models.language import (
    ON_CPU,
    LanguageConfig,
    architecture_from,
    empty_language,
    keep_bits,
    load_language,
    make_room,
    plain_architecture,
    quantized_fields,
    require_quantization_of,
)
from medloupe.models.logits import chunk_of, head_rule, summed_cross_entropy
from medloupe.models.low_rank import LowRankConfig, inject, noted_adapters
from medloupe.types import Anchor, ImageInput, ImageLayouts, Views

# What a stage can train; also the attribute names of the model. Every model has PARTS.
Part = Literal["encoder", "connector", "language_model", "adapter"]
ALL_PARTS: tuple[Part, ...] = get_args(Part)
PARTS: tuple[Part, ...] = ("encoder", "connector", "language_model")
ANCHORS: tuple[Anchor, ...] = get_args(Anchor)
IGNORE = -100


class VLMConfig(PretrainedConfig):
    """Plain data of every part; `encoder`, `connector` and `adapter` are component configs with names.

    `low_rank` holds the low-rank adapters that a part carries inside its linear layers, by part. Where
    the language model is quantised, `quantization_config` says how, in transformers' own form.
    """

    model_type = "medloupe"

    def __init__(
        self,
        encoder: dict[str, Any] | None = None,
        connector: dict[str, Any] | None = None,
        language: dict[str, Any] | None = None,
        attention: str = "sdpa",
        image_token_id: int | None = None,
        adapter: dict[str, Any] | None = None,
        low_rank: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        self.encoder = encoder
        self.connector = connector
        self.language = language
        self.attention = attention
        self.image_token_id = image_token_id
        self.adapter = adapter
        self.low_rank = noted_adapters(
            {"low_rank": low_rank, "adapters": kwargs.pop("adapters", None)}
        )
        super().__init__(**kwargs)

    @property
    def is_quantized(self) -> bool:
        """Whether the language model's weights are."""
        return vars(self).get("quantization_config") is not None

    def get_text_config(self, *_: Any, **__: Any) -> PretrainedConfig:
        """The language model's config: generation reads layer counts and vocabulary there."""
        if self.language is None:
            return self
        return architecture_from(self.language)


class VisionLanguageModel(PreTrainedModel, GenerationMixin):
    """See the module's docstring. Build one with `compose` or `from_pretrained`."""

    config_class = VLMConfig
    base_model_prefix = ""
    main_input_name = "input_ids"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    adapter: Adapter | None

    def __init__(self, config: VLMConfig) -> None:
        super().__init__(config)
        if config.encoder is None or config.connector is None or config.language is None:
            raise CheckpointError(
                "the config lacks the encoder, the connector or the language model"
            )
        encoder_config = EncoderConfig.parse(config.encoder)
        connector_config = ConnectorConfig.parse(config.connector)
        self.encoder = encoder_config.build()
        with torch.device("meta") if config.is_quantized else nullcontext():
            # Quantised weights replace these; in full they might not fit into memory.
            architecture = architecture_from(config.language)
            self.language_model = empty_language(architecture, config.attention)
        width = int(self.get_input_embeddings().weight.shape[1])
        channels = {
            kind: self.encoder.for_kind(kind).channels for kind in sorted(self.encoder.kinds)
        }
        self.connector = connector_config.build_for(channels, width)
        self.layouts = image_layouts(self.encoder, self.connector)
        for part, adapters in config.low_rank.items():
            inject(self.get_submodule(part), LowRankConfig.parse(adapters))
        self.register_module("adapter", None)
        if config.adapter is not None:
            self.put_on(AdapterConfig.parse(config.adapter))
        drawn = [] if self.adapter is None else list(self.adapter.parameters())
        for parameter in drawn:
            # else transformers would draw it again, and not as zero
            parameter._is_hf_initialized = True  # type: ignore[attr-defined]
        self.post_init()  # type: ignore[no-untyped-call]
        for parameter in drawn:
            # else transformers would not miss it in a checkpoint that lacks it
            del parameter._is_hf_initialized  # type: ignore[attr-defined]

    @classmethod
    def compose(
        cls,
        encoder: EncoderConfig,
        connector: ConnectorConfig,
        language: LanguageConfig,
        adapter: AdapterConfig | None = None,
    ) -> tuple[Self, Any]:
        """Build from published parts: pretrained encoders and language model, fresh connector and
        adapter.

        Returns the model and the language model's tokenizer, to which an image token was added.
        """
        text, tokenizer = load_language(language)
        resolved = encoder.resolved()
        tokenizer.add_special_tokens({"additional_special_tokens": [IMAGE_TOKEN]}, False)
        image_token_id = tokenizer.get_vocab()[IMAGE_TOKEN]
        if language.resize_embeddings:
            make_room(text, image_token_id)
        config = VLMConfig(
            encoder=resolved.to_dict(),
            connector=connector.to_dict(),
            language=plain_architecture(text.config),
            attention=text.config._attn_implementation,
            image_token_id=image_token_id,
            adapter=None if adapter is None else adapter.to_dict(),
            **quantized_fields(text, [*PARTS[:2], r"adapter\..*", r".*\.lora_[AB]"]),
        )
        model = cls(config)
        model.encoder.load_pretrained()
        model.connector.load_pretrained()
        model.language_model = text
        if model.adapter is not None:
            model.adapter.load_pretrained()
            model.adapter.attach(text)
        if config.is_quantized:
            model.hf_quantizer = text.hf_quantizer  # saving asks it for the quantised tensors
        model.generation_config = text.generation_config
        model.generation_config.suppress_tokens = [config.image_token_id]
        model.connector.learn_words(
            plain_encoder(tokenizer), model.get_input_embeddings().weight.detach()
        )
        return model, tokenizer

    @classmethod
    def load(cls, folder: Path, *, trust_code: bool = False) -> Self:
        """Load a saved folder; code outside the package is refused unless trusted.

        Raises:
            CheckpointError: the folder is missing, or lacks a file or a tensor.
        """
        if not (folder / "config.json").is_file():
            raise CheckpointError("not a saved model: no config.json", file=str(folder))
        is_quantized = require_quantization_of(folder)
        with trusting_code(trust_code):
            try:
                loaded: Any = cls.from_pretrained(
                    folder, device_map=ON_CPU if is_quantized else None, output_loading_info=True
                )
            except OSError as error:
                raise CheckpointError(str(error), file=str(folder)) from error
        model, report = loaded
        if missing := sorted(report["missing_keys"]):
            raise CheckpointError(
                f"the weights lack {len(missing):,} tensors, the first {missing[0]!r}",
                file=str(folder),
                remedy="Copy the whole folder again",
            )
        if is_quantized:
            keep_bits(model)
        return cast(Self, model)

    def put_on(self, config: AdapterConfig) -> None:
        """Give a model without one a fresh adapter, whose encoder has random weights.

        Raises:
            ConfigError: it has one, or the adapter does not fit.
        """
        if self.adapter is not None:
            raise ConfigError("the model has an adapter already", field="model.adapter")
        config = config.for_base(EncoderConfig.parse(self.config.encoder)).resolved()
        text = self.language_model.config.get_text_config()
        adapter = config.build(int(text.hidden_size), int(text.num_hidden_layers))
        if adapter.encoder is not None and not self.encoder.kinds <= adapter.encoder.kinds:
            unread = " and ".join(
                f"{k}s" for k in sorted(self.encoder.kinds - adapter.encoder.kinds)
            )
            raise ConfigError(
                f"the model takes {unread}, which the adapter's encoder cannot read",
                field="model.adapter.encoder",
                remedy="Use an encoder that reads them; slices makes one of a 2D encoder",
            )
        adapter.reset()
        adapter.train(self.training)
        adapter.attach(self.language_model)
        self.adapter = adapter
        self.config.adapter = config.to_dict()

    @property
    def parts(self) -> tuple[Part, ...]:
        """The parts of this model."""
        return PARTS if self.adapter is None else ALL_PARTS

    @property
    def question_dependent(self) -> bool:
        """Whether image tokens may see the question, so that each question needs an image prefix of its
        own."""
        return self.adapter is not None and self.adapter.question_dependent

    @property
    def dtype(self) -> torch.dtype:
        """The widest dtype of any part, in which a saved model is built again: a part that is kept in
        a narrower one narrows itself, and the others lose nothing."""
        return reduce(
            torch.promote_types, {p.dtype for p in self.parameters() if p.is_floating_point()}
        )

    def save_pretrained(self, *args: Any, **kwargs: Any) -> None:
        """As in transformers; quantised tensors are written as they are."""
        if self.config.is_quantized:
            kwargs["save_original_format"] = False  # it cannot turn around how it read them
        super().save_pretrained(*args, **kwargs)

    def get_input_embeddings(self) -> torch.nn.Embedding:
        embeddings = self.language_model.get_input_embeddings()
        assert isinstance(embeddings, torch.nn.Embedding)
        return embeddings

    def get_output_embeddings(self) -> torch.nn.Module:
        return cast(torch.nn.Module, self.language_model.get_output_embeddings())

    def encode(self, images: Sequence[ImageInput]) -> list[ImageInput]:
        """The images with their features in place of views; images of one shape in one batch."""
        return _encoded(self.encoder, images)

    def details(self, images: Sequence[ImageInput]) -> list[torch.Tensor]:
        """`features_TC` of each image's detail view; nothing where no adapter reads any.

        Raises:
            ConfigError: an image comes without the view that the adapter reads.
        """
        if self.adapter is None or self.adapter.encoder is None:
            return []
        if any(image.detail is None for image in images):
            raise ConfigError(
                "the model's adapter reads a detail view, and an image comes without",
                field="processor.transform",
                remedy="Use the transform that the adapter's config makes of the base's (`fitted`)",
            )
        views = [ImageInput(kind=image.kind, views=image.detail) for image in images]
        return [_features_of(image) for image in _encoded(self.adapter.encoder, views)]

    def image_tokens(self, images: Sequence[ImageInput]) -> list[torch.Tensor]:
        """`tokens_UD` of each image."""
        encoded = self.encode(images)
        tokens: dict[int, torch.Tensor] = {}
        for rows in _alike([(image.kind, image.grid) for image in encoded]):
            kind, grid = encoded[rows[0]].kind, encoded[rows[0]].grid
            assert grid is not None, "features stand on a grid"
            features_NTC = torch.stack([_features_of(encoded[row]) for row in rows])
            tokens_NUD = self.connector.for_kind(kind)(features_NTC, grid)
            tokens |= dict(zip(rows, tokens_NUD, strict=True))
        return [tokens[row] for row in range(len(images))]

    def embed(self, input_ids_BL: torch.Tensor, tokens: Sequence[torch.Tensor]) -> torch.Tensor:
        """Text embeddings with image tokens written over the placeholders, in reading order.

        Raises:
            PromptError: the number of placeholders is not the number of image tokens.
        """
        places = input_ids_BL == self.config.image_token_id
        embeddings: torch.Tensor = self.get_input_embeddings()(input_ids_BL.masked_fill(places, 0))
        given = sum(len(tokens_UD) for tokens_UD in tokens)
        if int(places.sum()) != given:
            raise PromptError(
                f"{int(places.sum())} image placeholders in the text, {given} image tokens given"
            )
        if not tokens:
            return embeddings
        tokens_SD = torch.cat(list(tokens)).to(embeddings.dtype)
        return embeddings.masked_scatter(places[..., None], tokens_SD)

    def spans(
        self,
        input_ids_BL: torch.Tensor,
        tokens: Sequence[torch.Tensor],
        anchors_N2: torch.Tensor | None,
    ) -> list[Span]:
        """Where the images stand whose `tokens_UD` are given.

        Raises:
            PromptError: there are no anchors for images, and the adapter reads them.
        """
        rows_S, places_S = (input_ids_BL == self.config.image_token_id).nonzero(as_tuple=True)
        rows, places = rows_S.tolist(), places_S.tolist()
        anchors: list[int | None] = [None] * len(tokens)
        if self.adapter is not None and self.adapter.question_dependent and tokens:
            given = 0 if anchors_N2 is None else len(anchors_N2)
            if anchors_N2 is None or given != len(tokens):
                raise PromptError(
                    f"{len(tokens)} images, and {given} places where their questions end",
                    remedy="Pass `anchors` of the processor's ModelInput on with its images",
                )
            anchors = anchors_N2[:, ANCHORS.index(self.adapter.anchor)].tolist()
        lengths = [len(tokens_UD) for tokens_UD in tokens]
        starts = accumulate(lengths, initial=0)
        return [
            Span(row=rows[at], start=places[at], stop=places[at] + length, anchor=anchor)
            for at, length, anchor in zip(starts, lengths, anchors, strict=False)
        ]

    def acting(
        self, spans: Sequence[Span], details: Sequence[torch.Tensor]
    ) -> AbstractContextManager[None]:
        """Inside, the adapter changes the images at `spans`, of which it reads `details`.

        Raises:
            ConfigError: it reads them, and they are not as many as images.
        """
        if self.adapter is None or not spans:
            return nullcontext()
        if self.adapter.encoder is not None and len(details) != len(spans):
            raise ConfigError(
                f"{len(spans)} images, and {len(details)} detail views that the adapter reads",
                field="model.adapter",
                remedy="Pass what `details` makes of the images",
            )
        return self.adapter.acting(spans, details)

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        pixel_values: torch.Tensor | None = None,
        images: Sequence[ImageInput] | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        segments: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        anchors: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Logits `[B, L, V]`, and the mean loss over labels where they are given.

        `pixel_values` `[N, 3, H, W]` is the short form of `images` for 2D images of one view.
        `segments` `[B, L]` marks prefix, branches and padding (see `attention.branch_mask`) and then
        stands in for `attention_mask`. `anchors` `[N, 2]` are those of `ModelInput`; without them rows
        are taken for prompts of one turn, which end where their questions do.

        Raises:
            PromptError: the rows hold answers and the adapter needs `anchors`.
        """
        acting: AbstractContextManager[None] = nullcontext()
        if inputs_embeds is None:
            assert input_ids is not None
            if images is None:
                images = plain_images(pixel_values)
            tokens = self.image_tokens(images)
            inputs_embeds = self.embed(input_ids, tokens)
            if self.question_dependent and tokens and anchors is None and labels is None:
                mask = attention_mask if segments is None else segments >= 0
                anchors = _ends(input_ids, mask, self.config.image_token_id, tokens)
            acting = self._acting_in(input_ids, segments, tokens, self.details(images), anchors)
        visible: Mask | dict[str | None, Mask] | None = attention_mask
        if segments is not None:
            if position_ids is None:
                position_ids = torch.arange(segments.shape[1], device=segments.device)[None]
            positions = position_ids.expand_as(segments)
            visible = self._mask(segments, positions, inputs_embeds.dtype)
        with acting:
            output = self.language_model(
                inputs_embeds=inputs_embeds,
                attention_mask=visible,
                position_ids=position_ids,
                **kwargs,
            )
        if labels is not None:
            logits = output.logits[:, :-1].float()
            output.loss = F.cross_entropy(
                logits.flatten(0, 1), labels[:, 1:].flatten(), ignore_index=IGNORE
            )
        return cast(CausalLMOutputWithPast, output)

    def label_loss(
        self,
        input_ids: torch.Tensor,
        labels: torch.Tensor,
        position_ids: torch.Tensor,
        segments: torch.Tensor,
        tokens: Sequence[torch.Tensor],
        details: Sequence[torch.Tensor] = (),
        anchors: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, int]:
        """The summed loss over label tokens and their number; logits are made only for these, and never
        all at once (`models.logits`).

        A label at position i is predicted from i - 1, so no branch and no document begins with one.
        `details` and `anchors` `[N, 2]` are for the adapter, if there is one.

        Raises:
            PromptError, ConfigError: the adapter lacks what it reads, or rows share an image that is to
                see the question; or the language model cannot be told who sees whom in branches.
        """
        targets = F.pad(labels[:, 1:], (0, 1), value=IGNORE)
        rows_S, places_S = (targets != IGNORE).nonzero(as_tuple=True)
        targets_S = targets[rows_S, places_S]
        text = self.language_model
        inputs = {
            "inputs_embeds": self.embed(input_ids, tokens),
            "attention_mask": self._mask(segments, position_ids, text.dtype),
            "position_ids": position_ids,
            "use_cache": False,
        }
        rule = head_rule(text)
        with self._acting_in(input_ids, segments, tokens, details, anchors):
            if rule is None:
                columns = places_S.unique()
                logits = text(**inputs, logits_to_keep=columns).logits
                logits_SV = logits[rows_S, torch.searchsorted(columns, places_S)].float()
                return F.cross_entropy(logits_SV, targets_S, reduction="sum"), len(targets_S)
            hidden_BLD = text.base_model(**inputs).last_hidden_state
        chunk = chunk_of(text.config.get_text_config().vocab_size)
        head = self.get_output_embeddings()
        hidden_SD = hidden_BLD[rows_S, places_S]
        loss = summed_cross_entropy(hidden_SD, targets_S, head, rule, chunk=chunk)
        return loss, len(targets_S)

    @property
    def joins_rows(self) -> bool:
        """Whether unrelated rows are better put one after another than padded: FlexAttention passes over
        what no row sees. Not on a CPU, where it has no backward and a dense mask costs more than padding,
        and not for a family without sdpa, which reads padded rows. What was compared with padded rows is
        the forward pass, on a CPU; the backward has not run on any machine of ours."""
        return bool(self.language_model.config._attn_implementation == BLOCKS)

    def join_rows(self) -> None:
        """Let the language model take rows of several documents, where it is on a GPU."""
        text = self.language_model
        fields = text.config.get_text_config().to_dict()
        if fields.get("attention_dropout") or fields.get("attn_pdrop"):
            return  # FlexAttention has none
        if self.device.type == "cuda" and text.config._attn_implementation == "sdpa":
            text.set_attn_implementation(BLOCKS)

    def prepare_inputs_for_generation(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        inputs: dict[str, Any] = super().prepare_inputs_for_generation(*args, **kwargs)  # type: ignore[misc]
        if (
            not kwargs.get("is_first_iteration", False)
            and kwargs.get("past_key_values") is not None
        ):
            for name in ("pixel_values", "images", "anchors"):
                inputs.pop(name, None)
        return inputs

    def _acting_in(
        self,
        input_ids_BL: torch.Tensor,
        segments_BL: torch.Tensor | None,
        tokens: Sequence[torch.Tensor],
        details: Sequence[torch.Tensor],
        anchors_N2: torch.Tensor | None,
    ) -> AbstractContextManager[None]:
        """`acting` on the images of whole rows."""
        if self.adapter is None:
            return nullcontext()
        if self.question_dependent and segments_BL is not None and int(segments_BL.max()) > 0:
            raise PromptError(
                "several questions share an image, and the adapter lets it see the question",
                remedy="Give each question a row of its own (train.stages.NAME.objective.pack=false)",
            )
        return self.acting(self.spans(input_ids_BL, tokens, anchors_N2), details)

    def _mask(
        self, segments_BL: torch.Tensor, positions_BL: torch.Tensor, dtype: torch.dtype
    ) -> Mask | dict[str | None, Mask]:
        """A 2D padding mask where rows have no branches (the fast path), else what the family takes for
        rows of branches or of several documents."""
        branched = int(segments_BL.max()) > 0
        if not branched and int(documents(segments_BL, positions_BL).max()) <= 1:
            return (segments_BL >= 0).long()
        plan = mask_plan(self.language_model)
        return plan.masks(segments_BL, positions_BL, dtype, blocks=self.joins_rows)


def _encoded(encoder: Encoder, images: Sequence[ImageInput]) -> list[ImageInput]:
    encoded: dict[int, ImageInput] = {}
    for rows in _alike([_shape_of(image) for image in images]):
        first = images[rows[0]]
        if first.features is not None:
            encoded |= {row: images[row] for row in rows}
            continue
        for_kind = encoder.for_kind(first.kind)
        views = stack_views([_views_of(images[row]) for row in rows])
        features_NTC, grid = for_kind(views), for_kind.grid(views)
        for row, features_TC in zip(rows, features_NTC, strict=True):
            image = replace(images[row], views=None, features=features_TC, grid=grid)
            encoded[row] = image
    return [encoded[row] for row in range(len(images))]


def _ends(
    input_ids_BL: torch.Tensor,
    mask_BL: torch.Tensor | None,
    image_token_id: int,
    tokens: Sequence[torch.Tensor],
) -> torch.Tensor | None:
    """`anchors_N2` of prompts: the last real token of each image's row. None for a mask of another form
    than `[B, L]`, which does not say which tokens are real."""
    if mask_BL is not None and mask_BL.shape != input_ids_BL.shape:
        return None
    places = torch.arange(input_ids_BL.shape[1], device=input_ids_BL.device)
    real_BL = torch.ones_like(input_ids_BL) if mask_BL is None else mask_BL.long()
    last_B = (places * real_BL).argmax(1)
    rows_S = (input_ids_BL == image_token_id).nonzero(as_tuple=True)[0]
    starts = list(accumulate((len(tokens_UD) for tokens_UD in tokens), initial=0))[:-1]
    return last_B[rows_S[starts]][:, None].expand(-1, len(ANCHORS))


def image_layouts(encoder: Encoder, connector: Connector) -> ImageLayouts:
    """What each kind of image becomes.

    Raises:
        ConfigError: the connector cannot take the encoder's grid.
    """
    layouts: dict[str, Any] = {}
    for kind in encoder.kinds:
        grid, connect = encoder.for_kind(kind).layout, connector.for_kind(kind).layout
        one, more = connect(grid), False
        if encoder.for_kind(kind).cuts:
            twice = grid.model_copy(update={"depth": 2 * grid.depth})
            more = connect(twice).tokens > one.tokens
            if connect(twice).tokens not in (one.tokens, 2 * one.tokens):
                raise ConfigError(
                    f"two units of {kind}s become {connect(twice).tokens} tokens, one {one.tokens}",
                    field="connector",
                    remedy="Use a connector that maps each unit alone, or all to one number of tokens",
                )
        layouts |= {kind: one, f"{kind}_per_unit": more}
    return ImageLayouts(**layouts)


def plain_images(pixel_values_N3HW: torch.Tensor | None) -> list[ImageInput]:
    """2D images of one view each."""
    views = () if pixel_values_N3HW is None else pixel_values_N3HW
    return [ImageInput(views=view) for view in views]


def stack_views(views: Sequence[Views]) -> Views:
    """The views of images of one shape as one batch; pictures in the layout convolutions like."""
    first = views[0]
    if isinstance(first, tuple):
        columns = zip(*(cast("tuple[Views, ...]", view) for view in views), strict=True)
        return tuple(stack_views(column) for column in columns)
    stacked = torch.stack(cast("list[torch.Tensor]", list(views)))
    is_picture = stacked.ndim == 4
    return stacked.contiguous(memory_format=torch.channels_last) if is_picture else stacked


def on_device(image: ImageInput, device: torch.device) -> ImageInput:
    """The image with its tensors on `device`."""
    return with_tensors(image, lambda tensor: tensor.to(device))


def with_tensors(image: ImageInput, change: Callable[[torch.Tensor], torch.Tensor]) -> ImageInput:
    """The image with every tensor of it put through `change`."""

    def changed(views: Views) -> Views:
        return tuple(map(changed, views)) if isinstance(views, tuple) else change(views)

    views = None if image.views is None else changed(image.views)
    detail = None if image.detail is None else changed(image.detail)
    features = None if image.features is None else change(image.features)
    return replace(image, views=views, features=features, detail=detail)


def _alike(keys: Sequence[object]) -> list[list[int]]:
    """The places of equal keys, in order of first appearance."""
    groups: dict[object, list[int]] = {}
    for place, key in enumerate(keys):
        groups.setdefault(key, []).append(place)
    return list(groups.values())


def _shape_of(image: ImageInput) -> object:
    """Equal for images that one batch can hold."""

    def shape(views: Views) -> object:
        return tuple(map(shape, views)) if isinstance(views, tuple) else tuple(views.shape)

    return image.kind, image.grid, None if image.views is None else shape(image.views)


def _views_of(image: ImageInput) -> Views:
    assert image.views is not None, "an image has views or features"
    return image.views


def _features_of(image: ImageInput) -> torch.Tensor:
    assert image.features is not None, "an image has views or features"
    return image.features


def plain_encoder(tokenizer: PreTrainedTokenizerBase) -> Callable[[str], list[int]]:
    """Text to ids, without BOS or EOS."""
    return lambda text: list(tokenizer.encode(text, add_special_tokens=False))


IMAGE_TOKEN = "<|image|>"


def encoder_hash(encoder: torch.nn.Module) -> str:
    """16 hex digits over every tensor of the encoder, buffers too: cached features carry it."""
    digest = hashlib.sha256()
    for name, tensor in sorted(encoder.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()[:16]


AutoConfig.register(VLMConfig.model_type, VLMConfig)
AutoModelForCausalLM.register(VLMConfig, VisionLanguageModel)
