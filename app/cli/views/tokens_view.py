"""How `softswap tasks show --tokens` shows virtual tokens to a person."""

from __future__ import annotations

from typing import Any

NUM_SHOWN = 3
"""Near tokens in a line."""
NEAR = "near tokens (cosine)"


def print_tokens(shown: dict[str, Any]) -> None:
    """A line for each virtual token, then groups, effects and a note."""
    from rich.console import Console
    from rich.table import Table

    console = Console(soft_wrap=True, highlight=False)
    effects, difference = shown.get("effects"), shown.get("difference")
    rows = [_cells(token, shown) for token in shown["virtual_tokens"]]
    table = Table(box=None, pad_edge=False)
    for heading in rows[0]:
        if heading == NEAR:
            table.add_column(heading, no_wrap=True, overflow="ellipsis")
        else:
            widest = max(len(heading), *(len(row[heading]) for row in rows))
            table.add_column(heading, justify="right", no_wrap=True, min_width=widest)
    for row in rows:
        table.add_row(*row.values())
    console.print(f"[bold]{shown['model']}[/bold]: {len(rows)} virtual tokens, {shown['kind']}\n")
    console.print(table)
    console.print(f"\nclusters: {_groups(shown['clusters'])}\nnear-duplicates: {_groups(shown['near_duplicates'])}")
    if difference is not None:
        same = ", which holds the same values" if difference["is_same"] else ""
        console.print(f"changed: distance to {difference['model']}{same}")
    if effects is not None:
        _print_effects(console, effects)
    console.print(f"\n[dim]{shown['note']}[/dim]", soft_wrap=False)


def _cells(token: dict[str, Any], shown: dict[str, Any]) -> dict[str, str]:
    """Heading to cell, for one line."""
    from rich.markup import escape

    cells = {"": str(token["index"])}
    if "by_cosine" in token:
        near = [f"{_visible(each['token'])} {each['cosine']:.2f}" for each in token["by_cosine"][:NUM_SHOWN]]
        cells |= {
            NEAR: escape("  ".join(near)),
            "length": f"{token['norm']:.3g}",
            "longer than": f"{token['norm_percentile']:.0f} %",
        }
    else:
        cells |= {"keys": f"{token['key_norm']:.2f}", "values": f"{token['value_norm']:.2f}"}
    if token["drift"] is not None:
        cells["moved"] = f"{token['drift']:.3g}"
    if "difference" in shown:
        distance = shown["difference"]["rows"][token["index"]]["distance"]
        cells["changed"] = "-" if distance is None else f"{distance:.3g}"
    if "effects" in shown:
        effect = shown["effects"]["without"][token["index"]]
        cells["Δ loss"] = f"{effect['loss']:+.4f}"
        if effect["accuracy"] is not None:
            cells["Δ accuracy"] = f"{100 * effect['accuracy']:+.1f}"
    return cells


def _print_effects(console: Any, effects: dict[str, Any]) -> None:
    present = effects["present"]
    accuracy = "" if present["accuracy"] is None else f", accuracy {present['accuracy']:.3f}"
    loss = f"loss {present['loss']:.4f}"
    console.print(f"\non {effects['num_examples']} examples: {loss}{accuracy}; Δ is the change without the token")
    for variant in effects["made_of_tokens"]:
        effect = variant["effect"]
        change = "" if effect["accuracy"] is None else f", accuracy {100 * effect['accuracy']:+.1f}"
        console.print(f"as nearest tokens by {variant['nearest_by']}: loss {effect['loss']:+.4f}{change}")


def _groups(groups: list[list[int]]) -> str:
    return ", ".join("+".join(map(str, group)) for group in groups) or "none"


def _visible(token: str) -> str:
    return repr(token)[1:-1].replace(" ", "·")
