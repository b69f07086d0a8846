"""A page is one file that loads nothing, and text stays text."""

from __future__ import annotations

from pathlib import Path

import pytest

from medloupe.html.markup import Html, tag
from medloupe.html.page import asset, document, write_page


def test_a_document_escapes_its_title_and_allows_nothing_from_outside() -> None:
    page = document("<b> & co", tag("main", "<i>"), style=Html(".a > .b {}"))
    assert page.startswith("<!doctype html>\n<html")
    assert "<title>&lt;b&gt; &amp; co</title>" in page
    assert "<main>&lt;i&gt;</main>" in page
    assert "default-src 'none'" in page.replace("&#x27;", "'")
    assert 'name="viewport"' in page
    assert page.index("--paper") < page.index(".a > .b {}"), "a page's own style comes last"


def test_a_page_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "page.html"
    write_page(path, "first")
    with pytest.raises(UnicodeEncodeError):
        write_page(path, "half \ud800")
    assert path.read_text("utf-8") == "first"
    assert [p.name for p in path.parent.iterdir()] == ["page.html"]


def test_the_shared_style_is_in_the_package() -> None:
    assert "prefers-color-scheme: dark" in asset("medloupe.html", "base.css")
