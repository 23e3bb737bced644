"""PipConfiguration: the indexes and the way to them that pip is configured with, whether pip is installed or not.

An environment that uv made has no pip, and a company's index stands in pip's files all the same. Where they lie and
which one wins is as in pip (`pip config debug` lists them): machine, user, environment's own file, PIP_CONFIG_FILE,
then variables; in a file [global], then the sections of the commands that fetch.
"""

from __future__ import annotations

import configparser
import os
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from app.errors import InvalidInput

DEFAULT_INDEX = "https://pypi.org/simple"
DEFAULT_TIMEOUT_S = 15.0
FILE_NAME = "pip.conf"
SECTIONS = ("global", "install", "download")
PREFIX = "PIP_"
SAID_NO = {"0", "no", "false", "off", "n", "f"}


@dataclass(frozen=True)
class PipConfiguration:
    """Attributes:
    index_urls: where to look for a project, in this order; http, https or file.
    find_links: folders, or pages with links, to look at first.
    proxy: for all requests; None leaves it to HTTPS_PROXY and its like.
    cert: file of certificates to trust instead of the usual ones.
    client_cert: file with a certificate and its key to show.
    trusted_hosts: whose certificates are not checked.
    timeout_s: for which a connection may be silent.
    """

    index_urls: tuple[str, ...]
    find_links: tuple[str, ...] = ()
    proxy: str | None = None
    cert: str | None = None
    client_cert: str | None = None
    trusted_hosts: tuple[str, ...] = ()
    timeout_s: float = DEFAULT_TIMEOUT_S

    @classmethod
    def read(cls, environment: Mapping[str, str] = os.environ) -> PipConfiguration:
        """Raises InvalidInput: a file cannot be parsed, or a time is no number."""
        said = dict(_from_files(environment)) | dict(_from_variables(environment))
        said = {name: value.strip() for name, value in said.items() if value.strip()}
        indexes = [said.get("index-url", said.get("pypi-url", DEFAULT_INDEX)), *said.get("extra-index-url", "").split()]
        if said.get("no-index", "no").lower() not in SAID_NO:
            indexes = []
        return cls(
            index_urls=tuple(dict.fromkeys(indexes)),
            find_links=tuple(said.get("find-links", "").split()),
            proxy=said.get("proxy"),
            cert=said.get("cert", environment.get("REQUESTS_CA_BUNDLE", environment.get("CURL_CA_BUNDLE"))),
            client_cert=said.get("client-cert"),
            trusted_hosts=tuple(said.get("trusted-host", "").split()),
            timeout_s=_parse_timeout(said.get("timeout", said.get("default-timeout", str(DEFAULT_TIMEOUT_S)))),
        )


def _parse_timeout(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 < seconds < float("inf"):
        raise InvalidInput(f"pip's timeout is {text}, which is no number of seconds", param="PIP_TIMEOUT")
    return seconds


def _from_files(environment: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """What stands in the files, of lower rank first."""
    named = environment.get("PIP_CONFIG_FILE")
    if named == os.devnull:
        return
    paths = [*_machine_files(environment), *([] if named else _user_files(environment)), Path(sys.prefix) / FILE_NAME]
    parsers = [_parse(path) for path in (*paths, *([Path(named)] if named else []))]
    for section in SECTIONS:
        for parser in parsers:
            if parser.has_section(section):
                yield from ((_normalize(name), value) for name, value in parser.items(section))


def _from_variables(environment: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    return (
        (_normalize(name.removeprefix(PREFIX)), value) for name, value in environment.items() if name.startswith(PREFIX)
    )


def _normalize(name: str) -> str:
    return name.lower().replace("_", "-").removeprefix("--")


def _machine_files(environment: Mapping[str, str]) -> list[Path]:
    if sys.platform == "darwin":
        return [Path("/Library/Application Support/pip") / FILE_NAME]
    folders = environment.get("XDG_CONFIG_DIRS", "/etc/xdg").split(os.pathsep)
    return [*(Path(folder) / "pip" / FILE_NAME for folder in folders if folder), Path("/etc") / FILE_NAME]


def _user_files(environment: Mapping[str, str]) -> list[Path]:
    home = environment.get("HOME")
    if not home:
        return []
    configured = Path(environment.get("XDG_CONFIG_HOME") or Path(home) / ".config") / "pip"
    on_mac = Path(home) / "Library" / "Application Support" / "pip"
    if sys.platform == "darwin":
        configured = on_mac if on_mac.is_dir() else Path(home) / ".config" / "pip"
    return [Path(home) / ".pip" / FILE_NAME, configured / FILE_NAME]


def _parse(path: Path) -> configparser.RawConfigParser:
    """Empty if there is no such file."""
    parser = configparser.RawConfigParser()
    try:
        parser.read(path, encoding="utf-8")
    except (configparser.Error, UnicodeDecodeError, OSError) as error:
        raise InvalidInput(f"pip's configuration {path} cannot be read", param="PIP_CONFIG_FILE") from error
    return parser
