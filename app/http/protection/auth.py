"""API keys: whether a request may pass."""

from __future__ import annotations

import base64
import hashlib
import hmac
from collections.abc import Iterable

from starlette.datastructures import Headers

from app.http.protection.error_table import Refused


class ApiKeys:
    """The keys a server was started with, as digests. With none at all every request passes.

    Digests of equal length are compared in constant time, all of them on every request, so that the time reveals
    neither how much of a key is right nor which key it is.
    """

    def __init__(self, keys: Iterable[str] = ()) -> None:
        self._digests = tuple(_digest(key) for key in dict.fromkeys(keys))

    def __bool__(self) -> bool:
        return bool(self._digests)

    def check(self, headers: Headers, *, is_page: bool = False) -> str:
        """The cache salt of the request's key; empty on a server without keys.

        Computed text is shared only among requests of one key, because the time an answer takes would tell one caller
        what another has asked.

        Raises Refused with status 401 unless `Authorization: Bearer KEY` carries one of the keys.

        Args:
            is_page: also take the key as the password of Basic authentication, the only one browsers ask people for.
                Only for pages that change nothing: browsers send Basic credentials on other sites' behalf too.
        """
        if not self._digests:
            return ""
        scheme, _, credentials = headers.get("authorization", "").partition(" ")
        is_basic = is_page and scheme.lower() == "basic"
        candidate = _digest(_read_password(credentials) if is_basic else credentials.strip())
        matches = [hmac.compare_digest(candidate, digest) for digest in self._digests]
        if not (is_basic or scheme.lower() == "bearer") or not any(matches):
            challenge = 'Basic realm="softswap: any name, the API key as password"' if is_page else "Bearer"
            raise Refused(
                401,
                "This server asks for an API key: send it as 'Authorization: Bearer KEY'",
                code="invalid_api_key",
                headers={"WWW-Authenticate": challenge},
            )
        return candidate.hex()


def _read_password(credentials: str) -> str:
    try:
        return base64.b64decode(credentials, validate=True).decode().partition(":")[2]
    except ValueError:  # not base64, or not text inside
        return ""


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()
