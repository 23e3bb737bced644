"""Load on a server over HTTP: a workload, requests at random moments, or as many as there are clients.

The client speaks just enough HTTP/1.1 to stream a completion, so that it takes as little as it can of the cores that
the server needs.
"""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from typing import Any
from urllib.request import Request as HttpRequest
from urllib.request import urlopen

from benchmarks.server import RunningServer
from benchmarks.workloads import Outcome, Request, Workload

HEAD_END = b"\r\n\r\n"
EVENT = b"\ndata: "
BODY_END = b"\r\n0\r\n\r\n"


@dataclass(frozen=True)
class Answer:
    """One streamed answer, in seconds of time.perf_counter.

    Attributes:
        due_s: when the request should have left; waiting for the client counts as the server's delay.
        token_s: arrival of each token.
        ended_s: arrival of the end.
    """

    due_s: float
    token_s: tuple[float, ...]
    ended_s: float

    @property
    def latency_s(self) -> float:
        return self.ended_s - self.due_s

    @property
    def first_token_s(self) -> float:
        return self.token_s[0] - self.due_s

    @property
    def gaps_s(self) -> list[float]:
        """Between one token and the next."""
        return [later - earlier for earlier, later in pairwise(self.token_s)]


async def complete(host: str, port: int, body: bytes, due_s: float) -> Answer:
    """A streamed completion, over a connection of its own.

    Raises: OSError. AssertionError: a status other than 200, or less than a whole answer.
    """
    _, connection = await asyncio.get_running_loop().create_connection(_Connection, host, port)
    try:
        *token_s, ended_s = await connection.ask(
            b"POST /v1/completions HTTP/1.1\r\nHost: benchmark\r\nContent-Type: application/json\r\n"
            + b"Content-Length: %d\r\n\r\n" % len(body)
            + body
        )
    finally:
        await connection.close()
    return Answer(due_s, tuple(token_s), ended_s)


class _Connection(asyncio.Protocol):
    """Counts an answer's events as they arrive, without waking its reader before the last one or parsing any."""

    def __init__(self) -> None:
        self._answer: asyncio.Future[list[float]] | None = None
        self._closed = asyncio.get_running_loop().create_future()

    async def ask(self, request: bytes) -> list[float]:
        """The arrival of each event, the last of which says that the answer is complete."""
        self._answer = asyncio.get_running_loop().create_future()
        self._head, self._rest, self._event_s = b"", b"", list[float]()
        self._transport.write(request)
        return await self._answer

    async def close(self) -> None:
        self._transport.close()
        await self._closed

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.WriteTransport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        now_s = time.perf_counter()
        if not self._head.endswith(HEAD_END):
            head, end, data = (self._head + data).partition(HEAD_END)
            self._head = head + end
            if end and not head.startswith(b"HTTP/1.1 200"):
                self._fail(f"{head!r}")
        text = self._rest + data
        self._event_s += [now_s] * text.count(EVENT)
        self._rest = text[1 - len(EVENT) :]
        if text.endswith(BODY_END) and self._answer is not None and not self._answer.done():
            self._answer.set_result(self._event_s)

    def connection_lost(self, exc: Exception | None) -> None:
        self._fail("the server closed the connection")
        self._closed.set_result(None)

    def _fail(self, why: str) -> None:
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(AssertionError(why))


