"""Bearer keys (RFC 6750): who may ask, and who may administer. A key is never kept, logged or shown in an error."""

from __future__ import annotations

import hashlib
import hmac
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from vitesse.errors import UsageError
from vitesse.serve.refusals import Refusal

# 128 bits written as hexadecimal have 32 characters; below 16 a key can be guessed over a network.
SHORTEST_KEY = 16
_MAKE_ONE = "openssl rand -hex 32"
_SECRET_HEADERS = {"authorization", "proxy-authorization", "cookie", "set-cookie", "x-api-key"}


class Keys:
    """Keys that open the same door; only keyed hashes of them are kept.

    Args:
        texts: the keys, each of 16 or more visible ASCII characters.
        realm: what they open, for the client's eyes.

    Raises:
        UsageError: no key, or one that is too short or has blanks; says which by its place, not by its text.
    """

    def __init__(self, texts: Iterable[str], *, realm: str = "vitesse") -> None:
        self._realm = realm
        self._salt = os.urandom(32)  # hashes of one process say nothing to another
        self._hashes = tuple(self._hash(_checked(text, place)) for place, text in enumerate(texts, 1))
        if not self._hashes:
            raise UsageError(
                "no key is set",
                expected="at least one key",
                cause="an empty file or variable",
                fix=f"make one: {_MAKE_ONE}",
            )

    def __repr__(self) -> str:
        return f"Keys({len(self)} hidden)"

    def __len__(self) -> int:
        return len(self._hashes)

    def check(self, header: str | None) -> None:
        """Pass if `header`, the request's Authorization, is "Bearer KEY" with one of the keys.

        It takes as long for a wrong key as for a right one, whatever they have in common.

        Raises:
            Refusal: 401 "unauthorized" with WWW-Authenticate; its text does not hold what was sent.
        """
        if not header:
            raise self._refusal("the request has no Authorization header", "")
        scheme, _, presented = header.partition(" ")
        if scheme.lower() != "bearer" or not presented.strip():
            raise self._refusal("the Authorization header is not a bearer key", "invalid_request")
        found = self._hash(presented.strip())
        right = False
        for known in self._hashes:  # all of them, always
            right |= hmac.compare_digest(known, found)
        if not right:
            raise self._refusal("the key is not one of this server's", "invalid_token")

    def _hash(self, text: str) -> bytes:
        return hmac.digest(self._salt, text.encode("utf-8", "surrogateescape"), hashlib.sha256)

    def _refusal(self, what: str, error: str) -> Refusal:
        challenge = f'Bearer realm="{self._realm}"' + (f', error="{error}"' if error else "")
        text = f"{what}; expected Authorization: Bearer KEY. Next step: ask whoever runs the server for a key"
        return Refusal(401, "unauthorized", text, {"WWW-Authenticate": challenge})


@dataclass(frozen=True)
class Access:
    """Which keys open what; those of clients do not administer, those of administrators do not infer.

    Args:
        clients: for inference; None: anybody who reaches the port.
        admin: for releases and whatever else changes the server; None: there is no such route.
    """

    clients: Keys | None = None
    admin: Keys | None = None

    def check_client(self, header: str | None) -> None:
        """Pass if this Authorization header may infer; raises Refusal 401."""
        if self.clients is not None:
            self.clients.check(header)

    def check_admin(self, header: str | None) -> None:
        """Pass if it may administer; raises Refusal 401, or 404 "not_found" where no admin key is set."""
        if self.admin is None:
            raise Refusal(
                404,
                "not_found",
                "there is no admin API here; expected a server started with an admin key. Next step: vitesse serve RUN "
                "--admin-key-file FILE, or vitesse release on the machine itself",
            )
        self.admin.check(header)


def keys_from_file(path: Path, *, realm: str = "vitesse") -> Keys:
    """Read keys from a file: one a line; empty lines and those that begin with # are left out.

    Raises:
        UsageError: the file cannot be read, holds no key, or one that `Keys` does not take.
    """
    try:
        lines = path.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not text"
        make = f"make one: {_MAKE_ONE} > {path} && chmod 600 {path}"
        raise UsageError(
            f"cannot read the keys in {path}: {reason}",
            expected="a text file with one key a line",
            fix=make if isinstance(error, FileNotFoundError) else "check the path and who may read it",
        ) from None  # a decoding error would carry the file's bytes
    return _named(str(path), [line.strip() for line in lines if line.strip()[:1] not in {"", "#"}], realm)


def keys_from_environment(
    name: str, environment: Mapping[str, str], *, realm: str = "vitesse"
) -> Keys | None:
    """Read keys from a variable, separated by commas; None where it is not set.

    Raises:
        UsageError: it is set, and empty or not what `Keys` takes.
    """
    if name not in environment:
        return None
    return _named(f"${name}", [text.strip() for text in environment[name].split(",") if text.strip()], realm)


def redacted(headers: Mapping[str, str]) -> dict[str, str]:
    """Return headers for a log: the values of those that carry secrets are replaced by three stars."""
    return {name: "***" if name.lower() in _SECRET_HEADERS else value for name, value in headers.items()}


def _named(origin: str, texts: list[str], realm: str) -> Keys:
    try:
        return Keys(texts, realm=realm)
    except UsageError as error:
        raise UsageError(
            f"{origin}: {error.what}", expected=error.expected, cause=error.cause, fix=error.fix
        ) from None


def _checked(text: str, place: int) -> str:
    """The key itself; raises where it is weak or could not be sent in a header, and names it by its place alone."""
    if len(text) < SHORTEST_KEY:
        what = f"key {place} has {len(text)} characters"
    elif not all("!" <= letter <= "~" for letter in text):
        what = f"key {place} has blanks or letters beyond ASCII"
    else:
        return text
    raise UsageError(
        what,
        expected=f"{SHORTEST_KEY} or more visible ASCII characters",
        cause="a password in place of a key, or quotes and comments in the line",
        fix=f"make one: {_MAKE_ONE}",
    )
