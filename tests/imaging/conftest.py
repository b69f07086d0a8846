"""Helpers of the imaging tests."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from medloupe.errors import ImageError
from medloupe.imaging.read import read_image
from medloupe.imaging.transforms import ImageTransform
from medloupe.types import MedicalImage


@pytest.fixture
def read_or_refuse() -> Callable[..., MedicalImage | None]:
    """Read a file and make a view of it; None where an `ImageError` names this file as the fault.

    Any other exception goes through and fails the test.
    """

    def attempt(path: Path, **options: Any) -> MedicalImage | None:
        try:
            image = read_image(path, **options)
            ImageTransform(size=8).apply(image)
        except ImageError as error:
            if error.fault.file == str(path):
                return None
            raise
        return image

    return attempt
