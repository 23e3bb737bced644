"""Load on a server, from a process of its own: requests at random moments, or as many as there are clients.

The client speaks just enough HTTP/1.1 to stream a completion over a connection that is kept, so that it takes as little
as can be of the cores that the server needs.
"""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

DONE = b"data: [DONE]"
LAST_CHUNK = b"0\r\n\r\n"
MAX_IDLE_S = 2.0
"""After that a connection is not used again: servers close what nobody uses."""


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
        """Between tokens that follow one another."""
        return [later - earlier for earlier, later in pairwise(self.token_s)]


class Client:
    """Streams completions over connections that it keeps."""

    def __init__(self, host: str, port: int) -> None:
        self._host, self._port = host, port
        self._idle: list[tuple[float, asyncio.StreamReader, asyncio.StreamWriter]] = []

    async def complete(self, body: bytes, due_s: float) -> Answer:
        """Raises OSError, and AssertionError where the server does not answer with 200."""
        reader, writer = await self._connect()
        writer.write(
            b"POST /v1/completions HTTP/1.1\r\nHost: benchmark\r\nContent-Type: application/json\r\n"
            + b"Content-Length: %d\r\n\r\n" % len(body)
            + body
        )
        head = await reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200"), head
        token_s = []
        while not (line := await reader.readline()).startswith(DONE):
            assert line, "the server closed the connection"
            if line.startswith(b"data: "):
                token_s.append(time.perf_counter())
        ended_s = time.perf_counter()
        await reader.readuntil(LAST_CHUNK)
        self._idle.append((ended_s, reader, writer))
        return Answer(due_s, tuple(token_s), ended_s)

    async def close(self) -> None:
        for _, _, writer in self._idle:
            writer.close()
            with suppress(OSError):
                await writer.wait_closed()
        self._idle.clear()

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        while self._idle:
            used_s, reader, writer = self._idle.pop()
            if time.perf_counter() - used_s < MAX_IDLE_S:
                return reader, writer
            writer.close()
        return await asyncio.open_connection(self._host, self._port)


async def arrive_at_random(
    client: Client, bodies: Sequence[bytes], rate: float, duration_s: float, seed: int
) -> list[Answer]:
    """Requests whose distances are exponential (a Poisson process), whether or not earlier ones are answered.

    Args: rate: requests per second.
    """
    start_s = time.perf_counter()
    asked = []
    for body, offset_s in zip(_endless(bodies, seed), _arrivals(rate, duration_s, seed), strict=False):
        await asyncio.sleep(start_s + offset_s - time.perf_counter())
        asked.append(asyncio.create_task(client.complete(body, start_s + offset_s)))
    return await asyncio.gather(*asked)


async def keep_busy(
    client: Client, bodies: Sequence[bytes], num_clients: int, duration_s: float, seed: int
) -> list[Answer]:
    """So many clients, each of which asks again as soon as it is answered."""
    source = _endless(bodies, seed)
    end_s = time.perf_counter() + duration_s
    answers: list[Answer] = []

    async def ask() -> None:
        while (now_s := time.perf_counter()) < end_s:
            answers.append(await client.complete(next(source), now_s))

    await asyncio.gather(*(ask() for _ in range(num_clients)))
    return answers


@dataclass(frozen=True)
class Quantiles:
    """Milliseconds."""

    p50: float
    p99: float

    @classmethod
    def of(cls, seconds: Sequence[float]) -> Quantiles:
        p50, p99 = np.quantile(seconds, [0.5, 0.99])
        return cls(float(1000 * p50), float(1000 * p99))


def completion_bodies(models: Sequence[str], texts: Sequence[str], num_new_tokens: int) -> list[bytes]:
    """Greedy streamed completions; models take turns."""
    return [
        json.dumps(
            {
                "model": models[i % len(models)],
                "prompt": text,
                "max_tokens": num_new_tokens,
                "temperature": 0,
                "ignore_eos": True,
                "stream": True,
            }
        ).encode()
        for i, text in enumerate(texts)
    ]


def _arrivals(rate: float, duration_s: float, seed: int) -> Iterator[float]:
    generator, offset_s = random.Random(seed), 0.0
    while (offset_s := offset_s + generator.expovariate(rate)) < duration_s:
        yield offset_s


def _endless(bodies: Sequence[bytes], seed: int) -> Iterator[bytes]:
    generator = random.Random(seed)
    while True:
        yield from generator.sample(bodies, len(bodies))
