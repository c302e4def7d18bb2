"""URLs as people may see them: in logs, messages and representations, never with a password."""

from __future__ import annotations

import re

_USER = re.compile(r"^(?P<scheme>[a-z][a-z0-9+.-]*://)(?:(?P<name>[^:/?#@]*):)?.*@", re.IGNORECASE | re.DOTALL)
_QUERY = re.compile(r"(?P<name>[?&](?:password|token|secret)=)[^&#]*", re.IGNORECASE)
HIDDEN = "***"


def masked(url: str) -> str:
    """`url` without the password in it; what is no URL comes back as it is.

    >>> masked("redis://:hunter2@127.0.0.1:6379/0"), masked("redis://anna:a@b@db/0?password=x&db=1"), masked("redis://localhost")
    ('redis://:***@127.0.0.1:6379/0', 'redis://anna:***@db/0?password=***&db=1', 'redis://localhost')
    """
    hidden = _USER.sub(lambda found: f"{found['scheme']}{found['name'] or ''}:{HIDDEN}@", url)
    return _QUERY.sub(lambda found: f"{found['name']}{HIDDEN}", hidden)
