"""Questions about real files, once and in a conversation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pydicom
from pydicom.data import get_testdata_file


def real(name: str) -> Path:
    found = get_testdata_file(name)
    assert isinstance(found, str)
    return Path(found)


def test_a_multi_frame_file_needs_a_frame(finished: Path, medloupe: Any) -> None:
    words = ["ask", "--model", finished / "run/model", "--image", real("SC_rgb_rle_2frame.dcm")]
    refused = medloupe(*words, "Which plane is this?", code=2)
    assert "holds 2 frames" in refused.err
    assert "frame" in refused.err
    assert refused.out == ""
    two = [*words, "--frame", "1", "--image", real("SC_rgb_rle_2frame.dcm"), "--frame", "0"]
    answered = medloupe(*two, "What changed?")
    assert answered.out.strip()
    assert "Traceback" not in answered.err


def test_a_conversation_over_many_kinds_of_files(
    finished: Path, medloupe: Any, tmp_path: Path
) -> None:
    inverted = pydicom.dcmread(real("CT_small.dcm"))
    inverted.PhotometricInterpretation = "MONOCHROME1"
    inverted.save_as(tmp_path / "mono 1.dcm")
    (tmp_path / "cut.dcm").write_bytes(real("MR_small.dcm").read_bytes()[:5000])
    kinds = {
        "16 bit": real("CT_small.dcm"),
        "8 bit, deflated": real("image_dfl.dcm"),
        "8 bit, colour": real("SC_rgb_small_odd.dcm"),
        "MONOCHROME1": tmp_path / "mono 1.dcm",
    }
    lines = []
    for image in kinds.values():
        lines += [f"/image '{image}'", "Which plane is this?", "Are you sure?", "/new"]
    lines += ["/image nowhere.png", f"/image {tmp_path}/cut.dcm", "/imagine", "/image"]
    lines += [
        f"/image {real('SC_rgb_rle_2frame.dcm')}",
        f"/image {real('SC_rgb_rle_2frame.dcm')} 1",
    ]
    lines += ["Which plane is this?", "/quit", "never read"]
    done = medloupe("chat", "--model", finished / "run", stdin="\n".join(lines), folder=tmp_path)
    assert len(done.out.splitlines()) >= 2 * len(kinds) + 1
    for complaint in (
        "nowhere.png': no such image file",
        "cut.dcm'",
        "unknown command '/imagine'",
        "not an image command",
        "holds 2 frames",
    ):
        assert complaint in done.err
    assert done.err.count("Error:") == 5
    assert done.err.count("(the answer was cut") <= 2 * len(kinds) + 1
