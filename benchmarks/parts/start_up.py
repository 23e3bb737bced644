"""Start-up: from a command to the first answer, and the memory that takes."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Iterator

from benchmarks.part import Part, Say
from benchmarks.peers.http import HttpPeer
from benchmarks.peers.remote import start_peers
from benchmarks.setup import Setup


def measure(setup: Setup, say: Say) -> Iterator[Part]:
    """Peers are processes that load the model and the tasks; they serve no HTTP."""
    setting = setup.setting
    column_to_values = defaultdict(list)
    one = setup.workload.first(1)
    for number in range(setting.num_rounds):
        say(f"start {number + 1} of {setting.num_rounds}")
        with setup.server(setup.workload) as server:
            column_to_values["ready, s"].append(server.ready_s)
            column_to_values["first answer, s"].append(server.ready_s + HttpPeer(server).streams(one).first_token_s[0])
            column_to_values["resident MiB"].append(server.resident_bytes / 2**20)
    softswap = {column: statistics.median(values) for column, values in column_to_values.items()}
    with start_peers(setup, setup.workload, say) as peers:
        loaded = {
            f"{name}, model and tasks loaded": {"ready, s": peer.load_s, "resident MiB": peer.resident_bytes / 2**20}
            for name, peer in peers.name_to_peer.items()
        }
    parameters = sum(parameter.numel() for parameter in setup.backbone.model.parameters())
    weights = parameters * setup.backbone.dtype.itemsize / 2**20
    yield Part(
        name="start-up",
        question="How long until the first answer, and how much memory?",
        setting={"weights_mib": round(weights), "tasks": len(setup.workload.prompts), **peers.versions},
        figures={"softswap serve": softswap, **loaded},
        cannot=peers.name_to_reason,
    )
