"""A peer in another process computes while it is asked, and at no other time."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks.peers.protocol import CannotError, Load
from benchmarks.peers.remote import RemotePeer, end_peer
from benchmarks.workloads import Request, Workload

PEER = """
import json, sys
for line in sys.stdin:
    verb, fields = json.loads(line)
    if verb == "load":
        answer = {"version": "1"}
    elif fields["num_new_tokens"] == 2:
        answer = {"tokens": [[5, 6]], "first_token_s": [0.1], "cpu_s": 0.2}
    else:
        answer = {"cannot": "too many"}
    print(json.dumps(answer), flush=True)
"""


def is_stopped(process: subprocess.Popen[str]) -> bool:
    """Or will be in a moment."""
    for _ in range(500):
        if Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[0] == "T":
            return True
        time.sleep(0.01)
    return False


def workload(num_new_tokens: int) -> Workload:
    return Workload(requests=(Request(task=0, token_ids=(1, 2)),), prompts=(), num_new_tokens=num_new_tokens)


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="reads /proc")
def test_a_peer_is_stopped_whenever_it_is_not_asked_and_ends_by_itself() -> None:
    pipe = subprocess.PIPE
    process = subprocess.Popen([sys.executable, "-c", PEER], stdin=pipe, stdout=pipe, text=True, start_new_session=True)
    load = Load(model="", prompts="", dtype="float32", max_num_seqs=1, num_positions=8)
    peer = RemotePeer(process, load)
    assert peer.version == "1"
    assert is_stopped(process)
    assert peer.run(workload(2)).tokens == ((5, 6),)
    assert is_stopped(process)
    with pytest.raises(CannotError, match="too many"):
        peer.run(workload(3))
    assert is_stopped(process)
    end_peer(process)
    assert process.returncode == 0
