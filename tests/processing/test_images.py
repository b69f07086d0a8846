"""Views for a model: the same with and without a store, decoded once."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch
from pydicom.data import get_testdata_file

from medloupe.errors import ImageError
from medloupe.imaging.read import read_ref
from medloupe.imaging.store import DecodedStore
from medloupe.imaging.transforms import ImageTransform
from medloupe.processing import ImageSource
from medloupe.types import ImageRef

TRANSFORM = ImageTransform(size=16)


@pytest.fixture
def refs() -> list[ImageRef]:
    names = ("CT_small.dcm", "MR_small.dcm", "examples_palette.dcm")
    return [ImageRef(uri=str(get_testdata_file(name, download=False))) for name in names]


@pytest.mark.parametrize("stored", [False, True])
def test_views_are_the_transform_of_the_file(tmp_path, refs, stored):
    store = DecodedStore(tmp_path) if stored else None
    plain = [read_ref(ref, Path()) for ref in refs]
    expected = torch.stack([torch.from_numpy(TRANSFORM.apply(image)) for image in plain])
    for _ in range(2):
        source = ImageSource(Path(), TRANSFORM, store=store, keep_bytes=2048)
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # torch warns of tensors on read-only memory
            views = torch.stack([image.views for image in source.inputs(refs)])
            assert torch.equal(views, expected)
            assert torch.equal(source.view(refs[1]), expected[1])
        assert [source.size_of(ref) for ref in refs] == [image.size for image in plain]
    assert source.inputs([]) == []


def test_a_view_may_be_changed(refs):
    source = ImageSource(Path(), TRANSFORM)
    source.view(refs[0]).zero_()
    assert source.view(refs[0]).abs().sum() > 0


def test_at_most_so_many_views_are_in_memory(tmp_path, refs):
    """A view that is held is not read again, one that was dropped is. 16 x 16 float32: 1,024 bytes of
    a grey view, 3,072 of a coloured one."""
    copies = []
    for ref in refs:
        target = tmp_path / Path(ref.uri).name
        target.write_bytes(Path(ref.uri).read_bytes())
        copies.append(ImageRef(uri=target.name))
    source = ImageSource(tmp_path, TRANSFORM, keep_bytes=1024 + 3072)
    assert len(source.inputs(copies)) == 3
    for ref in copies:
        (tmp_path / ref.uri).unlink()
    assert source.view(copies[2]).shape == source.view(copies[1]).shape == (3, 16, 16)
    with pytest.raises(ImageError, match="no such"):
        source.view(copies[0])
    assert source.size_of(copies[0]) == read_ref(refs[0], Path()).size
