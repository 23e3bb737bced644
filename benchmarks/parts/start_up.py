"""W7: from a command to the first answer, and the memory that takes."""

from __future__ import annotations

import statistics
from collections import defaultdict

from benchmarks.peers.http import HttpPeer
from benchmarks.peers.roster import start_roster
from benchmarks.report import Part, Say
from benchmarks.setting import Bench


def measure_start_up(bench: Bench, say: Say) -> Part:
    """Peers are processes that load the model and the tasks; they serve no HTTP."""
    column_to_values = defaultdict(list)
    one = bench.workload.every(len(bench.workload.requests))
    for number in range(bench.setting.repetitions):
        say(f"start {number + 1} of {bench.setting.repetitions}")
        with bench.server(bench.workload) as server:
            column_to_values["ready, s"].append(server.ready_s)
            column_to_values["first answer, s"].append(server.ready_s + HttpPeer(server).streams(one).first_token_s[0])
            column_to_values["resident MiB"].append(server.resident_bytes / 2**20)
    softswap = {column: statistics.median(values) for column, values in column_to_values.items()}
    with start_roster(bench, bench.workload, say) as roster:
        loaded = {
            f"{name}, model and tasks loaded": {"ready, s": peer.load_s, "resident MiB": peer.resident_bytes / 2**20}
            for name, peer in roster.name_to_peer.items()
        }
    parameters = sum(parameter.numel() for parameter in bench.backbone.model.parameters())
    weights = parameters * bench.backbone.dtype.itemsize / 2**20
    return Part(
        name="start-up",
        question="how long until the first answer, and how much memory?",
        setting={"weights_mib": round(weights), "tasks": len(bench.workload.prompts), **roster.versions},
        name_to_figures={"softswap serve": softswap, **loaded},
        name_to_reason=roster.name_to_reason,
    )
