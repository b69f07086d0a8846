"""The frame that every page shares: nothing is fetched, the reader's light or dark, one file."""

from __future__ import annotations

import os
from importlib import resources
from pathlib import Path

from medloupe.html.markup import Html, join, tag

_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"


def document(title: str, *body: str, style: Html) -> str:
    """A whole page: `base.css`, then `style`; text is escaped, and nothing external can load."""
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("meta", http_equiv="Content-Security-Policy", content=_POLICY),
        tag("title", title),
        tag("style", join(asset("medloupe.html", "base.css"), style)),
    )
    return f"<!doctype html>\n{tag('html', head, tag('body', *body), lang='en')}\n"


def asset(package: str | None, name: str) -> Html:
    """A file of a package, as it stands: style sheets and scripts are not escaped."""
    assert package is not None, "a page belongs to a package"
    return Html(resources.files(package).joinpath(name).read_text(encoding="utf-8"))


def write_page(path: Path, page: str) -> None:
    """Write a page, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        aside.write_text(page, encoding="utf-8", newline="\n")
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)
