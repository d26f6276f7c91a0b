"""Passwords and addresses masked in what is printed, stored or published."""

from __future__ import annotations

import re
import urllib.parse
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

# A setting of a DSN: quoted, or up to the first space without a backslash.
_SETTING = r"(?:^|[^\w?&-])\w*passw(?:or)?d\s*=\s*(?P<password>'(?:[^'\\]|\\.)*(?:'|$)|(?:\\.|\S)*)"
_IN_TEXT = tuple(
    re.compile(pattern, re.IGNORECASE | re.DOTALL)
    for pattern in (
        r"[?&][\w-]*passw(?:or)?d=(?P<password>[^&\s]*)",  # a URL's query parameter
        _SETTING,
        # scheme://user:password@host: an unquoted password may hold any of :/@, so it ends at the last @ of the word,
        r"://[^:\s]*:(?P<password>(?:(?![\s,\"'\[]+[\w+.-]+://)\S)*)@",
        # or, as it may hold spaces, at the first @ after the word; a number there is a port
        r"://[^:\s]*:(?P<password>(?!\d+(?:\W|$))[^@\s]+\s[^@]*)@",
    )
)
_IN_URL = tuple(
    re.compile(pattern, re.IGNORECASE | re.DOTALL)
    for pattern in (r"[?&][\w-]*passw(?:or)?d=(?P<password>[^&]*)", _SETTING, r"://[^:]*:(?P<password>.*)@")
)


def redacted(text: str, url: str = "") -> str:
    """A text with *** for the password of every URL and of every DSN in it.

    Args:
        text: a sentence, a configuration.
        url: its passwords are replaced wherever they occur in the text, as written and without escapes: drivers quote
            them in their messages.
    """
    parts = text.split(url) if url else [text]
    for password in sorted(_passwords(url), key=len, reverse=True):
        parts = [part.replace(password, "***") for part in parts]
    return _masked(redacted_url(url).join(parts), _IN_TEXT)


def redacted_url(url: str | Path) -> str:
    """A URL or DSN with *** for its passwords, which may hold spaces and line ends here; a path stays as it is."""
    return _masked(str(url), _IN_URL)


def _masked(text: str, patterns: Iterable[re.Pattern[str]]) -> str:
    """The text with *** for what any of the patterns takes for a password; where these overlap, for all of them."""
    end, parts = 0, []
    for start, stop in sorted(m.span("password") for pattern in patterns for m in pattern.finditer(text)):
        if start >= end:
            parts += [text[end:start], "***"]
        end = max(end, stop)
    return "".join(parts) + text[end:]


def _passwords(url: str) -> set[str]:
    """The passwords of a URL or DSN in every form in which a driver may quote them."""
    found = {m["password"] for pattern in _IN_URL for m in pattern.finditer(url)}
    for raw in list(found):  # drivers differ in which @ ends it; one or two letters would mask parts of other words
        sides = {side for at in re.finditer("@", raw) for side in (raw[: at.start()], raw[at.end() :])}
        found |= {side for side in sides if len(side) > 2}
    found |= {re.sub(r"\\(.)", r"\1", raw.strip("'"), flags=re.DOTALL) for raw in found}
    return {form for raw in found for form in (raw, urllib.parse.unquote(raw)) if form}


def without_addresses(value: Any) -> Any:
    """A configuration for publication: every URL is cut after its scheme, as hosts and users are private, too."""
    if isinstance(value, Mapping):
        return {str(key): without_addresses(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [without_addresses(inner) for inner in value]
    if isinstance(value, str) and "://" in value:
        return value.partition("://")[0] + "://..."
    return value if isinstance(value, (str, int, float, bool, type(None))) else str(value)
