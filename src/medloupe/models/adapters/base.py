"""What an adapter is: between layers of the language model it changes what image tokens say.

It hangs on decoder layers by forward hooks and acts inside of `acting` alone, so that with a key-value
cache it acts where images are read and rests while an answer grows. Only image tokens change. A layer's
output may be read at an image's anchor, the place where the question about it ends; an adapter that does
so is question-dependent, and rows may then not share an image prefix.
Hooks run outside of transformers' activation checkpointing, so an adapter checkpoints itself.
Shapes: B rows, L tokens, N images, K tokens of an image, T detail features, C channels, D width.
"""

from __future__ import annotations

import abc
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial, reduce
from typing import Any, ClassVar, Self

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from medloupe.config import ComponentConfig
from medloupe.errors import ConfigError
from medloupe.imaging.views import ViewTransform
from medloupe.models.encoders import Encoder, EncoderConfig
from medloupe.types import Anchor


@dataclass(frozen=True, kw_only=True)
class Span:
    """Where one image stands in a batch: tokens `[start, stop)` of `row`. `anchor` is a place in the same
    row, None where nobody asks for it."""

    row: int
    start: int
    stop: int
    anchor: int | None = None

    def moved(self, *, row: int, by: int) -> Span:
        """In another batch: as row `row`, with `by` tokens of padding before it."""
        anchor = None if self.anchor is None else self.anchor + by
        return replace(self, row=row, start=self.start + by, stop=self.stop + by, anchor=anchor)


@dataclass(frozen=True, kw_only=True)
class _Alike:
    """Images with equal numbers of tokens and of detail features: one call of the adapter."""

    rows_N: torch.Tensor
    places_NK: torch.Tensor
    anchors_N: torch.Tensor | None
    details_NTC: torch.Tensor | None


class Adapter(nn.Module, abc.ABC):
    """Changes the image tokens that leave the decoder layers number `places` (from 0).

    `encoder` reads the detail views of images, None where the adapter needs none.
    """

    question_dependent: bool = False
    anchor: Anchor = "prompt"
    # transformers sets it where a model's checkpointing is turned on
    gradient_checkpointing = False

    def __init__(self, places: Sequence[int], encoder: Encoder | None = None) -> None:
        super().__init__()
        self.places = tuple(places)
        self.encoder = encoder
        self._acting: list[_Alike] | None = None

    @abc.abstractmethod
    def forward(
        self,
        number: int,
        tokens_NKD: torch.Tensor,
        anchors_ND: torch.Tensor | None,
        details_NTC: torch.Tensor | None,
    ) -> torch.Tensor:
        """The tokens that go on in place of those which left layer `places[number]`, each image on its
        own. `anchors_ND` are that layer's outputs at the anchors, for a question-dependent adapter.

        All of them come in the adapter's own dtype, where the language model's is not wider, and the
        result is cast to the language model's.
        """

    def reset(self) -> None:
        """Draw first weights, those of `encoder` aside: such that no token changes, as far as the adapter
        can leave tokens as they are."""

    def load_pretrained(self) -> None:
        """Load the published weights of the encoder.

        Raises:
            MissingExtraError, CheckpointError: as `Encoder.load_pretrained`.
        """
        if self.encoder is not None:
            self.encoder.load_pretrained()

    def attach(self, language_model: PreTrainedModel) -> None:
        """Hang on the layers of a language model; once for each language model.

        Raises:
            ConfigError: its layers are not found.
        """
        layers = decoder_layers(language_model)
        for number, place in enumerate(self.places):
            layers[place].register_forward_hook(partial(self._hook, number))

    @contextmanager
    def acting(self, spans: Sequence[Span], details: Sequence[torch.Tensor] = ()) -> Iterator[None]:
        """Inside, the images at `spans` are changed; `details` are `features_TC` of each."""
        self._acting = _alike(spans, details)
        try:
            yield
        finally:
            self._acting = None

    def _hook(self, number: int, layer: nn.Module, args: Any, output: Any) -> Any:
        """The layer's output, changed; some families give a tensor, some a tuple that begins with it."""
        del layer, args
        if self._acting is None:
            return None
        if isinstance(output, torch.Tensor):
            return self._changed(number, output)
        return (self._changed(number, output[0]), *output[1:])

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def _changed(self, number: int, hidden_BLD: torch.Tensor) -> torch.Tensor:
        assert self._acting is not None
        own = (p.dtype for name, p in self.named_parameters() if not name.startswith("encoder."))
        dtype, device = reduce(torch.promote_types, own, hidden_BLD.dtype), hidden_BLD.device
        places: list[tuple[torch.Tensor, torch.Tensor]] = []
        changed: list[torch.Tensor] = []
        for images in self._acting:
            rows_N, places_NK = images.rows_N.to(device), images.places_NK.to(device)
            rows_NK = rows_N[:, None].expand_as(places_NK)
            anchors_ND = None
            if images.anchors_N is not None and self.question_dependent:
                anchors_ND = hidden_BLD[rows_N, images.anchors_N.to(device)].to(dtype)
            details_NTC = images.details_NTC
            tokens_NKD = self._run(
                number,
                hidden_BLD[rows_NK, places_NK].to(dtype),
                anchors_ND,
                None if details_NTC is None else details_NTC.to(dtype),
            )
            places.append((rows_NK.flatten(), places_NK.flatten()))
            changed.append(tokens_NKD.to(hidden_BLD.dtype).flatten(0, 1))
        rows_S, places_S = (torch.cat(one) for one in zip(*places, strict=True))
        return hidden_BLD.index_put((rows_S, places_S), torch.cat(changed))

    def _run(self, *args: Any) -> torch.Tensor:
        again = self.gradient_checkpointing and self.training and torch.is_grad_enabled()
        tokens: torch.Tensor = (
            checkpoint(self, *args, use_reentrant=False) if again else self(*args)
        )
        return tokens


