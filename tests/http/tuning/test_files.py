"""`/v1/files` through the official client, and what it refuses."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest
from openai import BadRequestError, NotFoundError, OpenAI

from app.http.protection.uploads import MAX_UPLOADS
from app.jobs import files as file_book
from app.model.backbone import Backbone
from tests.support.server import LiveServer, make_settings, run_server
from tests.support.tuning_jobs import wait_until

GOOD = b'{"input": "a", "target": "x"}\n{"input": "b", "target": "y"}\n'


@pytest.fixture(scope="module")
def live(backbone: Backbone, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    with run_server(make_settings(tmp_path_factory.mktemp("prompts")), backbone) as server:
        yield server


@pytest.fixture
def client(live: LiveServer) -> OpenAI:
    return OpenAI(base_url=f"{live.url}/v1", api_key="not needed", max_retries=0, timeout=60)


@pytest.fixture
def http(live: LiveServer) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=live.url, timeout=60) as each:
        yield each


def stored(live: LiveServer) -> set[str]:
    folder = live.tuning.stores.folder.path / "files"
    return {path.name for path in folder.glob("*")}


def test_a_file_is_kept_shown_and_given_back(client: OpenAI) -> None:
    file = client.files.create(file=("pairs.jsonl", GOOD + GOOD), purpose="fine-tune")
    assert (file.object, file.filename, file.bytes) == ("file", "pairs.jsonl", 2 * len(GOOD))
    assert (file.purpose, file.status) == ("fine-tune", "processed")
    assert file.status_details == "4 examples, 2 of them duplicates"
    assert client.files.retrieve(file.id) == file
    assert client.files.content(file.id).read() == GOOD + GOOD
    assert client.files.wait_for_processing(file.id).id == file.id
    assert client.files.delete(file.id).deleted
    with pytest.raises(NotFoundError) as caught:
        client.files.retrieve(file.id)
    assert caught.value.code == "file_not_found"


def test_files_come_in_pages(client: OpenAI) -> None:
    ids = [client.files.create(file=(f"{n}.jsonl", GOOD), purpose="fine-tune").id for n in range(5)]
    assert [file.id for file in client.files.list(limit=2)][:5] == ids[::-1]
    ascending = [file.id for file in client.files.list(limit=2, order="asc")]
    assert ascending == [file.id for file in client.files.list()][::-1]
    page = client.files.list(limit=2, after=ids[-1])
    assert ([file.id for file in page.data], page.has_more) == ([ids[3], ids[2]], True)
    assert list(client.files.list(purpose="batch")) == []
    assert len(list(client.files.list(purpose="fine-tune"))) == len(ascending)
    with pytest.raises(NotFoundError):
        client.files.list(after="file-none")
    for each in ids:
        client.files.delete(each)


def test_the_same_content_is_stored_once_and_goes_with_its_last_name(client: OpenAI, live: LiveServer) -> None:
    before = stored(live)
    first, second = (client.files.create(file=(name, GOOD), purpose="fine-tune") for name in ("a.jsonl", "b.jsonl"))
    assert len(stored(live) - before) == 1
    client.files.delete(first.id)
    assert client.files.content(second.id).read() == GOOD
    client.files.delete(second.id)
    assert stored(live) == before


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("chat.jsonl", b'{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "x"}]}'),
        ("old.jsonl", b'{"prompt": "a", "completion": " x"}'),
        ("table.csv", "\ufefftext,label\r\na,x\r\n".encode()),
        ("C:\\data\\table.csv", b"text,label\na,x\n"),
        ("ünïcode.jsonl", GOOD),
        ("unicode.txt", GOOD.decode().encode("utf-16")),
        ("stars.jsonl", b'{"text": "a", "label": 1}'),
        ("list.json", b'[{"text": "a", "label": "x"},\n {"text": "b", "label": "y"}]'),
        ("semicolons.csv", b"text;label\na, b;x\n"),
        ("any.csv", b"frage,antwort,id\nwas ist das,ein Ding,1\nwas noch,noch eins,2\n"),
    ],
)
def test_every_form_of_examples_is_taken(client: OpenAI, name: str, content: bytes) -> None:
    file = client.files.create(file=(name, content), purpose="fine-tune")
    assert file.filename == name.rpartition("\\")[2]
    client.files.delete(file.id)


POISONED = {
    "bad JSON": ("p.jsonl", GOOD + b"{oops}", "p.jsonl, line 3: is not JSON"),
    "a line of 10 MB": ("p.jsonl", GOOD + b'{"input": "' + b"a" * 10 * 2**20 + b'"}', "p.jsonl, line 3: is longer"),
    "a missing field": ("p.jsonl", GOOD + b'{"input": "a"}', "p.jsonl, line 3: target is missing"),
    "an empty field": ("p.jsonl", GOOD + b'{"input": "", "target": "x"}', "p.jsonl, line 3: input is empty"),
    "a list": ("p.jsonl", b'{"input": "a", "target": [1]}', "p.jsonl, line 1: target must be a string"),
    "a spreadsheet": (
        "p.xlsx",
        b"PK\x03\x04" + b"\0" * 26 + b"xl/workbook.xml",
        "p.xlsx: this is an Excel file; save it as",
    ),
    "one column": ("p.csv", b"text\na\nb\n", "p.csv: there is only one field"),
    "nothing": ("p.jsonl", b"", "p.jsonl: the file is empty"),
    "blank lines": ("p.jsonl", b"\r\n\r\n", "p.jsonl: the file is empty"),
    "a header alone": ("p.csv", b"text,label\r\n", "p.csv: there are no examples"),
    "an open quote": ("p.csv", b'text,label\na,x\n"b,y\n', "p.csv, line 3: is not CSV"),
    "Latin-1": ("p.jsonl", GOOD + '{"input": "é", "target": "x"}'.encode("latin-1"), "p.jsonl, line 3: is not UTF-8"),
    "UTF-16 without a mark": ("p.jsonl", GOOD.decode().encode("utf-16-be"), "p.jsonl, line 1: is not UTF-8"),
    "half a surrogate": ("p.jsonl", b'{"input": "\\ud800", "target": "x"}', "p.jsonl, line 1: input holds half"),
    "deep nesting": ("p.jsonl", GOOD + b"[" * 100_000, "p.jsonl, line 3: is not JSON"),
    "a conversation": (
        "p.jsonl",
        b'{"messages": [{"role": "user", "content": "a"}]}',
        "p.jsonl, line 1: messages must",
    ),
}


@pytest.mark.parametrize("name", POISONED)
def test_a_poisoned_file_is_refused_with_file_and_line_and_changes_nothing(
    client: OpenAI, live: LiveServer, name: str
) -> None:
    filename, content, message = POISONED[name]
    before = stored(live), [file.id for file in client.files.list()]
    with pytest.raises(BadRequestError) as caught:
        client.files.create(file=(filename, content), purpose="fine-tune")
    assert caught.value.message.startswith(f"Error code: 400 - {message}")
    assert (stored(live), [file.id for file in client.files.list()]) == before


def test_crlf_and_a_byte_order_mark_are_no_faults(client: OpenAI) -> None:
    content = b"\xef\xbb\xbf" + GOOD.replace(b"\n", b"\r\n")
    file = client.files.create(file=("crlf.jsonl", content), purpose="fine-tune")
    assert file.status_details == "2 examples, 0 of them duplicates"
    assert client.files.content(file.id).read() == content


@pytest.mark.parametrize(
    ("form", "param"),
    [
        ({"files": {"file": ("a.jsonl", GOOD)}}, "purpose"),
        ({"files": {"file": ("a.jsonl", GOOD)}, "data": {"purpose": "batch"}}, "purpose"),
        ({"files": {"purpose": (None, "fine-tune")}}, "file"),
        ({"files": {"file": (None, "text"), "purpose": (None, "fine-tune")}}, "file"),
        ({"files": {"file": ("a" * 300, GOOD), "purpose": (None, "fine-tune")}}, "file"),
        (
            {"files": {"file": ("a.jsonl", GOOD)}, "data": {"purpose": "fine-tune", "expires_after[seconds]": "3600"}},
            "expires_after[seconds]",
        ),
    ],
)
def test_a_form_that_cannot_be_honoured_is_a_400_that_names_the_field(
    http: httpx.Client, form: dict, param: str
) -> None:
    answer = http.post("/v1/files", **form)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == param


def test_what_is_no_form_is_refused(http: httpx.Client) -> None:
    for headers, body in (
        ({"content-type": "application/json"}, b"{}"),
        ({"content-type": "multipart/form-data"}, b"x"),
        ({"content-type": "multipart/form-data; boundary=x"}, b"--x\r\n\r\n"),
        ({}, b"x"),
    ):
        assert 400 <= http.post("/v1/files", content=body, headers=headers).status_code < 500


def test_the_disk_is_bounded(client: OpenAI, http: httpx.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    limits = http.get("/v1/server").json()["limits"]
    assert limits["file_bytes"] == file_book.MAX_FILE_BYTES
    assert limits["all_files_bytes"] == file_book.MAX_ALL_FILES_BYTES
    monkeypatch.setattr(file_book, "MAX_FILE_BYTES", 100)
    with pytest.raises(BadRequestError, match="larger than 100 bytes"):
        client.files.create(file=("a.jsonl", GOOD * 3), purpose="fine-tune")
    monkeypatch.setattr(file_book, "MAX_ALL_FILES_BYTES", 10)
    with pytest.raises(BadRequestError, match="delete some"):
        client.files.create(file=("a.jsonl", GOOD), purpose="fine-tune")


def test_a_second_server_on_the_same_registry_serves_and_says_why_it_does_not_tune(
    live: LiveServer, backbone: Backbone
) -> None:
    folder = live.registry._store._root
    with run_server(make_settings(folder), backbone) as second:
        answers = [
            httpx.get(f"{second.url}/v1/files"),
            httpx.post(f"{second.url}/v1/fine_tuning/jobs", json={"model": "a", "training_file": "b"}),
        ]
        for answer in answers:
            assert (answer.status_code, answer.json()["error"]["code"]) == (503, "tuning_unavailable")
            assert answer.headers["x-should-retry"] == "false"
            assert "another server" in answer.json()["error"]["message"]
        assert httpx.get(f"{second.url}/v1/server").json()["tuning"]["is_available"] is False
        body = {"model": backbone.name, "prompt": "a", "max_tokens": 1}
        assert httpx.post(f"{second.url}/v1/completions", json=body, timeout=60).status_code == 200


def test_a_read_only_state_folder_leaves_everything_else_in_service(backbone: Backbone, tmp_path: Path) -> None:
    (tmp_path / "state").write_text("a file where a folder should be")
    with run_server(make_settings(tmp_path / "prompts", state=tmp_path / "state"), backbone) as server:
        answer = httpx.get(f"{server.url}/v1/fine_tuning/jobs")
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "tuning_unavailable")
        assert httpx.get(f"{server.url}/v1/models").status_code == 200


def test_uploads_outlive_the_server(backbone: Backbone, tmp_path: Path) -> None:
    settings = make_settings(tmp_path / "prompts", state=tmp_path / "elsewhere")
    with run_server(settings, backbone) as server:
        data = {"files": {"file": ("a.jsonl", GOOD)}, "data": {"purpose": "fine-tune"}}
        file = httpx.post(f"{server.url}/v1/files", **data).json()
    with run_server(settings, backbone) as server:
        assert httpx.get(f"{server.url}/v1/files/{file['id']}").json() == file
        assert json.loads(httpx.get(f"{server.url}/v1/files/{file['id']}/content").text.splitlines()[0])
    assert not (tmp_path / "prompts" / ".state").exists()


class Desk:
    """Checks files only when a test lets it. `num_begun` counts the checks."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.num_begun = 0
        self._may_continue = threading.Event()
        real = file_book._read

        def check(*arguments: object) -> object:
            self.num_begun += 1
            assert self._may_continue.wait(60)
            return real(*arguments)

        monkeypatch.setattr(file_book, "_read", check)

    def open(self) -> None:
        self._may_continue.set()


