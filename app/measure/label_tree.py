"""Log-likelihoods of all labels of a task in one forward: their ids share a tree, and so does the attention mask.

The nodes of the tree follow the text in one sequence. A node sees the prompt, the text and its ancestors, and stands at
the position its depth gives it (tree attention, Miao et al. 2023, SpecInfer, section 4.2). A task of 150 intents costs
about one text of 150 more tokens, not 150 texts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch

from app.measure.encoding import EncodedExample, collate
from app.model.backbone import Backbone
from app.model.prompted_forward import PaddedBatch, PromptPrefix, logits_at, target_log_likelihoods

ROOT = -1
MAX_LOGITS = 2**24
"""Logits of one forward, in numbers: bounds memory if labels or vocabularies are many."""


@dataclass(frozen=True)
class LabelTree:
    """A prefix tree over token ids.

    Attributes:
        token_ids: of each node; a parent comes before its children.
        parents: index of each node's parent, ROOT for those that follow the text.
        depths: 0 for those that follow the text.
        paths: for each sequence, in the order given, its nodes.
    """

    token_ids: tuple[int, ...]
    parents: tuple[int, ...]
    depths: tuple[int, ...]
    paths: tuple[tuple[int, ...], ...]

    @classmethod
    def build(cls, sequences: Sequence[tuple[int, ...]]) -> LabelTree:
        nodes: dict[tuple[int, int], int] = {}
        depths: list[int] = []
        paths = []
        for sequence in sequences:
            parent, path = ROOT, []
            for depth, token_id in enumerate(sequence):
                if (parent, token_id) not in nodes:
                    nodes[parent, token_id] = len(nodes)
                    depths.append(depth)
                parent = nodes[parent, token_id]
                path.append(parent)
            paths.append(tuple(path))
        return cls(tuple(t for _, t in nodes), tuple(p for p, _ in nodes), tuple(depths), tuple(paths))

    @cached_property
    def inner(self) -> tuple[int, ...]:
        """The nodes that have children: the only ones the model must read."""
        return tuple(sorted({parent for parent in self.parents if parent != ROOT}))

    def sees(self, nodes: Sequence[int]) -> torch.Tensor:
        """(num_nodes, num_inner) bool: of the inner nodes, those that are a node itself or its ancestors."""
        place = {node: i for i, node in enumerate(self.inner)}
        seen = torch.zeros(len(nodes), len(place), dtype=torch.bool)
        for row, node in enumerate(nodes):
            ancestor = node
            while ancestor != ROOT:
                if ancestor in place:
                    seen[row, place[ancestor]] = True
                ancestor = self.parents[ancestor]
        return seen

    def max_rows(self, vocab_size: int) -> int:
        """Rows of one forward, so that memory holds their logits."""
        return max(1, MAX_LOGITS // ((len(self.inner) + 2) * vocab_size))

    def membership(self, device: torch.device) -> torch.Tensor:
        """(num_nodes, num_sequences) float32: 1 if the node lies on the sequence's path."""
        matrix = torch.zeros(len(self.token_ids), len(self.paths))
        for column, path in enumerate(self.paths):
            matrix[list(path), column] = 1.0
        return matrix.to(device)


def node_log_likelihoods(backbone: Backbone, prefix: PromptPrefix, texts: PaddedBatch, tree: LabelTree) -> torch.Tensor:
    """log P(node's token | prompt, text, ancestors), natural log, differentiable.

    Args: texts: rows without targets, `row_lens == text_lens`.

    Returns: (num_rows, num_nodes) float32.
    """
    return _read_nodes(_tree_logits(backbone, prefix, texts, tree), tree)


