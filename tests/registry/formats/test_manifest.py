"""task.json and aliases.json: what is written is read back, and what is not as written is refused."""

from __future__ import annotations

import json
import random

import pytest

from app.errors import CorruptPrompt, InvalidInput
from app.registry.aliases import AliasTable, Gate, require_target
from app.registry.formats.json_file import seal
from app.registry.formats.manifest import BackboneName, Manifest, TensorFile, read_sampling
from app.registry.publication import render_card
from app.registry.version import Version
from app.task_prompt import PromptKind

A, B = "a" * 64, "0" * 64
"""Fingerprints of two backbones."""


def manifest(**fields: object) -> Manifest:
    return Manifest.build(**{
        "task": "sentiment",
        "number": 3,
        "digest": "a" * 64,
        "kind": PromptKind.EMBEDDINGS,
        "num_virtual_tokens": 20,
        "backbone": BackboneName(fingerprint="b" * 64, name="tiny"),
        "tensor": TensorFile(sha256="c" * 64, num_bytes=100),
        "created_at": 1_795_000_000,
    } | fields)  # fmt: skip


FULL = {
    "template": "Review: {input}\nSentiment: {target}",
    "labels": ("negative", "positive", "ünïcode 🙂"),
    "sampling": {"temperature": 0, "stop": ["\n"], "logit_bias": {"7": -100}, "max_tokens": 8},
    "metrics": {"accuracy": 0.87, "per_label": {"negative": 0.9}},
    "data_sha256": "d" * 64,
    "tuning": {"learning_rate": 0.3, "num_steps": 1000},
    "provenance": {"source": "tuning"},
    "description": "Says whether a review is kind.",
}


def test_a_manifest_is_read_back_as_it_was_written() -> None:
    for written in (manifest(), manifest(**FULL)):
        assert Manifest.decode(written.encode()) == written


def test_a_version_has_sampling_defaults_in_the_types_of_sampling_params() -> None:
    version = Version.from_manifest(manifest(**FULL))
    assert version.sampling == {"temperature": 0.0, "stop": ("\n",), "logit_bias": {7: -100.0}, "max_tokens": 8}
    assert version.id == "sentiment@3"
    assert version.template is not None
    assert version.template.render("fine") == "Review: fine\nSentiment:"


def test_every_single_flipped_bit_of_a_manifest_is_refused() -> None:
    content = manifest(**FULL).encode()
    for position in range(len(content)):
        for bit in range(8):
            flipped = bytearray(content)
            flipped[position] ^= 1 << bit
            with pytest.raises(CorruptPrompt):
                Manifest.decode(bytes(flipped))


def test_a_manifest_cut_short_anywhere_is_refused() -> None:
    content = manifest(**FULL).encode()
    for length in range(len(content)):
        with pytest.raises(CorruptPrompt):
            Manifest.decode(content[:length])


def test_a_manifest_of_a_newer_softswap_is_refused_and_says_so() -> None:
    fields = json.loads(manifest().encode()) | {"schema_version": 2, "something": "new"}
    for content in (seal({k: v for k, v in fields.items() if k != "checksum"}), json.dumps(fields).encode()):
        with pytest.raises(CorruptPrompt, match="newer softswap"):
            Manifest.decode(content)
    table = json.dumps({"schema_version": 3, "aliases": []}).encode()
    with pytest.raises(CorruptPrompt, match="newer softswap"):
        AliasTable.decode(table, {})


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"template": "no places"}, "template"),
        ({"labels": ("a", "a")}, "labels"),
        ({"labels": ("",)}, "labels.0"),
        ({"labels": tuple(map(str, range(1_025)))}, "labels"),
        ({"sampling": {"temperature": 3}}, "sampling.temperature"),
        ({"sampling": {"temperature": "1"}}, "sampling.temperature"),
        ({"sampling": {"surprise": 1}}, "sampling.surprise"),
        ({"sampling": {"stop": ["a"] * 5}}, "sampling.stop"),
        ({"metrics": {"loss": float("nan")}}, "metrics.loss"),
        ({"description": "x" * 5_000}, "description"),
        ({"description": "\ud800"}, "description"),
        ({"digest": "a" * 63}, "digest"),
        ({"number": 0}, "number"),
        ({"kind": PromptKind.TEXT}, "kind"),
        ({"tensor": None}, "kind"),
        ({"text": "both"}, "kind"),
        ({"surprise": 1}, "surprise"),
    ],
)
def test_a_wrong_field_is_refused_by_its_name(fields: dict[str, object], param: str) -> None:
    with pytest.raises(InvalidInput) as refusal:
        manifest(**fields)
    assert refusal.value.param == param