@pytest.fixture
def desk(monkeypatch: pytest.MonkeyPatch) -> Iterator[Desk]:
    desk = Desk(monkeypatch)
    yield desk
    desk.open()


def upload(live: LiveServer, name: str) -> httpx.Response:
    form = {"files": {"file": (name, GOOD)}, "data": {"purpose": "fine-tune"}}
    return httpx.post(f"{live.url}/v1/files", timeout=60, **form)


def open_upload(live: LiveServer, *, num_bytes: int = 0, body: bytes = b"") -> socket.socket:
    """A connection that has sent the head of an upload, and of its body what is given."""
    host, port = live.url.removeprefix("http://").split(":")
    connection = socket.create_connection((host, int(port)), timeout=20)
    head = "POST /v1/files HTTP/1.1\r\nhost: x\r\ncontent-type: multipart/form-data; boundary=x\r\n"
    connection.sendall(f"{head}content-length: {num_bytes or len(body)}\r\n\r\n".encode() + body)
    return connection


FORM = (
    b'--x\r\ncontent-disposition: form-data; name="purpose"\r\n\r\nfine-tune\r\n'
    b'--x\r\ncontent-disposition: form-data; name="file"; filename="left.jsonl"\r\n\r\n' + GOOD + b"\r\n--x--\r\n"
)


