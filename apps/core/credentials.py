"""Who may log in: the stack's token, one-time codes made from it, or users with hashed passwords. No HTTP here.

Secrets never stand in a URL. What `workbench up` prints is a link with a code that works once and for a few minutes; it is traded
for a signed cookie and is worth nothing afterwards, so that a log or a browser history that keeps it keeps no secret.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import secrets
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from workbench.errors import ConfigError

CODE_LIFE_S = 600.0
"""Ten minutes: long enough to read what `up` printed and click, short enough that a forgotten terminal is no key."""
TRIES = 10
TRIES_WINDOW_S = 60.0
_SCRYPT = {"n": 2**14, "r": 8, "p": 1}


def hash_password(password: str, salt: bytes | None = None) -> str:
    """`scrypt:SALT:HASH` for a users file."""
    salt = salt or secrets.token_bytes(16)
    return f"scrypt:{salt.hex()}:{hashlib.scrypt(password.encode(), salt=salt, **_SCRYPT).hex()}"


def read_users(file: Path) -> dict[str, str]:
    """A JSON object of name to `scrypt:...`. Raises ConfigError, also for passwords in clear."""
    try:
        users = json.loads(file.read_text())
    except OSError as error:
        raise ConfigError(f"cannot be read: {error.strerror}", file=str(file), field="users_file") from error
    except ValueError as error:
        raise ConfigError(f"is not JSON: {error}", file=str(file), field="users_file") from error
    if not isinstance(users, dict) or not users:
        raise ConfigError("must be an object of names and password hashes", file=str(file), field="users_file")
    for name, value in users.items():
        if not isinstance(value, str) or value.count(":") != 2 or not value.startswith("scrypt:"):
            raise ConfigError(
                f"the password of {name!r} is not a hash", file=str(file), fix="Make one with `python -m apps --hash-password`."
            )
    return users


@dataclass
class Credentials:
    """Checks what a visitor brings. `token` is the stack's; `users` replaces it for `auth = "basic"`."""

    token: str = ""
    users: dict[str, str] | None = None
    clock: Callable[[], float] = time.monotonic
    _codes: dict[str, float] = field(default_factory=dict)
    _failures: deque[float] = field(default_factory=lambda: deque(maxlen=TRIES))

    def throttled(self) -> bool:
        """Whether so many wrong tries came within a minute that the next one has to wait."""
        now = self.clock()
        return len(self._failures) == TRIES and now - self._failures[0] < TRIES_WINDOW_S

    def check(self, user: str, secret: str) -> str | None:
        """The name to log in under, or None."""
        found = self._check_user(user, secret) if self.users is not None else self._check_token(secret)
        if found is None:
            self._failures.append(self.clock())
        return found

    def is_token(self, secret: str) -> bool:
        return bool(self.token) and hmac.compare_digest(secret.encode(), self.token.encode())

    def new_code(self) -> str:
        """A code for a link: works once, within `CODE_LIFE_S`."""
        now = self.clock()
        self._codes = {code: until for code, until in self._codes.items() if until > now}
        code = secrets.token_urlsafe(24)
        self._codes[code] = now + CODE_LIFE_S
        return code

    def redeem(self, code: str) -> bool:
        """Use up a code."""
        until = self._codes.pop(code, 0.0)
        if until <= self.clock():
            self._failures.append(self.clock())
            return False
        return True

    def cookie_secret(self) -> str:
        """Signs cookies. Derived from what the stack already keeps, so that a restarted dashboard knows its visitors."""
        base = self.token or (json.dumps(sorted(self.users.items())) if self.users else secrets.token_hex(32))
        return hmac.new(base.encode(), b"workbench dashboard cookie", hashlib.sha256).hexdigest()

    def _check_token(self, secret: str) -> str | None:
        return "operator" if self.is_token(secret.strip()) else None

    def _check_user(self, user: str, secret: str) -> str | None:
        known = (self.users or {}).get(user)
        salt = bytes.fromhex(known.split(":")[1]) if known else b"nobody by that name"
        given = hash_password(secret, salt)
        # The hash is made for unknown names too: the time an answer takes does not tell which names exist.
        return user if known is not None and hmac.compare_digest(given, known) else None
