"""Image encoders. Adding one is one file here and one line in `EncoderConfig.table`."""

from medloupe.models.encoders.base import Encoder, EncoderConfig, undecided

__all__ = ["Encoder", "EncoderConfig", "undecided"]
