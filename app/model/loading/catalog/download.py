"""Downloader: a file over HTTP, continued where an earlier try ended."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from app.errors import ModelUnavailable
from app.model.loading.catalog.index import host_of

if TYPE_CHECKING:
    import httpx

NUM_TRIES = 3
PAUSE_S = 1.0
"""Between two tries."""
RANGE = re.compile(r"bytes (\d+)-\d+/(\d+|\*)")
MB = 1e6
ShowBytes = Callable[[int, int | None], None]
"""Called with how many bytes are there, and how many there will be; None if that is not known."""


class Downloader:
    """Args: timeout_s: for which the server may be silent."""

    def __init__(self, client: httpx.Client, timeout_s: float) -> None:
        self._client = client
        self._timeout_s = timeout_s

    def fetch(self, url: str, part: Path, show: ShowBytes, *, max_bytes: int) -> None:
        """Complete the file, whose beginning may be there. What has arrived is kept whatever happens.

        Raises ModelUnavailable, OSError.
        """
        for num_tries_left in reversed(range(NUM_TRIES)):
            try:
                self._fetch_rest(url, part, show, max_bytes)
            except _Broken as error:
                if num_tries_left == 0:
                    raise ModelUnavailable(str(error)) from error
                time.sleep(PAUSE_S)
            else:
                return

    def _fetch_rest(self, url: str, part: Path, show: ShowBytes, max_bytes: int) -> None:
        """Raises _Broken, ModelUnavailable, OSError."""
        import httpx

        host, num_bytes = host_of(url), part.stat().st_size if part.exists() else 0
        headers = {"accept-encoding": "identity", **({"range": f"bytes={num_bytes}-"} if num_bytes else {})}
        try:
            with self._client.stream("GET", url, headers=headers, timeout=self._timeout_s) as answer:
                if answer.status_code == httpx.codes.REQUESTED_RANGE_NOT_SATISFIABLE:
                    _check_complete(answer, part, num_bytes)
                    return
                first, total = _span(answer, num_bytes, host)
                with part.open("r+b" if first else "wb") as file:
                    num_bytes = file.seek(first)
                    for chunk in answer.iter_raw():
                        num_bytes += file.write(chunk)
                        if num_bytes > max_bytes:
                            raise ModelUnavailable(f"{host} sends more than the file can have")
                        show(num_bytes, total)
        except httpx.TimeoutException as error:
            raise _Broken(f"{host} was silent for {self._timeout_s:g} s") from error
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise _Broken(f"the download from {host} broke off at {num_bytes / MB:.0f} MB ({error})") from error
        if total is not None and num_bytes < total:
            raise _Broken(f"the download from {host} broke off at {num_bytes / MB:.0f} of {total / MB:.0f} MB")


class _Broken(Exception):
    """Says how a try ended; another one may do better."""


def _span(answer: httpx.Response, num_bytes: int, host: str) -> tuple[int, int | None]:
    """Where in the file the body begins, and the file's size. Raises _Broken, ModelUnavailable."""
    import httpx

    if answer.status_code == httpx.codes.PARTIAL_CONTENT:
        found = RANGE.fullmatch(answer.headers.get("content-range", ""))
        if found is None or int(found[1]) != num_bytes:
            raise _Broken(f"{host} sent another part of the file than it was asked for")
        return num_bytes, None if found[2] == "*" else int(found[2])
    if answer.is_server_error:
        raise _Broken(f"{host} answered {answer.status_code}")
    if answer.status_code != httpx.codes.OK:
        raise ModelUnavailable(f"{host} answered {answer.status_code} when asked for the file")
    length = answer.headers.get("content-length", "")
    return 0, int(length) if length.isdigit() else None


def _check_complete(answer: httpx.Response, part: Path, num_bytes: int) -> None:
    """The server has nothing after what is there. Raises _Broken, after removing what is there: it is not the file."""
    if answer.headers.get("content-range") == f"bytes */{num_bytes}":
        return
    part.unlink()
    raise _Broken("what was there before is longer than the file")
