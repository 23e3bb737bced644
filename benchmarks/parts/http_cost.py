"""What HTTP adds to the engine."""

from __future__ import annotations

from dataclasses import replace

from benchmarks.parts.ratios import speed
from benchmarks.peers.http import HttpPeer
from benchmarks.report import Part, Say
from benchmarks.rounds import Contender, interleave
from benchmarks.setting import Bench


def measure_http_cost(bench: Bench, say: Say) -> Part:
    """W1 as concurrent streams, and many decisions in one call, beside an engine of the same size in this process."""
    streams, choices = bench.workload, bench.decisions(bench.setting.num_decisions)
    texts = bench.texts(choices)
    engine = bench.softswap(len(streams.prompts) + len(choices.prompts))
    say("starting a server for the streams and one for the decisions")
    with bench.server(streams) as stream_server, bench.server(choices) as choice_server:
        stream_peer, choice_peer = HttpPeer(stream_server), HttpPeer(choice_server)
        engine.run(replace(streams, num_new_tokens=1))
        engine.run(choices.every(4))
        stream_peer.streams(replace(streams, num_new_tokens=2))
        choice_peer.one_call(choices.every(4), texts[::4])
        found = interleave(
            [
                Contender("engine alone", lambda _: streams, engine.run),
                Contender("streams over HTTP", lambda _: streams, stream_peer.streams),
                Contender("engine alone, decisions", lambda _: choices, engine.run),
                Contender("decisions in one call", lambda _: choices, lambda given: choice_peer.one_call(given, texts)),
            ],
            bench.setting.repetitions,
            say,
        )
    same = zip(found["engine alone, decisions"].first_tokens, found["decisions in one call"].first_tokens, strict=True)
    return Part(
        name="http",
        question="what does HTTP add to the engine?",
        setting={
            "concurrent_streams": len(streams.requests),
            "decisions_in_one_call": len(choices.requests),
            "equal_decisions": sum(one == other for one, other in same),
        },
        name_to_measurement=found,
        ratios=(
            speed("streams over HTTP / engine alone", found, "streams over HTTP", "engine alone", at_least=0.9),
            speed(
                "decisions in one call / engine alone",
                found,
                "decisions in one call",
                "engine alone, decisions",
                at_least=0.95,
            ),
        ),
    )
