"""Ratios of two contenders' medians."""

from __future__ import annotations

from collections.abc import Mapping

from benchmarks.report import Ratio
from benchmarks.rounds import Measurement


def speed(name: str, found: Mapping[str, Measurement], ours: str, theirs: str, at_least: float | None = None) -> Ratio:
    """Tokens per second of `ours` over those of `theirs`: more is better."""
    one, other = found[ours], found[theirs]
    return Ratio(
        name,
        one.median_tokens_per_s / other.median_tokens_per_s,
        other.median_cpu_s_per_token / one.median_cpu_s_per_token,
        at_least=at_least,
    )


def time(name: str, found: Mapping[str, Measurement], ours: str, theirs: str, at_most: float | None = None) -> Ratio:
    """Seconds of `ours` over those of `theirs` for the same requests: less is better."""
    one, other = found[ours], found[theirs]
    return Ratio(
        name,
        one.median_wall_s / other.median_wall_s,
        one.median_cpu_s_per_token / other.median_cpu_s_per_token,
        at_most=at_most,
    )
