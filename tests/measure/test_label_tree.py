"""One forward over the tree of all labels gives what one forward per label gives."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from app.measure.encoding import EncodedExample, collate
from app.measure.label_tree import LabelTree, label_and_end_log_likelihoods, label_log_likelihoods
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


@pytest.mark.parametrize("architecture", ["llama", "qwen3", "gpt2"])
def test_the_end_after_each_rows_own_label_is_as_likely_as_alone(architecture: str) -> None:
    """Labels that begin another one included; gradients too."""
    backbone = tiny_backbone(architecture)
    rows = (torch.randn(2, 4, backbone.hidden_size, generator=torch.Generator().manual_seed(2)) * 0.2).requires_grad_()
    texts = [tuple(TEMPLATE.encode_input(backbone.tokenizer, text)) for text in ("some words here", "a", "b c", "")]
    label_ids = [tuple(TEMPLATE.encode_target(backbone.tokenizer, label)) for label in ("yes", "never", "nevertheless")]
    labels, index, end_id = [2, 0, 1, 1], [1, 0, 0, 1], 7
    batch = collate([EncodedExample(ids, ()) for ids in texts], backbone.device, index)
    prefix = PromptPrefix.of_embeddings(backbone, rows)
    scores, ends = label_and_end_log_likelihoods(backbone, prefix, batch, LabelTree.build(label_ids), labels, end_id)
    torch.testing.assert_close(
        scores, label_log_likelihoods(backbone, prefix, batch, LabelTree.build(label_ids)), atol=1e-4, rtol=1e-5
    )
    whole = [EncodedExample(text, (*label_ids[label], end_id)) for text, label in zip(texts, labels, strict=True)]
    alone = target_log_likelihoods(backbone, prefix, collate(whole, backbone.device, index)).sum(dim=1)
    together = scores[range(4), labels] + ends
    torch.testing.assert_close(together, alone, atol=1e-4, rtol=1e-5)
    gradients = [torch.autograd.grad(each.sum(), rows, retain_graph=True)[0] for each in (together, alone)]
    torch.testing.assert_close(*gradients, atol=1e-4, rtol=1e-4)


@given(sequences)
def test_a_tree_spells_the_sequences_it_was_built_of(given_sequences: list[tuple[int, ...]]) -> None:
    tree = LabelTree.build(given_sequences)
    assert [tuple(tree.token_ids[node] for node in path) for path in tree.paths] == given_sequences
    assert all(parent < node for node, parent in enumerate(tree.parents))
    assert [sum(row) - 1 for row in tree.sees(tree.inner).tolist()] == [tree.depths[node] for node in tree.inner]
    assert len(tree.token_ids) == len({s[: i + 1] for s in given_sequences for i in range(len(s))})
