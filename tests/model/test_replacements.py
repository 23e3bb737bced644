from __future__ import annotations

import pytest
import torch

from app.model.backbone import weights_digest
from app.model.compiled_linear import compile_linears
from app.model.replacements import Replacements
from tests.model.compiled import needs_compiler
from tests.models import tiny_backbone


@needs_compiler
def test_a_model_is_its_own_again_after_a_step_that_failed() -> None:
    model = tiny_backbone().model
    before = weights_digest(model)
    replacements = Replacements(compile_linears(model))
    (first, *_) = replacements.module_to_forward
    with torch.inference_mode(), replacements.in_place():
        assert first.forward is replacements.module_to_forward[first]
    with pytest.raises(TypeError), torch.inference_mode(), replacements.in_place():
        model("no ids")
    assert "forward" not in first.__dict__
    assert weights_digest(model) == before


def test_gradients_are_never_lost_in_compiled_layers() -> None:
    with pytest.raises(AssertionError), torch.enable_grad(), Replacements().in_place():
        pass