def test_uploads_that_wait_for_their_check_keep_no_other_request_waiting(
    live: LiveServer, http: httpx.Client, desk: Desk
) -> None:
    old = live.tuning.files.add_results("old.csv", b"step\n1\n")
    with ThreadPoolExecutor(8) as pool:
        uploads = [pool.submit(upload, live, f"{n}.jsonl") for n in range(8)]
        wait_until(lambda: live.uploads.num_uploads == MAX_UPLOADS and desk.num_begun == 1)
        wait_until(lambda: sum(each.done() for each in uploads) == 8 - MAX_UPLOADS)
        assert http.get("/v1/tasks", timeout=10).status_code == 200
        assert http.delete(f"/v1/files/{old.id}", timeout=10).status_code == 200
        assert desk.num_begun == 1
        desk.open()
    answers = [each.result() for each in uploads]
    assert sorted(answer.status_code for answer in answers) == [200] * MAX_UPLOADS + [503] * (8 - MAX_UPLOADS)
    for answer in answers:
        if answer.status_code == 503:
            assert answer.json()["error"]["code"] == "queue_full"
            assert int(answer.headers["retry-after"]) >= 1
        else:
            http.delete(f"/v1/files/{answer.json()['id']}")
    assert http.delete(f"/v1/files/{upload(live, 'later.jsonl').json()['id']}").status_code == 200


