"""GDCM in a process of its own, because it ends the process on some damaged files.

Its Python wrapper lets C++ exceptions through (a JPEG lossless frame whose Bits Stored is not Bits
Allocated, a JPEG 2000 stream without image size), which is `terminate`, not an error. Here only a
child ends: the frame is refused, and the next one gets another child. A child lives as long as the
process that uses it; sending a frame there and back costs a small part of what GDCM takes for it.
"""

from __future__ import annotations

import contextlib
import io
import os
import struct
import subprocess
import sys
import threading
from typing import Any, BinaryIO, Final

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate, get_frame

from medloupe.imaging.dicom.parse import frame_count
from medloupe.imaging.dicom.plugins import APART

_SECONDS: Final = 120  # a frame that takes longer never ends
_LENGTH: Final = struct.Struct("<Q")
_NEEDED: Final = (
    "SamplesPerPixel",
    "PhotometricInterpretation",
    "PlanarConfiguration",
    "Rows",
    "Columns",
    "BitsAllocated",
    "BitsStored",
    "HighBit",
    "PixelRepresentation",
)


def decode_apart(dataset: Dataset, frame: int, way: str) -> tuple[NDArray[Any], str]:
    """Decode a frame by `plugins.APART[way]` in the child.

    Raises:
        ValueError: it cannot be decoded; says so where the decoder ended its process.
    """
    answer = _child.ask(way.encode().ljust(16) + _one_frame(dataset, frame))
    kind, said, pixels = answer[:1], answer[1:65].decode().strip("\0"), answer[65:]
    if kind != b"+":
        raise ValueError(answer[1:].decode(errors="replace"))
    return np.load(io.BytesIO(pixels), allow_pickle=False), said


def _one_frame(dataset: Dataset, frame: int) -> bytes:
    """A DICOM file of this frame and of what is needed to decode it."""
    single = Dataset()
    for keyword in _NEEDED:
        if keyword in dataset:
            single[keyword] = dataset[keyword]
    count = frame_count(dataset)
    single.PixelData = encapsulate([get_frame(dataset.PixelData, frame, number_of_frames=count)])
    single["PixelData"].VR = "OB"
    single.file_meta = FileMetaDataset()
    single.file_meta.TransferSyntaxUID = dataset.file_meta.TransferSyntaxUID
    stream = io.BytesIO()
    single.save_as(stream, enforce_file_format=False)
    return stream.getvalue()


class _Child:
    """The process, started when first asked. One question at a time."""

    def __init__(self) -> None:
        self._pid = os.getpid()
        self._mutex = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None

    def ask(self, question: bytes) -> bytes:
        if self._pid != os.getpid():  # forked: the child answers the parent
            self.__init__()  # type: ignore[misc]
        with self._mutex:
            process = self._process or self._start()
            assert process.stdin is not None
            assert process.stdout is not None
            clock = threading.Timer(_SECONDS, process.kill)
            clock.start()
            try:
                _send(process.stdin, question)
                return _receive(process.stdout)
            except (BrokenPipeError, EOFError):
                self._process = None
                raise ValueError("the decoder ended its process over this frame") from None
            finally:
                clock.cancel()

    def _start(self) -> subprocess.Popen[bytes]:
        self._process = process = subprocess.Popen(
            [sys.executable, "-m", __name__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        return process


_child = _Child()


def _send(stream: Any, message: bytes) -> None:
    stream.write(_LENGTH.pack(len(message)) + message)
    stream.flush()


def _receive(stream: Any) -> bytes:
    """
    Raises:
        EOFError: the other side is gone.
    """
    start = stream.read(_LENGTH.size)
    if len(start) < _LENGTH.size:
        raise EOFError
    (length,) = _LENGTH.unpack(start)
    message: bytes = stream.read(length)
    if len(message) < length:
        raise EOFError
    return message


def _answer(question: bytes) -> bytes:
    way, file = question[:16].decode().strip(), question[16:]
    try:
        pixels, photometric = APART[way](pydicom.dcmread(io.BytesIO(file), force=True), 0)
    except Exception as error:  # whatever a decoder raises is for the parent to tell
        return b"-" + str(error).encode()
    stream = io.BytesIO()
    np.save(stream, pixels, allow_pickle=False)
    return b"+" + photometric.encode().ljust(64, b"\0") + stream.getvalue()


def _serve(questions: BinaryIO, answers: BinaryIO) -> None:
    with contextlib.suppress(EOFError, BrokenPipeError):
        while True:
            _send(answers, _answer(_receive(questions)))


if __name__ == "__main__":
    private = os.dup(1)  # what a decoder prints must not stand between the answers
    os.dup2(2, 1)
    _serve(sys.stdin.buffer, os.fdopen(private, "wb"))
