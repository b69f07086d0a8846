"""What everything that asks a model over HTTP shares: its key, its url, and when to ask again.

A key is read from the environment, lives in a header, and is cut out of every text that comes back
(servers quote keys in their errors).
"""

from __future__ import annotations

import datetime
import email.utils
import functools
import ipaddress
import os
import re
import socket
from collections.abc import Callable, Iterable, Mapping
from typing import Annotated, Any, Final, TypeAlias
from urllib.parse import urlsplit

from pydantic import AfterValidator

from medloupe.errors import ConfigError, import_extra

Resolve = Callable[[str], Iterable[str]]
"""A host's name -> all its addresses; raises OSError where it has none."""

RETRIED: Final = frozenset({408, 409, 425, 429})
"""Refusals that may pass, beside all from 500 on."""

_NO_CREDIT: Final = re.compile("insufficient_quota|billing|credit balance", re.I)
_ENVIRONMENT: Final = re.compile("[A-Za-z_][A-Za-z0-9_]*")
_KEY: Final = re.compile("[!-~]+")  # what a header may hold
_LOCAL_NETWORKS: Final = tuple(
    ipaddress.ip_network(network)
    for network in (
        "127.0.0.0/8",
        "::1/128",
        "10.0.0.0/8",
        "172.16.0.0/12",
        "192.168.0.0/16",
        "fc00::/7",
    )
)


def checked_key_name(value: str) -> str:
    """The name of an environment variable, or "".

    Raises:
        ValueError: it is no name. Never quoted: a key pasted by mistake must not be printed.
    """
    if value and (not _ENVIRONMENT.fullmatch(value) or len(value) > 64):
        raise ValueError("name an environment variable, such as OPENAI_API_KEY, never a key")
    return value


def checked_url(value: str) -> str:
    """A plain http(s) url without the slash at its end.

    Raises:
        ValueError: it is none, or holds a user, a password or a query.
    """
    parts = urlsplit(value)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("needs http:// or https:// and a host")
    if parts.username or parts.password or parts.query or parts.fragment:
        raise ValueError("holds no user, password or query; name the key's variable in key_env")
    return value.rstrip("/")


KeyName: TypeAlias = Annotated[str, AfterValidator(checked_key_name)]
"""A config's field that names the variable of a key."""

Url: TypeAlias = Annotated[str, AfterValidator(checked_url)]
"""A config's field that holds a url."""


def import_httpx() -> Any:
    """The module httpx.

    Raises:
        MissingExtraError: it is not installed.
    """
    return import_extra("httpx", extra="synthesis")


def client_options(httpx: Any, *, timeout: float, local: bool) -> dict[str, Any]:
    """What a client is opened with. `timeout` is in seconds without a byte.

    Who was taken for `local` was so by its addresses: no proxy may stand between. Certificates of the
    environment count all the same.
    """
    return {
        "trust_env": not local,
        "verify": httpx.create_ssl_context(),
        "timeout": httpx.Timeout(timeout, connect=min(30.0, timeout)),
    }


def without_key(text: str, key: str) -> str:
    """The text with the key cut out; to be done before anything could cut the key in two."""
    return text.replace(key, "[key]") if key else text


def read_key(key_env: str, *, who: str, field: str, remedy: str) -> str:
    """The key in the variable `key_env`, "" where none is named.

    Raises:
        ConfigError: the variable is not set, or holds what cannot be a key.
    """
    if not key_env:
        return ""
    key = os.environ.get(key_env, "").strip()
    if not key:
        raise ConfigError(
            f"{who} needs a key and the environment variable {key_env} is not set",
            field=field,
            remedy=remedy,
        )
    if not _KEY.fullmatch(key):  # never quoted
        raise ConfigError(
            f"the environment variable {key_env} of {who} holds spaces, line breaks or signs that are "
            "not ASCII, which no key does",
            field=field,
            remedy="Copy the key alone, without quotes or words around it",
        )
    return key


def says_no_credit(status: int, text: str) -> bool:
    """Whether a refusal means that the account is empty: asking again is of no use."""
    return status == 402 or (status in (400, 403, 429) and _NO_CREDIT.search(text) is not None)


def asked_wait(headers: Mapping[str, str]) -> float | None:
    """Retry-After in seconds: a number, or a date (RFC 9110, 10.2.3)."""
    value = headers.get("retry-after", "").strip()
    if re.fullmatch(r"\d+(\.\d+)?", value):
        return float(value)
    try:
        date = email.utils.parsedate_to_datetime(value)
    except ValueError:
        return None
    if date.tzinfo is None:
        date = date.replace(tzinfo=datetime.UTC)
    return max(0.0, (date - datetime.datetime.now(datetime.UTC)).total_seconds())


def is_local(url: str, *, resolve: Resolve | None = None) -> bool:
    """Whether what is sent to `url` stays on this machine or in a private network.

    It does if every address the host resolves to is a loopback or private one: endpoints that are local
    are called past any proxy. A name that cannot be resolved, a link-local or shared address, and a url
    that cannot be read do not.
    """
    try:
        split = urlsplit(url)
        if split.scheme not in ("http", "https") or not split.hostname:
            return False
        addresses = list((resolve or _addresses)(split.hostname))
    except (OSError, ValueError):
        return False
    return bool(addresses) and all(map(_is_private, addresses))


@functools.cache
def settled_local(url: str) -> bool:
    """`is_local`, asked once for a url: a run does not change its mind between two rows."""
    return is_local(url)


def _addresses(host: str) -> list[str]:
    return [str(info[4][0]) for info in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)]


def _is_private(address: str) -> bool:
    try:
        found = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return False
    if isinstance(found, ipaddress.IPv6Address) and found.ipv4_mapped is not None:
        found = found.ipv4_mapped
    return any(found.version == network.version and found in network for network in _LOCAL_NETWORKS)