class HttpPeer:
    """A running server, asked over loopback; the client's own work counts too, as it does for a user on one machine."""

    def __init__(self, server: RunningServer) -> None:
        self._server = server

    def streams(self, workload: Workload) -> Outcome:
        """Every request is a streamed completion of its own, all at once."""
        before_s, began_s = self._server.cpu_s, time.perf_counter()
        answers = asyncio.run(self._stream_all([_completion(request, workload) for request in workload.requests]))
        return Outcome(
            first_token_s=tuple(answer.token_s[0] - began_s for answer in answers),
            num_tokens=tuple(len(answer.token_s) for answer in answers),
            elsewhere_s=self._server.cpu_s - before_s,
        )

    def completions(self, workload: Workload) -> list[str]:
        """The texts of completions that are asked for at once."""
        bodies = [_completion(request, workload, stream=False) for request in workload.requests]
        with ThreadPoolExecutor(len(bodies)) as clients:
            answers = clients.map(lambda body: self._post("/v1/completions", body), bodies)
            return [answer["choices"][0]["text"] for answer in answers]

    def one_call(self, workload: Workload, texts: Sequence[str]) -> Outcome:
        """All requests as the items of one `POST /v1/run`. Args: texts: of the requests, in their order."""
        pairs = zip(workload.requests, texts, strict=True)
        items = [{"task": f"task{request.task}", "input": text} for request, text in pairs]
        before_s, began_s = self._server.cpu_s, time.perf_counter()
        results = self._post("/v1/run", json.dumps(items).encode())["results"]
        took_s = time.perf_counter() - began_s
        chosen = tuple((workload.labels[workload.label_texts.index(result["label"])],) for result in results)
        return Outcome.of(chosen, (took_s,) * len(chosen), elsewhere_s=self._server.cpu_s - before_s)

    async def _stream_all(self, bodies: Sequence[bytes]) -> list[Answer]:
        host, port, now_s = self._server.host, self._server.port, time.perf_counter()
        return await asyncio.gather(*(complete(host, port, body, now_s) for body in bodies))

    def _post(self, path: str, body: bytes) -> Any:
        with urlopen(HttpRequest(self._server.url + path, body, {"content-type": "application/json"})) as answer:
            return json.load(answer)


def _completion(request: Request, workload: Workload, *, stream: bool = True) -> bytes:
    """A greedy completion of the workload's length; the text goes as ids."""
    return completion_body(f"task{request.task}", list(request.token_ids), workload.num_new_tokens, stream=stream)


def completion_body(model: str, prompt: object, num_new_tokens: int, **more: object) -> bytes:
    """Greedy, end-of-sequence ignored."""
    fields = {"model": model, "prompt": prompt, "max_tokens": num_new_tokens, "temperature": 0, "ignore_eos": True}
    return json.dumps(fields | more).encode()


async def arrive_at_random(
    address: tuple[str, int], bodies: Sequence[bytes], rate: float, duration_s: float, seed: int
) -> list[Answer]:
    """Requests at exponential distances (a Poisson process), whether or not earlier ones are answered.

    Args: rate: requests per second.
    """
    start_s = time.perf_counter()
    asked = []
    for body, offset_s in zip(_endless(bodies, seed), arrivals(rate, duration_s, seed), strict=False):
        await asyncio.sleep(start_s + offset_s - time.perf_counter())
        asked.append(asyncio.create_task(complete(*address, body, start_s + offset_s)))
    return await asyncio.gather(*asked)


async def keep_busy(
    address: tuple[str, int], bodies: Sequence[bytes], num_clients: int, duration_s: float, seed: int
) -> list[Answer]:
    """Clients, each of which asks again as soon as it is answered."""
    source, end_s = _endless(bodies, seed), time.perf_counter() + duration_s
    answers: list[Answer] = []

    async def ask() -> None:
        while (now_s := time.perf_counter()) < end_s:
            answers.append(await complete(*address, next(source), now_s))

    await asyncio.gather(*(ask() for _ in range(num_clients)))
    return answers


def arrivals(rate: float, duration_s: float, seed: int) -> Iterator[float]:
    generator, offset_s = random.Random(seed), 0.0
    while (offset_s := offset_s + generator.expovariate(rate)) < duration_s:
        yield offset_s


def _endless(bodies: Sequence[bytes], seed: int) -> Iterator[bytes]:
    generator = random.Random(seed)
    while True:
        yield from generator.sample(bodies, len(bodies))
