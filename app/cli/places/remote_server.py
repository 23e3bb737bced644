"""RemoteServer: a running softswap, over HTTP, and its tasks as FolderRegistry has those of a folder."""

from __future__ import annotations

import json
import math
import re
import time
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlencode

from app.cli.places.exported import made_for, require_made_for
from app.errors import InvalidInput, SoftswapError, shorten
from app.measure.dataset import Example

if TYPE_CHECKING:
    import httpx

    from app.measure.promote import GateRequest
    from app.registry.aliases import AliasTarget

TIMEOUT_S = 600.0
TENSOR_FILE = "adapter_model.safetensors"


class Unreachable(SoftswapError):
    """The server does not answer now, but may in a moment."""


class RemoteServer:
    """Args:
        url: where the server listens, with or without `/v1` at its end.
        retry_s: pause before `follow` connects again.
        max_away_s: how long `follow` waits for a server that was there before.

    Every method raises SoftswapError: the server refused, in its own words, or cannot be reached.
    """

    def __init__(self, url: str, api_key: str | None, *, retry_s: float = 1.0, max_away_s: float = 120.0) -> None:
        import httpx

        try:
            address = httpx.URL(url)
        except httpx.InvalidURL:
            address = httpx.URL()
        if address.scheme not in {"http", "https"} or not address.host:
            raise InvalidInput("--url must begin with http:// or https://", param="url")
        self._url = url.rstrip("/").removesuffix("/v1")
        self._retry_s = retry_s
        self._max_away_s = max_away_s
        self._client = httpx.Client(
            base_url=self._url,
            headers={"authorization": f"Bearer {api_key}"} if api_key else {},
            timeout=TIMEOUT_S,
            limits=httpx.Limits(max_keepalive_connections=0),  # so that nothing is left to close
            follow_redirects=True,
        )

    def call(self, method: str, path: str, body: Any = None) -> Any:
        """One request with JSON in and out."""
        return _read_json(self.fetch(method, path, json=body))

    def fetch(self, method: str, path: str, **request: Any) -> bytes:
        """One request with anything in and out. Args: request: what httpx takes, such as `json`."""
        with self._open(method, path, **request) as answer:
            return answer.read()

    def pages(self, path: str) -> list[dict[str, Any]]:
        """The items of a list, from all of its pages."""
        found: list[dict[str, Any]] = []
        has_more = True
        while has_more:
            after = f"&after={found[-1]['id']}" if found else ""
            page = self.call("GET", f"{path}?limit=100{after}")
            found += page["data"]
            has_more = page["has_more"]
        return found

    def stream(self, path: str, body: Any) -> Iterator[dict[str, Any]]:
        """The events of a streamed answer."""
        with self._open("POST", path, json=body) as answer:
            yield from _events(answer)

    def follow(self, path: str) -> Iterator[dict[str, Any]]:
        """The events of a stream with ids, each exactly once, even if the connection breaks in between."""
        last_id, seen_s = "", -math.inf
        while True:
            try:
                for event in self._events_after(path, last_id):
                    last_id, seen_s = event["id"], time.monotonic()
                    yield event
            except Unreachable:
                if time.monotonic() - seen_s > self._max_away_s:
                    raise
                time.sleep(self._retry_s)
            else:
                return

    def _events_after(self, path: str, last_id: str) -> Iterator[dict[str, Any]]:
        """Raises Unreachable: the stream ended without saying so."""
        with self._open("GET", path, headers={"last-event-id": last_id} if last_id else {}) as answer:
            is_done = yield from _events(answer)
        if not is_done:
            raise Unreachable("the server ended the stream")

    def tasks(self) -> list[dict[str, Any]]:
        return self.pages("/v1/tasks")

    def show(self, task: str, selector: str) -> dict[str, Any]:
        if selector:
            return dict(self.call("GET", task_path(task, "versions", selector)))
        return {**self.call("GET", task_path(task)), "versions": self._versions(task)[::-1]}

    def _versions(self, task: str) -> list[dict[str, Any]]:
        """All of them, newest first."""
        found: list[dict[str, Any]] = []
        has_more = True
        while has_more:
            before = f"&before={found[-1]['number']}" if found else ""
            page = self.call("GET", task_path(task, "versions") + f"?limit=1000{before}")
            found += page["data"]
            has_more = page["has_more"]
        return found

    def show_tokens(self, name: str, plot: Path | None, examples: Sequence[Example], **query: Any) -> dict[str, Any]:
        """The server draws the plot too."""
        given = {key: value for key, value in query.items() if value is not None}
        body = {"examples": example_items(examples)} if examples else None
        method = "POST" if examples else "GET"

        def path(**more: str) -> str:
            return f"{task_path(name, 'tokens')}?{urlencode({**given, **more})}"

        with naming_rows(examples):
            shown: dict[str, Any] = self.call(method, path(), body)
        if plot is not None:
            plot.write_bytes(self.fetch(method, path(format="svg"), json=body))
        return shown

    def add(self, task: str, path: Path | None, text: str | None, given: dict[str, Any]) -> dict[str, Any]:
        route = task_path(task, "versions")
        if path is None:
            return dict(self.call("POST", route, {"text": text, **given}))
        file = path / TENSOR_FILE if path.is_dir() else path
        if not file.is_file():
            raise InvalidInput(f"there is no {file}", param="path")
        if made_for(path) is not None:
            backbone = self.call("GET", "/v1/server")["backbone"]
            require_made_for(path, backbone["fingerprint"], backbone["name"])
        form = {"data": {"metadata": json.dumps(given)}, "files": {"file": ("prompt.safetensors", file.read_bytes())}}
        return dict(_read_json(self.fetch("POST", route, **form)))

    def set_alias(self, task: str, alias: str, target: AliasTarget, *, gate: GateRequest | None, force: bool) -> None:
        body: dict[str, Any] = {"version": target, "force": force}
        if isinstance(target, dict):
            body = {"weights": {str(number): share for number, share in target.items()}, "force": force}
        if gate is not None:
            examples = example_items(gate.examples)
            body["gate"] = {"examples": examples, "metric": gate.metric, "tolerance": gate.tolerance}
        with naming_rows(() if gate is None else gate.examples):
            self.call("PUT", task_path(task, "aliases", alias), body)

    def remove_gate(self, task: str, alias: str) -> None:
        self.call("DELETE", task_path(task, "aliases", alias, "gate"))

    def remove(self, task: str, selector: str) -> None:
        kind = "versions" if selector.isdigit() else "aliases"
        self.call("DELETE", task_path(task, kind, selector) if selector else task_path(task))

    @contextmanager
    def _open(self, method: str, path: str, **request: Any) -> Iterator[httpx.Response]:
        import httpx

        try:
            with self._client.stream(method, path, **request) as answer:
                if not answer.is_success:
                    answer.read()
                    is_away = answer.headers.get("x-should-retry") == "true"
                    message, param = _read_error(answer)
                    raise (Unreachable if is_away else SoftswapError)(message, param=param)
                yield answer
        except httpx.HTTPError as error:
            raise Unreachable(f"no answer from {self._url} ({error}); is the server running?") from None


