"""Packed weights at every layer, whether that is faster or not."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from app.model.packed_weights import PackedGroup, PackedWeights, packable_layers
from app.model.shared_inputs import group_by_input


def can_pack(dtype: torch.dtype) -> bool:
    return bool(packable_layers(nn.Linear(8, 8).to(dtype)))


needs_onednn = pytest.mark.skipif(not can_pack(torch.float32), reason="this torch has no oneDNN")


def pack_everywhere(model: nn.Module) -> PackedWeights:
    return PackedWeights([PackedGroup(group) for group in group_by_input(model, packable_layers(model))])