def label_and_end_log_likelihoods(
    backbone: Backbone,
    prefix: PromptPrefix,
    texts: PaddedBatch,
    tree: LabelTree,
    labels: Sequence[int],
    end_id: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """What training reads: all sequences, and how likely a text ends after the row's own.

    One more node a row, not one for each label. The backbone must see the whole text in every layer.

    Args: labels: of each row, the number of its own sequence.

    Returns: (num_rows, num_sequences) and (num_rows,) float32: log P(end_id | prompt, text, the row's own sequence).
    """
    leaves = [tree.paths[label][-1] for label in labels]
    logits = _tree_logits(backbone, prefix, texts, tree, leaves)
    nodes, after = _read_nodes(logits[:, :-1], tree), logits[:, -1]
    return nodes @ tree.membership(nodes.device), after[:, end_id] - after.logsumexp(dim=-1)


def label_log_likelihoods(
    backbone: Backbone, prefix: PromptPrefix, texts: PaddedBatch, tree: LabelTree
) -> torch.Tensor:
    """log P(sequence | prompt, text) of each sequence that the tree was built of: (num_rows, num_sequences) float32."""
    longest = prefix.num_columns + texts.token_ids.shape[1] + max(tree.depths) + 1
    if exceeds_window(backbone, longest):
        return _one_by_one(backbone, prefix, texts, tree)
    nodes = node_log_likelihoods(backbone, prefix, texts, tree)
    return nodes @ tree.membership(nodes.device)


def _one_by_one(backbone: Backbone, prefix: PromptPrefix, texts: PaddedBatch, tree: LabelTree) -> torch.Tensor:
    """The same, one sequence per row: the plain way, which also works with attention windows shorter than the text."""
    columns = []
    for path in tree.paths:
        target_ids = tuple(tree.token_ids[node] for node in path)
        rows = [
            EncodedExample(tuple(ids[:length]), target_ids)
            for ids, length in zip(texts.token_ids.tolist(), texts.row_lens.tolist(), strict=True)
        ]
        batch = collate(rows, backbone.device, texts.prompt_index.tolist())
        columns.append(target_log_likelihoods(backbone, prefix, batch).sum(dim=1))
    return torch.stack(columns, dim=1)


def exceeds_window(backbone: Backbone, num_tokens: int) -> bool:
    """Whether some layer of the backbone cannot see that many tokens; the tree's mask ignores windows."""
    window = backbone.layers.window
    return window is not None and num_tokens > window


def _tree_logits(
    backbone: Backbone, prefix: PromptPrefix, texts: PaddedBatch, tree: LabelTree, leaves: Sequence[int] | None = None
) -> torch.Tensor:
    """Logits after the text and after each inner node, and after each row's own leaf if they are given.

    Returns: (num_rows, 1 + num_nodes, vocab_size), the backbone's dtype.
    """
    num_rows, max_len = texts.token_ids.shape
    device = backbone.device
    inner = torch.tensor(tree.inner, dtype=torch.int64).expand(num_rows, -1)
    nodes = inner if leaves is None else torch.cat([inner, torch.tensor(leaves)[:, None]], dim=1)
    node_ids, depths = (torch.tensor(values)[nodes].to(device) for values in (tree.token_ids, tree.depths))
    columns = torch.arange(max_len, device=device)
    positions = torch.cat([columns.expand(num_rows, -1), texts.row_lens[:, None] + depths], dim=1)
    last = (texts.row_lens - 1)[:, None]
    places = (max_len + torch.arange(nodes.shape[1], device=device)).expand(num_rows, -1)
    return logits_at(
        backbone,
        torch.cat([last, places], dim=1),
        prefix.cache_for(texts.prompt_index),
        inputs_embeds=backbone.embed(torch.cat([texts.token_ids, node_ids], dim=1)),
        attention_mask=_tree_mask(texts, tree, prefix, leaves),
        position_ids=prefix.lengths_for(texts.prompt_index) + positions,
    )


def _tree_mask(texts: PaddedBatch, tree: LabelTree, prefix: PromptPrefix, leaves: Sequence[int] | None) -> torch.Tensor:
    """(num_rows, 1, max_len + num_nodes, num_columns + max_len + num_nodes) bool; a row's leaf is its last node."""
    (num_rows, max_len), num_inner = texts.token_ids.shape, len(tree.inner)
    num_nodes = num_inner + (leaves is not None)
    device = texts.token_ids.device
    is_real = texts.is_real[:, None, :]
    causal = torch.ones(max_len, max_len, dtype=torch.bool, device=device).tril()
    to_text = torch.cat([causal & is_real, is_real.expand(-1, num_nodes, -1)], dim=1)
    to_nodes = torch.zeros(num_rows, max_len + num_nodes, num_nodes, dtype=torch.bool, device=device)
    to_nodes[:, max_len : max_len + num_inner, :num_inner] = tree.sees(tree.inner).to(device)
    if leaves is not None:
        to_nodes[:, -1, :num_inner] = tree.sees([tree.parents[leaf] for leaf in leaves]).to(device)
        to_nodes[:, -1, -1] = True
    to_prompt = prefix.is_real_for(texts.prompt_index)[:, None, :].expand(-1, max_len + num_nodes, -1)
    return torch.cat([to_prompt, to_text, to_nodes], dim=2)[:, None]


def _read_nodes(logits: torch.Tensor, tree: LabelTree) -> torch.Tensor:
    """From logits after the text and after each inner node, the log-probability of each node."""
    place = {ROOT: 0} | {node: i for i, node in enumerate(tree.inner, 1)}
    parents = torch.tensor([place[parent] for parent in tree.parents], device=logits.device)
    token_ids = torch.tensor(tree.token_ids, device=logits.device)
    return logits[:, parents, token_ids] - logits.logsumexp(dim=-1)[:, parents]
