from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from threading import get_ident

import pytest
import torch

from app.model.cpu.compiled_linear import compile_linears
from app.model.kernels import Replacements
from app.model.loading.checkpoint import weights_digest
from tests.support.compiled import needs_compiler
from tests.support.models import tiny_backbone


@needs_compiler
def test_a_model_is_its_own_again_after_a_step_that_failed() -> None:
    model = tiny_backbone().model
    before = weights_digest(model)
    replacements = Replacements(compile_linears(model))
    (first, *_) = replacements.module_to_forward
    with torch.inference_mode(), replacements.in_place():
        assert "forward" in first.__dict__
    with pytest.raises(TypeError), torch.inference_mode(), replacements.in_place():
        model("no ids")
    assert "forward" not in first.__dict__
    assert weights_digest(model) == before


@needs_compiler
def test_other_threads_compute_with_the_modules_own() -> None:
    backbone = tiny_backbone()
    linears = compile_linears(backbone.model)
    rows, called = torch.randn(3, backbone.hidden_size), []
    layer = next(module for module in linears if module.in_features == backbone.hidden_size)

    def noting(given: torch.Tensor) -> torch.Tensor:
        called.append(get_ident())
        return linears[layer](given)

    with ThreadPoolExecutor(1) as pool, torch.inference_mode(), Replacements({layer: noting}).in_place():
        theirs, ours = pool.submit(layer, rows).result(), layer(rows)
    assert called == [get_ident()]
    torch.testing.assert_close(theirs, ours)


def test_gradients_are_never_lost_in_compiled_layers() -> None:
    with pytest.raises(AssertionError), torch.enable_grad(), Replacements().in_place():
        pass
