"""SimpleIndexes: where the indexes that pip knows have a file (the simple repository API, PEP 503 and PEP 691)."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from functools import partial
from html.parser import HTMLParser
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING, TypeVar
from urllib.parse import unquote, urljoin, urlsplit, urlunsplit
from urllib.request import url2pathname

from app.errors import ModelUnavailable

if TYPE_CHECKING:
    import httpx

ACCEPT = "application/vnd.pypi.simple.v1+json, application/vnd.pypi.simple.v1+html;q=0.2, text/html;q=0.1"
MAX_PAGE_BYTES = 32 * 2**20
HTTP = ("http", "https")
Result = TypeVar("Result")


class SimpleIndexes:
    """Args:
    index_urls, find_links: as pip is given them.
    answer_s: seconds for which all of them together may keep us waiting.
    """

    def __init__(
        self, client: httpx.Client, index_urls: tuple[str, ...], find_links: tuple[str, ...], answer_s: float
    ) -> None:
        self._client = client
        self._index_urls = index_urls
        self._find_links = find_links
        self._answer_s = self._left_s = answer_s

    def find(self, project: str, file: str) -> Iterator[str]:
        """URLs of the file, those on this machine first. Raises ModelUnavailable after them if there were none."""
        pages = [*self._find_links, *(f"{url.rstrip('/')}/{project}/" for url in self._index_urls)]
        reasons, num_found = [], 0
        for page in sorted(pages, key=is_remote):
            try:
                for url in self._links_of(page):
                    if file_of(url) == file:
                        num_found += 1
                        yield url
            except _Silent as error:
                reasons.append(str(error))
        if num_found == 0:
            places = ", ".join(dict.fromkeys(map(host_of, pages)))
            without = f"there is no {file} at {places}" if places else "pip is told to use no index"
            raise ModelUnavailable("; ".join(dict.fromkeys(reasons)) or without)

    def _links_of(self, page: str) -> Iterator[str]:
        """Raises _Silent."""
        if not is_remote(page):
            yield from _local_links(path_of(page))
            return
        began_s = time.monotonic()
        try:
            links = within(self._left_s, partial(self._fetch, page))
        except TimeoutError as error:
            raise _Silent(f"{host_of(page)} did not answer within {self._answer_s:g} s") from error
        finally:
            self._left_s -= time.monotonic() - began_s
        yield from (with_login(link, page) for link in links if is_remote(link))

    def _fetch(self, page: str) -> list[str]:
        """All links of a page, absolute; none of a project that the index does not have. Raises _Silent."""
        import httpx

        try:
            with self._client.stream("GET", page, headers={"accept": ACCEPT}, timeout=self._answer_s) as answer:
                if answer.status_code == httpx.codes.NOT_FOUND:
                    return []
                if not answer.is_success:
                    raise _Silent(f"{host_of(page)} answered {answer.status_code}")
                content = bytearray()
                for piece in answer.iter_bytes():
                    content += piece
                    if len(content) > MAX_PAGE_BYTES:
                        raise _Silent(f"{host_of(page)} sent a page without end")
                return parse_page(bytes(content), answer.headers.get("content-type", ""), str(answer.url))
        except httpx.TimeoutException as error:
            raise TimeoutError from error
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise _Silent(f"{host_of(page)} cannot be reached ({error})") from error


def within(seconds: float, work: Callable[[], Result]) -> Result:
    """What `work` returns or raises, in a thread that is left behind if it takes longer.

    No other way bounds the look-up of a name: without a network it may take half a minute.

    Raises TimeoutError.
    """
    outcome: Future[Result] = Future()

    def run() -> None:
        try:
            outcome.set_result(work())
        except BaseException as error:
            outcome.set_exception(error)

    Thread(target=run, daemon=True).start()
    return outcome.result(max(seconds, 0))


class _Silent(Exception):
    """Says why a page cannot be read."""


def parse_page(content: bytes, content_type: str, url: str) -> list[str]:
    """The URLs of all files, absolute. Raises _Silent: it is no page of an index."""
    if "json" not in content_type:
        parser = _Links()
        parser.feed(content.decode("utf-8", "replace"))
        return [urljoin(urljoin(url, parser.base), link) for link in parser.links]
    try:
        return [urljoin(url, file["url"]) for file in json.loads(content)["files"]]
    except (ValueError, KeyError, TypeError) as error:
        raise _Silent(f"{host_of(url)} sent a page that is not of an index") from error


class _Links(HTMLParser):
    """Attributes: base: what links are relative to, if the page says so."""

    def __init__(self) -> None:
        super().__init__()
        self.base = ""
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        href = dict(attrs).get("href")
        if tag == "base" and href and not self.base:
            self.base = href
        elif tag == "a" and href:
            self.links.append(href)


def _local_links(path: Path) -> Iterator[str]:
    """Of a folder of files, of a folder of an index, of a page, or a file by itself. Raises _Silent."""
    try:
        if path.is_dir():
            yield from (child.resolve().as_uri() for child in sorted(path.iterdir()) if child.is_file())
            path = path / "index.html"
        if path.suffix in (".html", ".htm") and path.is_file():
            yield from parse_page(path.read_bytes(), "text/html", path.resolve().as_uri())
        elif path.is_file():
            yield path.resolve().as_uri()
    except OSError as error:
        raise _Silent(f"{path} cannot be read ({error.strerror})") from error


def is_remote(place: str) -> bool:
    return urlsplit(place).scheme in HTTP


def path_of(place: str) -> Path:
    """Args: place: a path, or a file: URL."""
    parts = urlsplit(place)
    return Path(url2pathname(parts.path)) if parts.scheme == "file" else Path(place).expanduser()


def file_of(url: str) -> str:
    return unquote(urlsplit(url).path.rpartition("/")[2])


def host_of(url: str) -> str:
    """For messages: an index's URL may hold a password."""
    return urlsplit(url).hostname or url


def with_login(link: str, page: str) -> str:
    """The link with the page's user and password if it leads to the same host and has none of its own."""
    to, at = urlsplit(link), urlsplit(page)
    if "@" in at.netloc and to.netloc == at.netloc.rpartition("@")[2]:
        return urlunsplit(to._replace(netloc=at.netloc))
    return link
