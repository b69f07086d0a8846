"""The command line: one verb per job. torch and transformers load inside commands, so --help is quick."""

from medloupe.cli.app import main

__all__ = ["main"]
