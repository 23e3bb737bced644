"""JSON lines between the benchmark and a peer in an environment of its own. Needs the standard library only.

The benchmark writes `["load", {...}]` once and `["run", {...}]` for each round; the peer answers every line with one
object, which holds `cannot` with a reason where it is unable to. What the peer's libraries print goes to stderr.
"""

from __future__ import annotations

import json
import os
import sys
import time
from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass
from typing import Any


class CannotError(Exception):
    """The peer is unable to do what it was asked; the message is a reason that a report can show."""


@dataclass(frozen=True)
class Load:
    """What a peer prepares for.

    Attributes:
        model: folder in Hugging Face layout.
        prompts: a .npy file of float32, (tasks, virtual tokens, hidden size).
        dtype: "float32" or "bfloat16".
        way: which of the peer's ways of serving tasks.
        max_num_seqs: requests computed at a time.
        num_positions: the longest sequence, virtual tokens included.
        scratch: folder for files the peer makes.
    """

    model: str
    prompts: str
    dtype: str
    way: str
    max_num_seqs: int
    num_positions: int
    scratch: str


@dataclass(frozen=True)
class Run:
    """Requests that are all there at once.

    Attributes:
        tasks: index into the prompts, for each request.
        texts: token ids of each request.
        labels: where there are any, only these ids may be generated.
    """

    tasks: list[int]
    texts: list[list[int]]
    num_new_tokens: int
    labels: list[int]


@dataclass(frozen=True)
class Ran:
    """Attributes:
    tokens: generated ids of each request.
    first_token_s: seconds to each request's first token; empty where the peer does not tell.
    """

    tokens: list[list[int]]
    first_token_s: list[float]
    wall_s: float = 0.0
    cpu_s: float = 0.0


class Peer(ABC):
    """What runs in the other environment. Attributes: version: of what is measured."""

    version: str

    @abstractmethod
    def load(self, wanted: Load) -> None: ...

    @abstractmethod
    def run(self, wanted: Run) -> Ran: ...


def serve(peer: Peer) -> None:
    """Answer until the input ends."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # libraries print what they like
    for line in sys.stdin:
        verb, fields = json.loads(line)
        try:
            answer = _load(peer, Load(**fields)) if verb == "load" else _run(peer, Run(**fields))
        except CannotError as reason:
            answer = {"cannot": str(reason)}
        except Exception as error:
            answer = {"cannot": f"{type(error).__name__}: {error}"}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def resident_bytes() -> int:
    """Of this process."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def _load(peer: Peer, wanted: Load) -> dict[str, Any]:
    peer.load(wanted)
    return {"resident_bytes": resident_bytes(), "version": peer.version}


def _run(peer: Peer, wanted: Run) -> dict[str, Any]:
    began_s, cpu_s = time.perf_counter(), time.process_time()
    ran = peer.run(wanted)
    times = {"wall_s": time.perf_counter() - began_s, "cpu_s": time.process_time() - cpu_s}
    return asdict(ran) | times
