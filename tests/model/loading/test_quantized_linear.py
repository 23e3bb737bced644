from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from app.errors import InvalidInput
from app.model.backbone import Backbone
from app.model.cpu.compiled_linear import compile_layer
from app.model.loading.checkpoint import weights_digest
from app.model.loading.quantized_linear import QuantizedLinear
from tests.support.compiled import needs_compiler
from tests.support.models import byte_tokenizer, tiny_backbone

SIZES = [(576, 192), (48, 259), (7, 3), (1, 1), (2500, 33), (1101, 16)]


def layer_of(
    depth: int, num_columns: int, dtype: torch.dtype = torch.float32, *, has_bias: bool = True
) -> tuple[QuantizedLinear, nn.Linear]:
    """A quantised layer, and the layer it was made of."""
    torch.manual_seed(depth + num_columns)
    linear = nn.Linear(depth, num_columns, bias=has_bias, dtype=dtype).requires_grad_(False)
    return QuantizedLinear(linear), linear


@pytest.mark.parametrize(("depth", "num_columns"), SIZES)
def test_a_weight_is_at_most_half_a_step_from_what_it_was(depth: int, num_columns: int) -> None:
    layer, linear = layer_of(depth, num_columns)
    step = linear.weight.abs().amax(1, keepdim=True) / 127
    assert ((layer.dequantized() - linear.weight).abs() <= 0.5001 * step).all()
    assert layer.panels.dtype == torch.int8
    assert layer.panels.abs().max() == 127


def test_an_output_without_weights_gives_its_bias() -> None:
    linear = nn.Linear(5, 3).requires_grad_(False)
    linear.weight[1] = 0
    rows = torch.randn(2, 5)
    assert torch.equal(QuantizedLinear(linear)(rows)[:, 1], linear.bias[1].expand(2))


def test_it_is_the_linear_layer_of_its_dequantised_weights_and_so_are_its_gradients() -> None:
    layer, linear = layer_of(40, 19)
    linear.weight.copy_(layer.dequantized())
    rows = torch.randn(2, 3, 40, requires_grad=True)
    own = torch.autograd.grad((layer(rows) ** 2).sum(), rows)[0]
    wanted = torch.autograd.grad((linear(rows) ** 2).sum(), rows)[0]
    torch.testing.assert_close(layer(rows), linear(rows))
    torch.testing.assert_close(own, wanted)


@needs_compiler
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.parametrize(("depth", "num_columns"), SIZES)
def test_the_c_code_gives_what_torch_gives(depth: int, num_columns: int, dtype: torch.dtype, *, has_bias: bool) -> None:
    layer, _ = layer_of(depth, num_columns, dtype, has_bias=has_bias)
    forward = compile_layer(layer)
    for num_rows in (0, *range(1, 16), 67, 252, 300):
        rows = torch.randn(1, num_rows, depth).to(dtype)
        bias = None if layer.bias is None else layer.bias.float()
        wanted = F.linear(rows.float(), layer.dequantized().float(), bias)
        tolerance = 2e-5 if dtype == torch.float32 else 1e-2
        torch.testing.assert_close(forward(rows).float(), wanted, atol=tolerance, rtol=tolerance)


@needs_compiler
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_row_is_the_same_to_the_last_bit_among_any_others(dtype: torch.dtype) -> None:
    forward = compile_layer(layer_of(1500, 70, dtype)[0])
    rows = torch.randn(150, 1500).to(dtype)
    alone = torch.cat([forward(row[None]) for row in rows])
    for num_rows in (2, 7, 64, 150):
        assert torch.equal(forward(rows[-num_rows:]), alone[-num_rows:])


def test_a_model_keeps_its_fingerprint_and_its_embedding_and_loses_most_bytes() -> None:
    plain, quantized = tiny_backbone(), tiny_backbone(quantize="int8")
    assert quantized.fingerprint == plain.fingerprint
    assert (plain.quantize, quantized.quantize) == ("none", "int8")
    assert torch.equal(*(each.model.get_input_embeddings().weight for each in (plain, quantized)))
    assert not any(isinstance(module, nn.Linear) for module in quantized.model.modules())
    layers = [num_bytes(each.model.model.layers) for each in (plain, quantized)]
    assert layers[1] < 0.35 * layers[0]


def num_bytes(module: nn.Module) -> int:
    return sum(parameter.nbytes for parameter in module.parameters())


def test_the_digest_of_the_weights_sees_a_changed_integer() -> None:
    model = copy.deepcopy(tiny_backbone(quantize="int8").model)
    before = weights_digest(model)
    next(module for module in model.modules() if isinstance(module, QuantizedLinear)).panels[0, 0, 0] += 1
    assert weights_digest(model) != before


def test_another_word_and_another_device_are_refused_by_the_fields_name() -> None:
    model = copy.deepcopy(tiny_backbone().model)
    with pytest.raises(InvalidInput, match="must be none or int8") as refusal:
        Backbone.from_model(model, byte_tokenizer(), name="tiny", quantize="int4")
    assert refusal.value.param == "quantize"
    with pytest.raises(InvalidInput, match="quantize must be none on meta: int8 is for CPUs only"):
        Backbone.from_model(model.to("meta"), byte_tokenizer(), name="tiny", quantize="int8")
