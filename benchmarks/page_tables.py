"""A part of a kept result as Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from benchmarks.report import figure_columns


def ratio_table(ratios: Mapping[str, Mapping[str, Any]]) -> str:
    rows = []
    for name, ratio in ratios.items():
        word = "" if not ratio["target"] else "reached" if ratio["is_reached"] else "**missed**"
        rows.append(
            [name, f"{ratio['value']:.2f}", ratio["target"].replace(">=", "at least").replace("<=", "at most"), word]
        )
    return _table(("ratio", "value", "wanted", ""), rows)


def contender_table(contenders: Mapping[str, Mapping[str, Any]]) -> str:
    rows = []
    for name, each in contenders.items():
        first_s = each["median_first_token_s"]
        rounds = " ".join(f"{wall_s:.2f}" for wall_s in each["wall_s"])
        rate, first = f"{each['median_tokens_per_s']:.1f}", "" if first_s is None else f"{first_s:.3f}"
        rows.append([name, str(each["num_requests"]), rate, first, rounds])
    return _table(("contender", "requests", "tokens/s", "first token, s (median)", "rounds, s"), rows)


def figure_table(name_to_figures: Mapping[str, Mapping[str, float]]) -> str:
    columns = figure_columns(name_to_figures)
    rows = [
        [name, *(_figure(figures[column]) if column in figures else "" for column in columns)]
        for name, figures in name_to_figures.items()
    ]
    return _table(("", *columns), rows)


def sentence_of_agreement(name: str, agreement: Mapping[str, Any]) -> str:
    """Args: name: such as "softswap = PEFT one by one"."""
    one, _, other = name.partition(" = ")
    counts = f"{agreement['num_equal']} of {agreement['num_compared']}"
    sentence = f"{one}: {counts} answers are {other}'s token for token"
    if agreement["num_equal"] < agreement["num_compared"]:
        sentence += f"; where the others part, the two tokens' logits are at most {agreement['largest_gap']:.2g} apart"
    return sentence + "."


def _figure(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def _table(header: Iterable[str], rows: Sequence[Sequence[str]]) -> str:
    header = list(header)
    return "\n".join(f"| {' | '.join(line)} |" for line in [header, ["---"] * len(header), *rows])