class AdapterConfig(ComponentConfig):
    """Base of all adapter configs."""

    family: ClassVar[str] = "adapter"
    table: ClassVar[Mapping[str, str]] = {
        "hia": "medloupe.models.adapters.hia:HiaConfig",
    }

    @abc.abstractmethod
    def build(self, width: int, depth: int) -> Adapter:
        """The module with random weights, for a language model of that width and number of layers.

        Raises:
            ConfigError: it cannot be built for such a one.
        """

    def for_base(self, base: EncoderConfig) -> Self:
        """The config with what follows from the encoder of the model that is adapted."""
        del base
        return self

    def resolved(self) -> Self:
        """As `EncoderConfig.resolved`."""
        return self

    def fitted(self, transform: ViewTransform) -> ViewTransform:
        """The transform of the adapted model, of the base's own: joined with that of detail views
        where the adapter reads some.

        Raises:
            ConfigError: it states what the adapter cannot take.
        """
        return transform


def decoder_layers(language_model: PreTrainedModel) -> nn.ModuleList:
    """The decoder layers of a language model of any family, in order.

    Raises:
        ConfigError: there is no single list of as many layers as its config says.
    """
    depth = language_model.config.get_text_config().num_hidden_layers
    lists = [m for m in language_model.modules() if isinstance(m, nn.ModuleList)]
    found = [
        layers
        for layers in lists
        if len(layers) == depth and all(isinstance(m, GradientCheckpointingLayer) for m in layers)
    ]
    if len(found) != 1:
        raise ConfigError(
            f"{len(found)} lists of {depth} decoder layers in {type(language_model).__name__}, and an "
            "adapter needs one to hang on",
            field="model.adapter",
            remedy="Use another language model, or no adapter",
        )
    return found[0]


def _alike(spans: Sequence[Span], details: Sequence[torch.Tensor]) -> list[_Alike]:
    groups: dict[object, list[int]] = {}
    for number, span in enumerate(spans):
        shape = tuple(details[number].shape) if details else ()
        groups.setdefault((span.stop - span.start, shape, span.anchor is None), []).append(number)
    return [
        _stacked([spans[n] for n in group], [details[n] for n in group if details])
        for group in groups.values()
    ]


def _stacked(spans: Sequence[Span], details: Sequence[torch.Tensor]) -> _Alike:
    anchors = [span.anchor for span in spans if span.anchor is not None]
    return _Alike(
        rows_N=torch.tensor([span.row for span in spans]),
        places_NK=torch.stack([torch.arange(span.start, span.stop) for span in spans]),
        anchors_N=torch.tensor(anchors) if anchors else None,
        details_NTC=torch.stack(list(details)) if details else None,
    )
