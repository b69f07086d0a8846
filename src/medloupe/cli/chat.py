"""The terminal conversation. Lines come from stdin, so it can be scripted through a pipe."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from medloupe.cli import console
from medloupe.errors import MedLoupeError, PromptError
from medloupe.generate import ChatSession, Predictor
from medloupe.types import ImageRef

HELP = "/image PATH [FRAME] shows an image, /volume PATH a volume, /new starts again, /quit ends"


_SHOWN = {"/image": "an image", "/volume": "a volume"}


def converse(
    predict: Predictor, images: Sequence[ImageRef], *, modality: str | None = None
) -> None:
    """Read lines until /quit or the end of input; a turn that fails leaves the conversation as it was."""
    session, waiting = ChatSession(predict), list(images)
    console.err.print(HELP, markup=False)
    while (line := _read()) is not None:
        try:
            if line == "/quit":
                return
            if line == "/new":
                session, waiting = ChatSession(predict), []
            elif line.partition(" ")[0] in _SHOWN:
                waiting.append(_image(line, predict, modality))
            elif line.startswith("/"):
                raise PromptError(f"unknown command {line.split()[0]!r}", remedy=HELP)
            elif line:
                answer = session.ask(line, waiting)
                waiting = []
                console.show_answer(answer)
        except MedLoupeError as error:
            console.complain(str(error))


def _read() -> str | None:
    try:
        return input("> " if console.err.is_terminal else "").strip()
    except EOFError:
        return None


def _image(line: str, predict: Predictor, modality: str | None) -> ImageRef:
    """Read at once, so that a bad file is noticed before the question."""
    command, *words = shlex.split(line)
    most = 2 if command == "/image" else 1
    if not 1 <= len(words) <= most or not all(word.isdigit() for word in words[1:]):
        raise PromptError(f"not {_SHOWN[command]} command", remedy=HELP)
    ref = ImageRef.parse(
        {
            "uri": str(Path(words[0]).expanduser().resolve()),
            "kind": command.removeprefix("/"),
            "frame": int(words[1]) if len(words) == 2 else None,
            "modality": modality,
        }
    )
    predict.images.view(ref)
    return ref
