"""HTML that cannot forget to escape: plain strings are text, only `Html` is markup."""

from __future__ import annotations

from html import escape

_VOID = frozenset({"meta", "input", "br", "img", "hr"})


class Html(str):
    """Finished markup."""

    __slots__ = ()


def tag(name: str, /, *children: str, **attributes: str | float | bool | None) -> Html:
    """One element. Attributes: `_` stands for `-`, a final `_` is dropped, None and False leave out.

    Children that are not `Html` are escaped, attribute values always.
    """
    head = "".join(_attribute(key, value) for key, value in attributes.items())
    if name in _VOID:
        return Html(f"<{name}{head}>")
    return Html(f"<{name}{head}>{join(*children)}</{name}>")


def join(*children: str) -> Html:
    """Children one after another, escaped unless they are markup."""
    return Html("".join(c if isinstance(c, Html) else escape(c, quote=False) for c in children))


def _attribute(key: str, value: str | float | bool | None) -> str:
    if value is None or value is False:
        return ""
    name = key.removesuffix("_").replace("_", "-")
    if value is True:
        return f" {name}"
    text = f"{value:g}" if isinstance(value, float) else str(value)
    return f' {name}="{escape(text)}"'
