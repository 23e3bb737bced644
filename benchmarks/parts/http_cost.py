"""What HTTP adds to the engine."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from operator import eq

from benchmarks.load import HttpPeer
from benchmarks.part import Part, Say, speed
from benchmarks.rounds import Contender, interleave, whole
from benchmarks.setup import Setup


def measure(setup: Setup, say: Say) -> Iterator[Part]:
    """The mixed load as streams and many decisions in one call, and both by an engine of that size in this process."""
    setting = setup.setting
    streams, choices = setup.workload, setup.decisions(setting.num_decisions)
    texts = setup.texts(choices)
    engine = setup.softswap(len(streams.prompts) + len(choices.prompts))
    say("starting a server for the streams and one for the decisions")
    with setup.server(streams) as stream_server, setup.server(choices) as choice_server:
        stream_peer, choice_peer = HttpPeer(stream_server), HttpPeer(choice_server)
        engine.run(replace(streams, num_new_tokens=1))
        engine.run(choices.every(4))
        stream_peer.streams(replace(streams, num_new_tokens=2))
        choice_peer.one_call(choices.every(4), texts[::4])
        decide = whole(lambda load: choice_peer.one_call(load, texts))
        contenders = [
            Contender("engine alone", lambda _: streams, whole(engine.run)),
            Contender("streams over HTTP", lambda _: streams, whole(stream_peer.streams)),
            Contender("engine alone, decisions", lambda _: choices, whole(engine.run)),
            Contender("decisions in one call", lambda _: choices, decide),
        ]
        found = interleave(contenders, setting.num_rounds, say)
    same = map(eq, *(found[name].first_tokens for name in ("engine alone, decisions", "decisions in one call")))
    yield Part(
        name="http",
        question="What does HTTP add to the engine?",
        setting={
            "concurrent_streams": len(streams.requests),
            "decisions_in_one_call": len(choices.requests),
            "equal_decisions": sum(same),
        },
        contenders=found,
        ratios={
            "streams over HTTP / engine alone": speed(found, "streams over HTTP", "engine alone", 0.9),
            "decisions in one call / engine alone": speed(
                found, "decisions in one call", "engine alone, decisions", 0.95
            ),
        },
    )
