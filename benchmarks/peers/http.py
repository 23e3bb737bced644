"""softswap over HTTP: the same requests as streams, or as one call of many decisions."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Sequence
from urllib.request import Request as HttpRequest
from urllib.request import urlopen

from benchmarks.load import Answer, complete
from benchmarks.server import RunningServer
from benchmarks.workloads import Outcome, Request, Workload


class HttpPeer:
    """A running server, asked over loopback; the client's own work counts too, as it does for a user on one machine."""

    def __init__(self, server: RunningServer) -> None:
        self._server = server

    def streams(self, workload: Workload) -> Outcome:
        """Every request is a streamed completion of its own, all at once."""
        before_s, began_s = self._server.cpu_s, time.perf_counter()
        answers = asyncio.run(self._stream_all([completion_body(request, workload) for request in workload.requests]))
        return Outcome(
            first_token_s=tuple(answer.token_s[0] - began_s for answer in answers),
            num_tokens=tuple(len(answer.token_s) for answer in answers),
            elsewhere_s=self._server.cpu_s - before_s,
        )

    def one_call(self, workload: Workload, texts: Sequence[str]) -> Outcome:
        """All requests as the items of one `POST /v1/run`. Args: texts: of the requests, in their order."""
        items = [
            {"task": f"task{request.task}", "input": text}
            for request, text in zip(workload.requests, texts, strict=True)
        ]
        before_s, began_s = self._server.cpu_s, time.perf_counter()
        body = json.dumps(items).encode()
        headers = {"content-type": "application/json"}
        with urlopen(HttpRequest(f"{self._server.url}/v1/run", body, headers)) as answer:
            results = json.load(answer)["results"]
        took_s = time.perf_counter() - began_s
        chosen = tuple((workload.labels[workload.label_texts.index(result["label"])],) for result in results)
        return Outcome.of(chosen, (took_s,) * len(chosen), elsewhere_s=self._server.cpu_s - before_s)

    async def _stream_all(self, bodies: Sequence[bytes]) -> list[Answer]:
        host, port, now_s = self._server.host, self._server.port, time.perf_counter()
        return await asyncio.gather(*(complete(host, port, body, now_s) for body in bodies))


def completion_body(request: Request, workload: Workload, *, stream: bool = True) -> bytes:
    """A greedy completion of the workload's length; the text goes as ids."""
    fields = {
        "model": f"task{request.task}",
        "prompt": list(request.token_ids),
        "max_tokens": workload.num_new_tokens,
        "temperature": 0,
        "ignore_eos": True,
        "stream": stream,
    }
    return json.dumps(fields).encode()