def task_path(task: str, *rest: str) -> str:
    return "/".join(["/v1/tasks", *(quote(part, safe="") for part in (task, *rest))])


@contextmanager
def naming_rows(examples: Sequence[Example]) -> Iterator[None]:
    """What a server refuses about one of these examples is said with its file, line and text."""
    try:
        yield
    except SoftswapError as error:
        refused = re.fullmatch(r"(?:\w+\.)?examples\.(\d+)\.(input|target)", error.param or "")
        if refused is None or not examples[int(refused[1])].place:
            raise
        example, field = examples[int(refused[1])], refused[2]
        message = f"{example.place}: {error.message}"
        raise InvalidInput(message, param=field, quote=shorten(getattr(example, field))) from None


def example_items(examples: Iterable[Example]) -> list[dict[str, str]]:
    """Examples as request bodies have them."""
    return [{"input": example.input, "target": example.target} for example in examples]


def _events(answer: httpx.Response) -> Generator[dict[str, Any], None, bool]:
    """The events of a stream; returns whether the server said that it is complete."""
    for line in _lines(answer):
        if line.startswith(b"data: {"):
            yield _read_event(line)
        elif line.startswith(b"data: [DONE]"):
            return True
    return False


def _lines(answer: httpx.Response) -> Iterator[bytes]:
    """Split at line feeds only: httpx's own iter_lines would also split at characters that JSON may hold, as U+2028."""
    rest = b""
    for piece in answer.iter_bytes():
        *lines, rest = (rest + piece).split(b"\n")
        yield from lines
    yield rest


def _read_event(line: bytes) -> dict[str, Any]:
    event: dict[str, Any] = json.loads(line.removeprefix(b"data: "))
    if "error" in event:
        is_away = event["error"].get("code") == "draining"
        raise (Unreachable if is_away else SoftswapError)(event["error"]["message"])
    return event


def _read_json(content: bytes) -> Any:
    try:
        return json.loads(content)
    except ValueError:
        raise SoftswapError("the answer is not JSON; is this the address of a softswap server?") from None


def _read_error(answer: httpx.Response) -> tuple[str, str | None]:
    """The message, and the field that it is about."""
    try:
        error = answer.json()["error"]
        return str(error["message"]), error.get("param")
    except (ValueError, KeyError, TypeError, AttributeError):
        return f"the server answered with status {answer.status_code}", None