def test_a_manifest_that_would_not_be_read_back_is_not_written() -> None:
    with pytest.raises(InvalidInput, match="bytes"):
        manifest(provenance={"x": "y" * 2**20}).encode()
    with pytest.raises(InvalidInput) as refusal:
        seal({"a": 1, "text": "\ud800"})
    assert refusal.value.param == "text"


def test_a_forged_manifest_is_refused_even_with_a_right_checksum() -> None:
    fields = json.loads(manifest(**FULL).encode())
    del fields["checksum"]
    for change in (
        {"template": "no places"},
        {"kind": "text"},
        {"number": "3"},
        {"digest": 7},
        {"extra": 1},
        {"labels": "ab"},
    ):
        with pytest.raises(CorruptPrompt):
            Manifest.decode(seal(fields | change))


def test_no_sampling_means_no_defaults() -> None:
    assert read_sampling({}) == {}


# --- aliases.json


def test_an_alias_table_is_read_back_as_it_was_written() -> None:
    table = AliasTable(
        7,
        4,
        {"live": {A: 3, B: 1}, "canary": {A: {3: 0.9, 4: 0.1}}},
        (2,),
        {"live": {A: Gate("a" * 64, "accuracy", 0.1)}},
    )
    assert AliasTable.decode(table.encode(), {}) == table


def test_a_hand_written_alias_table_needs_no_checksum() -> None:
    assert AliasTable.decode(b'{"aliases": {"live": 2}}', {2: A}).aliases == {"live": {A: 2}}


def test_every_single_flipped_bit_of_an_alias_table_is_refused() -> None:
    content = AliasTable(7, 4, {"live": {A: 3, B: 1}, "canary": {A: {3: 0.9, 4: 0.1}}}).encode()
    for position in range(len(content)):
        for bit in range(8):
            flipped = bytearray(content)
            flipped[position] ^= 1 << bit
            with pytest.raises(CorruptPrompt):
                AliasTable.decode(bytes(flipped), {})


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[]",
        b"{",
        b'{"aliases": {"live": "3"}}',
        b'{"aliases": {"live": 1.5}}',
        b'{"aliases": {"live": {"1": 1}}}',
        b'{"aliases": {"live": {"1": 1, "2": 0}}}',
        b'{"aliases": {"live": {"1": 1, "2": NaN}}}',
        b'{"surprise": 1}',
        b'{"aliases": {"live": {"1": 1, "2": 1, "3": 1}}}',
        b'{"deleting": "1"}',
    ],
)
def test_an_alias_table_that_makes_no_sense_is_refused(content: bytes) -> None:
    with pytest.raises(CorruptPrompt):
        AliasTable.decode(content, {1: A, 2: B, 3: A})


@pytest.mark.parametrize(
    "weights",
    [
        *({}, {1: 1.0}, {1: 1.0, 2: 0.0}, {1: 1.0, 2: -1.0}, {1: 1.0, 2: float("inf")}, {1: 1, 2: 1, 3: 1}),
        *({1: 0.5, 2: 0.6}, {1: 9, 2: 1}, {1: 0.3, 2: 0.69}),
    ],
)
def test_weights_are_two_shares_that_add_up_to_one(weights: dict[int, float]) -> None:
    with pytest.raises(InvalidInput):
        require_target(weights)


def test_shares_are_rounded_as_decimals_are_and_tables_of_earlier_versions_are_read() -> None:
    for share in (0.1, 0.3, 1 / 3, 1e-6):
        assert require_target({1: share, 2: 1 - share}) == {1: share, 2: 1 - share}
    table = AliasTable.decode(b'{"aliases": {"live": {"1": 9, "2": 1}}}', {1: A, 2: A})
    assert table.aliases == {"live": {A: {1: 9.0, 2: 1.0}}}


def test_the_revision_rises_with_every_change_and_aliases_are_bounded() -> None:
    table = AliasTable()
    for turn in range(64):
        table = table.with_alias(f"a{turn}", A, 1)
        assert table.revision == turn + 1
    with pytest.raises(InvalidInput):
        table.with_alias("one-more", A, 1)
    assert table.with_alias("one-more", B, 2).aliases_on(B) == {"one-more": 2}
    assert random.Random(0).choice(table.aliases_of(1)).startswith("a")


# --- README.md


def test_the_card_shows_what_the_manifest_says_and_keeps_to_its_lines() -> None:
    card = render_card(
        manifest(
            **FULL,
        ).model_copy(update={"provenance": {"source": "a|b\nc"}})
    )
    assert card.startswith('---\nbase_model: "tiny"\nlibrary_name: peft\n')
    for part in (
        "# sentiment, version 3",
        "Says whether",
        "20 virtual tokens",
        "| accuracy | 0.87 |",
        "`positive`",
        "a\\|b c",
    ):
        assert part in card
