"""A peer in another process, spoken to in the lines of `benchmarks.peers.protocol`."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO, Any

import numpy as np
import torch

from benchmarks.peers.outcome import Outcome
from benchmarks.peers.protocol import CannotError, Load, Run
from benchmarks.workloads import Workload

ROOT = Path(__file__).parents[2]


class RemotePeer:
    """Stopped (SIGSTOP) whenever it is not asked: what its threads do while they wait would slow the others.

    Args: process: the leader of a process group of its own.

    Attributes:
    load_s: from the process's start until it could take requests.
    resident_bytes: then.
    version: of what is measured.
    """

    def __init__(self, process: subprocess.Popen[str], wanted: Load, started_s: float) -> None:
        self._process = process
        loaded = self._ask("load", asdict(wanted))
        self.load_s = time.perf_counter() - started_s
        self.resident_bytes = int(loaded["resident_bytes"])
        self.version = str(loaded["version"])

    def run(self, workload: Workload) -> Outcome:
        """Raises CannotError."""
        tasks = [request.task for request in workload.requests]
        assert None not in tasks, "peers serve tasks"
        wanted = Run(
            tasks=[int(task or 0) for task in tasks],
            texts=[list(request.token_ids) for request in workload.requests],
            num_new_tokens=workload.num_new_tokens,
            labels=list(workload.labels),
        )
        ran = self._ask("run", asdict(wanted))
        tokens = tuple(tuple(row) for row in ran["tokens"])
        return Outcome.of(tokens, tuple(ran["first_token_s"]), elsewhere_s=ran["cpu_s"])

    def _ask(self, verb: str, fields: dict[str, Any]) -> dict[str, Any]:
        stdin, stdout = _pipes(self._process)
        _signal(self._process, signal.SIGCONT)
        try:
            stdin.write(json.dumps([verb, fields]) + "\n")
            stdin.flush()
            line = stdout.readline()
        except BrokenPipeError:
            line = ""
        finally:
            _signal(self._process, signal.SIGSTOP)
        if not line:
            raise CannotError("the peer's process ended; its log says why")
        answer: dict[str, Any] = json.loads(line)
        if "cannot" in answer:
            raise CannotError(answer["cannot"])
        return answer


@contextmanager
def start_peer(
    python: Path,
    module: str,
    way: str,
    *,
    model: Path,
    workload: Workload,
    dtype: str,
    max_num_seqs: int,
    variables: Mapping[str, str],
    log: Path,
) -> Iterator[RemotePeer]:
    """Args:
        python: the interpreter of the peer's environment.
        module: such as `benchmarks.peers.vllm_peer`.
        variables: what its environment has beside ours.
        log: what the peer prints.

    Raises: CannotError: it cannot be loaded.
    """
    with TemporaryDirectory() as folder, log.open("w") as stream:
        prompts = Path(folder) / "prompts.npy"
        rows = torch.stack([prompt.rows for prompt in workload.prompts if prompt.rows is not None])
        np.save(prompts, rows.float().numpy())
        longest = max(len(request.token_ids) for request in workload.requests)
        started_s = time.perf_counter()
        process = subprocess.Popen(
            [python, "-m", module],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stream,
            text=True,
            cwd=ROOT,
            start_new_session=True,
            env={**os.environ, **variables, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": str(torch.get_num_threads())},
        )
        wanted = Load(
            model=str(model),
            prompts=str(prompts),
            dtype=dtype,
            way=way,
            max_num_seqs=max_num_seqs,
            num_positions=rows.shape[1] + longest + workload.num_new_tokens,
            scratch=folder,
        )
        try:
            yield RemotePeer(process, wanted, started_s)
        finally:
            end_peer(process)


def end_peer(process: subprocess.Popen[str]) -> None:
    """Let a peer end by itself; kill it if it does not."""
    stdin, stdout = _pipes(process)
    stdin.close()
    _signal(process, signal.SIGCONT)
    try:
        process.wait(timeout=20)
    except subprocess.TimeoutExpired:
        _signal(process, signal.SIGKILL)
        process.wait()
    stdout.close()


def _signal(process: subprocess.Popen[str], number: signal.Signals) -> None:
    """To all processes of its group."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, number)


def _pipes(process: subprocess.Popen[str]) -> tuple[IO[str], IO[str]]:
    assert process.stdin is not None
    assert process.stdout is not None
    return process.stdin, process.stdout