def test_an_upload_too_many_is_refused_before_its_body_comes(live: LiveServer, http: httpx.Client) -> None:
    assert http.get("/v1/server").json()["limits"]["file_uploads"] == MAX_UPLOADS
    with ExitStack() as stack:
        for _ in range(MAX_UPLOADS):
            stack.enter_context(open_upload(live, num_bytes=100))
        wait_until(lambda: live.uploads.num_uploads == MAX_UPLOADS)
        with open_upload(live, num_bytes=100 * 2**20) as connection:
            assert connection.recv(65536).startswith(b"HTTP/1.1 503")
    wait_until(lambda: live.uploads.num_uploads == 0)


def test_an_upload_whose_client_left_is_held_as_long_as_it_is_read_and_one_that_waited_is_dropped_at_once(
    live: LiveServer, http: httpx.Client, desk: Desk
) -> None:
    before = len(http.get("/v1/files").json()["data"])
    with open_upload(live, body=FORM):
        wait_until(lambda: desk.num_begun == 1)
        with open_upload(live, body=FORM):
            wait_until(lambda: live.uploads.num_uploads == 2)
        wait_until(lambda: live.uploads.num_uploads == 1)
    time.sleep(0.3)
    assert live.uploads.num_uploads == 1
    desk.open()
    wait_until(lambda: live.uploads.num_uploads == 0)
    assert desk.num_begun == 1
    kept = http.get("/v1/files").json()["data"]
    assert len(kept) == before + 1
    http.delete(f"/v1/files/{kept[0]['id']}")
