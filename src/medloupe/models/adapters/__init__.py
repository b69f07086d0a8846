"""Adapters between layers of the language model. Adding one is one file here and one line in
`AdapterConfig.table`. (Low-rank adapters inside linear layers are another thing: `models.low_rank`.)"""

from medloupe.models.adapters.base import Adapter, AdapterConfig, Span, decoder_layers

__all__ = ["Adapter", "AdapterConfig", "Span", "decoder_layers"]
