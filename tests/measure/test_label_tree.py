"""One forward over the tree of all labels gives what one forward per label gives."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from app.measure.encoding import EncodedExample, collate
from app.measure.label_tree import LabelTree, label_log_likelihoods
from app.model.layout import Template, encode_labels
from app.model.prompted_forward import PromptPrefix, target_log_likelihoods
from tests.support.models import ARCHITECTURE_TO_CONFIG, tiny_backbone

TEMPLATE = Template("{input}\nA: {target}")
CLASHING = ("yes", "yesterday", "no", "never", "nevertheless", "ok")
PLAIN = ("positive", "negative", "neutral", "posh")
sequences = st.lists(
    st.lists(st.integers(0, 3), min_size=1, max_size=5).map(tuple), min_size=1, max_size=12, unique=True
)


@pytest.mark.parametrize("labels", [CLASHING, PLAIN])
@pytest.mark.parametrize("architecture", ARCHITECTURE_TO_CONFIG)
def test_the_tree_scores_labels_as_one_by_one(architecture: str, labels: tuple[str, ...]) -> None:
    backbone = tiny_backbone(architecture)
    prompts = torch.randn(2, 5, backbone.hidden_size, generator=torch.Generator().manual_seed(1)) * 0.2
    prefix = PromptPrefix.of_embeddings(backbone, prompts)
    texts = [tuple(TEMPLATE.encode_input(backbone.tokenizer, text)) for text in ("some words here", "a", "")]
    label_ids = encode_labels(backbone, TEMPLATE, labels)
    index = [1, 0, 1]
    batch = collate([EncodedExample(ids, ()) for ids in texts], backbone.device, index)
    got = label_log_likelihoods(backbone, prefix, batch, LabelTree.build(label_ids))
    for column, ids in enumerate(label_ids):
        rows = collate([EncodedExample(text, ids) for text in texts], backbone.device, index)
        expected = target_log_likelihoods(backbone, prefix, rows).sum(dim=1)
        torch.testing.assert_close(got[:, column], expected, atol=1e-4, rtol=1e-5)


@given(sequences)
def test_a_tree_spells_the_sequences_it_was_built_of(given_sequences: list[tuple[int, ...]]) -> None:
    tree = LabelTree.build(given_sequences)
    assert [tuple(tree.token_ids[node] for node in path) for path in tree.paths] == given_sequences
    assert all(parent < node for node, parent in enumerate(tree.parents))
    assert [sum(row) - 1 for row in tree.sees.tolist()] == [tree.depths[node] for node in tree.inner]
    assert len(tree.token_ids) == len({s[: i + 1] for s in given_sequences for i in range(len(s))})
