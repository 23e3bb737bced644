"""JSON lines between the benchmark and a peer in an environment of its own. Needs the standard library only.

The benchmark writes `["load", {...}]` once and `["run", {...}]` for each round; the peer answers every line with one
object, which has `cannot` with a reason if it is unable to. What the peer's libraries print goes to stderr.
"""

from __future__ import annotations

import json
import os
import sys
import time
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
        max_num_seqs: requests computed at a time.
        num_positions: the longest sequence, virtual tokens included.
    """

    model: str
    prompts: str
    dtype: str
    max_num_seqs: int
    num_positions: int


@dataclass(frozen=True)
class Run:
    """Requests that are all there at once.

    Attributes:
        tasks: index into the prompts, for each request.
        texts: token ids of each request.
        labels: if there are any, only these ids may be generated.
    """

    tasks: list[int]
    texts: list[list[int]]
    num_new_tokens: int
    labels: list[int]


@dataclass(frozen=True)
class Ran:
    """Attributes:
    tokens: generated ids of each request.
    first_token_s: seconds to each request's first token.
    """

    tokens: list[list[int]]
    first_token_s: list[float]


def serve(peer: Any) -> None:
    """Answer until the input ends. Args: peer: has a `version`, `load(Load)` and `run(Run)`, which gives a `Ran`."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # libraries print what they like
    for line in sys.stdin:
        try:
            answer = _answer(peer, *json.loads(line))
        except CannotError as reason:
            answer = {"cannot": str(reason)}
        except Exception as error:
            answer = {"cannot": f"{type(error).__name__}: {error}"}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def _answer(peer: Any, verb: str, fields: dict[str, Any]) -> dict[str, Any]:
    if verb == "load":
        peer.load(Load(**fields))
        return {"version": peer.version}
    before_s = time.process_time()
    ran = peer.run(Run(**fields))
    return asdict(ran) | {"cpu_s": time.process_time() - before_s}
