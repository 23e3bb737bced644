"""Pip's configuration is read as pip reads it, also where no pip is installed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from app.errors import InvalidInput
from app.model.loading.catalog.pip_configuration import DEFAULT_INDEX, PipConfiguration

CONTENTS = {
    "machine/pip/pip.conf": "[global]\nindex-url = https://machine.invalid/simple\nproxy = one.invalid:1\ntimeout=3\n",
    "home/.pip/pip.conf": "[global]\nproxy = old.invalid:2\nfind-links = /old\n",
    "home/.config/pip/pip.conf": (
        "[global]\nextra_index_url =\n    https://one.invalid/simple\n    file:///two/simple\n"
        "trusted-host = a.invalid b.invalid\n[download]\nproxy = user.invalid:3\n"
    ),
    "named.conf": "[global]\ncert = /named.pem\nindex-url = https://named.invalid/simple\n",
}


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    for name, content in CONTENTS.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content)
    return {"HOME": str(tmp_path / "home"), "XDG_CONFIG_DIRS": str(tmp_path / "machine")}


def test_the_users_files_win_over_the_machines(environment: dict[str, str]) -> None:
    read = PipConfiguration.read(environment)
    assert read.index_urls == ("https://machine.invalid/simple", "https://one.invalid/simple", "file:///two/simple")
    assert (read.proxy, read.find_links, read.timeout_s) == ("user.invalid:3", ("/old",), 3)
    assert read.trusted_hosts == ("a.invalid", "b.invalid")


def test_variables_win_over_files_and_empty_ones_say_nothing(environment: dict[str, str]) -> None:
    said = {
        "PIP_INDEX_URL": "https://variable.invalid/simple",
        "PIP_EXTRA_INDEX_URL": "",
        "PIP_FIND_LINKS": "/a https://b.invalid/links",
        "PIP_DEFAULT_TIMEOUT": "60",
        "PIP_TIMEOUT": "7.5",
        "PIP_CERT": "/variable.pem",
    }
    read = PipConfiguration.read(environment | said)
    assert read.index_urls[0] == "https://variable.invalid/simple"
    assert read.find_links == ("/a", "https://b.invalid/links")
    assert (read.timeout_s, read.cert) == (7.5, "/variable.pem")


def test_a_named_file_takes_the_place_of_the_users(environment: dict[str, str], tmp_path: Path) -> None:
    read = PipConfiguration.read(environment | {"PIP_CONFIG_FILE": str(tmp_path / "named.conf")})
    assert (read.index_urls, read.proxy) == (("https://named.invalid/simple",), "one.invalid:1")
    assert read.cert == "/named.pem"


def test_without_any_configuration_there_is_pips_own_index() -> None:
    read = PipConfiguration.read({"PIP_CONFIG_FILE": "/dev/null"})
    assert read == PipConfiguration(index_urls=(DEFAULT_INDEX,))
    assert PipConfiguration.read({"PIP_CONFIG_FILE": "/dev/null", "REQUESTS_CA_BUNDLE": "/x.pem"}).cert == "/x.pem"
    for said in ("1", "true", "yes"):
        assert PipConfiguration.read({"PIP_CONFIG_FILE": "/dev/null", "PIP_NO_INDEX": said}).index_urls == ()
    for said in ("0", "false", ""):
        assert PipConfiguration.read({"PIP_CONFIG_FILE": "/dev/null", "PIP_NO_INDEX": said}).index_urls != ()


def test_a_file_that_cannot_be_parsed_is_named(environment: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "named.conf").write_text("index-url = https://no.section.invalid")
    with pytest.raises(InvalidInput, match=r"pip's configuration .*named\.conf cannot be read"):
        PipConfiguration.read(environment | {"PIP_CONFIG_FILE": str(tmp_path / "named.conf")})


@pytest.mark.slow
@pytest.mark.parametrize("is_named", [False, True])
def test_pip_itself_says_the_same(is_named: bool, environment: dict[str, str], tmp_path: Path) -> None:
    pytest.importorskip("pip")
    environment["PIP_FIND_LINKS"] = "/variable"
    if is_named:
        environment["PIP_CONFIG_FILE"] = str(tmp_path / "named.conf")
    command = [sys.executable, "-m", "pip", "config", "list"]
    listed = subprocess.run(command, env=environment, check=True, capture_output=True, text=True, timeout=60).stdout
    said = {key: value.strip("'") for key, _, value in (line.partition("=") for line in listed.splitlines())}
    read = PipConfiguration.read(environment)
    assert read.index_urls[0] == said["global.index-url"]
    assert read.cert == said.get("global.cert")
    assert read.find_links == (said[":env:.find-links"],)
    assert read.proxy == said.get("download.proxy", said["global.proxy"])
