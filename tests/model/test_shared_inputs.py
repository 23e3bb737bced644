from __future__ import annotations

import pytest
import torch
from torch import nn

from app.model.shared_inputs import group_by_input
from tests.models import tiny_backbone


@pytest.mark.parametrize(
    ("architecture", "wanted"),
    [
        ("llama", [["q_proj", "k_proj", "v_proj"], ["o_proj"], ["gate_proj", "up_proj"], ["down_proj"]]),
        ("phi3", [["qkv_proj"], ["o_proj"], ["gate_up_proj"], ["down_proj"]]),
    ],
)
def test_layers_of_a_model_that_get_the_same_input_are_found(architecture: str, wanted: list[list[str]]) -> None:
    model = tiny_backbone(architecture).model
    module_to_name = {module: name.split(".")[-1] for name, module in model.named_modules()}
    linears = [module for module in model.modules() if type(module) is nn.Linear]
    found = group_by_input(model, linears)
    assert [[module_to_name[layer] for layer in group] for group in found] == [*wanted * 3, ["lm_head"]]
    assert not any(module._forward_pre_hooks for module in model.modules())


class Odd(nn.Module):
    """Layers that look as if they shared an input."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.changed, self.twice, self.unused = (nn.Linear(2, 2, bias=False) for _ in range(5))
        self.biased = nn.Linear(2, 2)

    def forward(self, input_ids: torch.Tensor, use_cache: bool) -> None:
        rows = input_ids.float()
        for layer in (self.first, self.biased, self.twice, self.second, self.twice):
            layer(rows)
        self.changed(rows.add_(1))


def test_only_the_same_unchanged_input_counts() -> None:
    odd = Odd()
    layers = [module for module in odd.children() if isinstance(module, nn.Linear)]
    found = group_by_input(odd, layers)
    assert found == [[odd.first, odd.second], [odd.biased], [odd.changed], [odd.twice], [odd.unused]]
