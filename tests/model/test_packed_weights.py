from __future__ import annotations

import copy
import threading

import pytest
import torch
from torch import nn

from app.model.backbone import weights_digest
from app.model.packed_weights import NUM_BUCKETS, PackedGroup, PackedWeights, bucket, packable_layers
from tests.model.packed import can_pack, needs_onednn, pack_everywhere
from tests.models import ARCHITECTURE_TO_CONFIG, tiny_backbone

DTYPE_TO_ERROR = {torch.float32: 1e-5, torch.bfloat16: 1e-2}


@needs_onednn
@pytest.mark.parametrize("dtype", DTYPE_TO_ERROR)
@pytest.mark.parametrize("is_biased", [False, True])
@pytest.mark.parametrize(("widths", "num_inputs"), [((48,), 32), ((1,), 7), ((576, 192, 192), 576), ((259, 3), 32)])
def test_a_packed_product_is_the_plain_one(
    widths: tuple[int, ...], num_inputs: int, is_biased: bool, dtype: torch.dtype
) -> None:
    if not can_pack(dtype):
        pytest.skip(f"this CPU does not compute in {dtype}")
    torch.manual_seed(0)
    group = PackedGroup([nn.Linear(num_inputs, width, bias=is_biased).to(dtype) for width in widths])
    for num_rows in (1, 2, 3, 17, 64, 65, 600):
        inputs = torch.randn(1, num_rows, num_inputs).to(dtype)
        with torch.inference_mode():
            products = [group.forward(place, inputs) for place in range(len(widths))]
        for found, wanted, width in zip(products, group.multiply_plainly(inputs), widths, strict=True):
            assert found.dtype == dtype
            assert found.shape == wanted.shape == (1, num_rows, width)
            assert (found.float() - wanted.float()).norm() < DTYPE_TO_ERROR[dtype] * wanted.float().norm()


@needs_onednn
def test_each_number_of_rows_goes_the_way_of_its_bucket(monkeypatch: pytest.MonkeyPatch) -> None:
    assert [bucket(rows) for rows in (0, 1, 2, 3, 4, 5, 8, 9, 512, 513, 10**6)] == [0, 0, 1, 2, 2, 3, 3, 4, 9, 9, 9]
    group = PackedGroup([nn.Linear(4, 4)], is_faster=tuple(i == 2 for i in range(NUM_BUCKETS)))
    packed: list[int] = []
    monkeypatch.setattr(group, "multiply", lambda inputs: (packed.append(inputs.shape[1]),))
    with torch.inference_mode():
        for num_rows in (2, 3, 4, 5):
            group.forward(0, torch.randn(1, num_rows, 4))
    assert packed == [3, 4]


@needs_onednn
def test_layers_of_a_group_are_multiplied_once_for_each_input_in_whatever_order(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    group = PackedGroup([nn.Linear(4, width) for width in (3, 5, 2)])
    one, other = torch.randn(2, 1, 6, 4)
    wanted = {id(inputs): group.multiply_plainly(inputs) for inputs in (one, other)}
    multiply, products = group.multiply, []
    monkeypatch.setattr(group, "multiply", lambda inputs: products.append(1) or multiply(inputs))
    calls = [(0, one), (1, one), (2, one), (0, other), (0, one), (2, one), (1, other), (1, other)]
    with torch.inference_mode():
        for place, inputs in calls:
            torch.testing.assert_close(group.forward(place, inputs), wanted[id(inputs)][place])
    assert len(products) == 4  # one; other; one, ended by its last layer; other


@needs_onednn
@pytest.mark.parametrize("architecture", ARCHITECTURE_TO_CONFIG)
def test_a_model_takes_packed_weights_for_a_while_and_stays_as_it_was(architecture: str) -> None:
    model = tiny_backbone(architecture).model
    packed_weights, before = pack_everywhere(model), weights_digest(model)
    ids = torch.arange(3, 23)[None]
    with torch.inference_mode():
        plain = model(input_ids=ids, use_cache=False).logits
        with packed_weights.in_place():
            packed = model(input_ids=ids, use_cache=False).logits
        again = model(input_ids=ids, use_cache=False).logits
    assert packed_weights.num_layers == sum(type(module) is nn.Linear for module in model.modules()) > 0
    torch.testing.assert_close(packed, plain, atol=1e-4, rtol=1e-4)
    assert torch.equal(again, plain)
    assert weights_digest(model) == before
    assert not any("forward" in module.__dict__ for module in model.modules())
    assert packed_weights.num_bytes == sum(layer.weight.nbytes for layer in packable_layers(model))


@needs_onednn
def test_gradients_go_through_the_plain_weights_even_while_others_are_in_place() -> None:
    model = copy.deepcopy(tiny_backbone("llama").model)
    embeds = torch.randn(1, 5, 32, requires_grad=True)

    def gradient() -> torch.Tensor:
        loss = model(inputs_embeds=embeds, use_cache=False).logits.square().mean()
        return torch.autograd.grad(loss, embeds)[0]

    wanted, found = gradient(), []
    with pack_everywhere(model).in_place():
        thread = threading.Thread(target=lambda: found.append(gradient()))
        thread.start()
        thread.join()
    assert torch.equal(found[0], wanted)


@needs_onednn
def test_the_model_is_itself_again_after_a_failure() -> None:
    model = copy.deepcopy(tiny_backbone("llama").model)
    with pytest.raises(RuntimeError), pack_everywhere(model).in_place():
        raise RuntimeError
    assert not any("forward" in module.__dict__ for module in model.modules())


def test_what_cannot_be_packed_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    assert packable_layers(nn.Linear(4, 4).double()) == []
    assert packable_layers(nn.Linear(4, 4).half()) == []
    assert packable_layers(nn.Linear(4, 4, device="meta")) == []
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert packable_layers(nn.Linear(4, 4)) == []
    assert PackedWeights().num_bytes == 0
