"""What a model's layers hand to attention, seen in a plain forward over two tokens.

A packed forward has no masks: who sees whom follows from the batch, and from the sliding window that a layer names. So
what a layer names must be what its mask says, not only for the few tokens of a trial but as far as positions reach.
Transformers describes masks as functions of two positions, which can be asked about any.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from transformers import PreTrainedModel

from app.errors import UnsupportedModel
from app.model.attention import ATTENTION_NAME, attention_forward
from app.model.kv_cache import KVShape
from app.model.loading.checkpoint import count_positions

PROBE_NAME = "softswap_probe"
MAX_PROBED_POSITIONS = 2**20
KNOWN_TENSORS = {"position_ids", "position_embeddings", "cache_position", "cu_seq_lens_q", "cu_seq_lens_k"}
"""What layers pass on to attention without changing what it computes."""

COUNTING = (torch.arange, torch.cumsum, Tensor.cumsum)
"""What an attention layer would find positions with, other than those it is given."""

MaskFunction = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
"""(batch, head, query position, key position) to whether the key is seen; they broadcast."""


@dataclass(frozen=True)
class AttentionLayers:
    """Attributes:
    kv_shape: what a token leaves in the cache.
    windows: of each layer the tokens that it sees, itself included; None for all that the model has positions for.
    """

    kv_shape: KVShape
    windows: tuple[int | None, ...]

    @property
    def window(self) -> int | None:
        """The smallest."""
        return min((window for window in self.windows if window is not None), default=None)


@dataclass(frozen=True)
class _Handed:
    """By one layer to attention."""

    keys: torch.Size
    values: torch.Size
    mask: Tensor | None
    window: int | None


class _CountingWatch(TorchFunctionMode):
    """Notes the modules in which tokens are counted, as far as these modules have a layer's index."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.modules: set[nn.Module | None] = set()
        self._innermost: nn.Module | None = None
        indexed = [module for module in model.modules() if hasattr(module, "layer_idx")]
        self._hooks = [module.register_forward_pre_hook(self._note) for module in indexed]

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in COUNTING:
            self.modules.add(self._innermost)
        return func(*args, **(kwargs or {}))

    def _note(self, module: nn.Module, _: Any) -> None:
        self._innermost = module

    def __exit__(self, *raised: Any) -> None:
        for hook in self._hooks:
            hook.remove()
        super().__exit__(*raised)


@dataclass(eq=False)
class _Probe:
    """Attention that takes notes, and the masks it is given.

    Attributes:
        unknown: names of tensors that a layer passes on and that nothing here computes with.
        is_counting: an attention layer finds positions of its own. In a packed batch these are others, and whether it
            matters may show at far positions only.
    """

    layer_to_calls: dict[int, list[_Handed]] = field(default_factory=dict)
    masks: list[tuple[Tensor, MaskFunction]] = field(default_factory=list)
    unknown: set[str] = field(default_factory=set)
    is_counting: bool = False
    _watch: _CountingWatch | None = None

    def attend(
        self, module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
    ) -> Any:
        handed = _Handed(key.shape, value.shape, attention_mask, kwargs.get("sliding_window"))
        self.layer_to_calls.setdefault(module.layer_idx, []).append(handed)
        self.is_counting |= self._watch is not None and module in self._watch.modules
        self.unknown |= {name for name, each in kwargs.items() if isinstance(each, Tensor)} - KNOWN_TENSORS
        return attention_forward(module, query, key, value, attention_mask, **kwargs)

    def make_mask(self, *args: Any, **kwargs: Any) -> Tensor:
        from transformers.masking_utils import sdpa_mask

        mask: Tensor = sdpa_mask(*args, **{**kwargs, "allow_is_causal_skip": False})
        self.masks.append((mask, kwargs["mask_function"]))
        return mask

    def function_of(self, mask: Tensor) -> MaskFunction | None:
        """Of a mask that transformers made, or of a part of it; None if the model made it itself."""
        return next((function for made, function in self.masks if made.data_ptr() == mask.data_ptr()), None)

    @contextmanager
    def in_place(self, model: PreTrainedModel) -> Iterator[None]:
        from transformers import AttentionInterface
        from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

        AttentionInterface.register(PROBE_NAME, self.attend)
        ALL_MASK_ATTENTION_FUNCTIONS.register(PROBE_NAME, self.make_mask)
        model.set_attn_implementation(PROBE_NAME)
        self._watch = _CountingWatch(model)
        try:
            with self._watch:
                yield
        finally:
            self._watch = None  # it holds modules, and transformers holds this method
            model.set_attn_implementation(ATTENTION_NAME)


def probe_layers(model: PreTrainedModel) -> AttentionLayers:
    """Raises:
    UnsupportedModel: a layer does not call the attention interface, or more than once; layers differ, or keys and
        values differ in size: such a cache cannot be kept in blocks of one shape. Or a layer's mask hides what the
        layer does not tell, which a packed forward would show.
    """
    kind, probe = model.config.model_type, _Probe()
    with probe.in_place(model), torch.no_grad():
        try:
            model(input_ids=torch.zeros((1, 2), dtype=torch.int64, device=model.device), use_cache=False)
        except UnsupportedModel:
            raise
        except Exception as error:
            raise UnsupportedModel(f"{kind} does not compute a plain text", param="model") from error
    num_layers = model.config.get_text_config().num_hidden_layers
    if sorted(probe.layer_to_calls) != list(range(num_layers)):
        raise UnsupportedModel(f"{kind} has layers that keep no keys and values per token", param="model")
    if any(len(calls) > 1 for calls in probe.layer_to_calls.values()):
        raise UnsupportedModel(f"{kind} computes some layers more than once for a token", param="model")
    if probe.is_counting:
        raise UnsupportedModel(f"{kind} counts tokens inside of its attention layers", param="model")
    if probe.unknown:
        named = ", ".join(sorted(probe.unknown))
        raise UnsupportedModel(f"{kind} gives attention something softswap does not compute: {named}", param="model")
    handed = [probe.layer_to_calls[index][0] for index in range(num_layers)]
    shapes = {shape for each in handed for shape in (each.keys, each.values)}
    if len(shapes) != 1:
        raise UnsupportedModel(f"{kind} has keys and values of different sizes", param="model")
    (shape,) = shapes
    windows = tuple(_window_of(model, probe, each) for each in handed)
    return AttentionLayers(KVShape(num_layers=num_layers, num_kv_heads=shape[1], head_dim=shape[3]), windows)


def _window_of(model: PreTrainedModel, probe: _Probe, handed: _Handed) -> int | None:
    """The window that a layer tells, held against its mask. Raises UnsupportedModel.

    A mask that the model made itself shows no more than a few tokens; then there must not be a window at all.
    """
    num_positions = min(count_positions(model.config), MAX_PROBED_POSITIONS)
    window = None if handed.window is None or handed.window >= num_positions else handed.window
    function = None if handed.mask is None else probe.function_of(handed.mask)
    try:
        is_told = _says(function, window, num_positions) if function else not _has_window(model.config)
    except (IndexError, RuntimeError, TypeError, ValueError):  # it knows the trial's tokens only
        is_told = False
    if is_told:
        return window
    message = f"{model.config.model_type} does not tell its attention layers what they see, such as a sliding window"
    raise UnsupportedModel(message, param="model")


def _says(function: MaskFunction, window: int | None, num_positions: int) -> bool:
    """Whether the mask is causal, and has this window, at the first positions, around the window and at the last."""
    edge = window or num_positions // 2
    asked = {0, 1, edge - 1, edge, edge + 1, num_positions // 2, num_positions - 1}
    nothing = torch.zeros(1, 1, 1, 1, dtype=torch.int64)
    keys = torch.arange(num_positions).view(1, 1, 1, -1)
    for position in sorted(each for each in asked if 0 <= each < num_positions):
        wanted = (keys <= position) if window is None else (keys <= position) & (keys > position - window)
        seen = function(nothing, nothing, torch.full_like(nothing, position), keys)
        if not torch.equal(torch.as_tensor(seen).expand_as(wanted), wanted):
            return False
    return True


def _has_window(config: Any) -> bool:
    """Whether some layer of the model is said to see less than all positions."""
    text_config = config.get_text_config()
    layer_types = getattr(text_config, "layer_types", None)
    if layer_types:
        return "sliding_attention" in layer_types
    window = getattr(text_config, "sliding_window", None)
    is_used = getattr(text_config, "use_sliding_window", True)
    return window is not None and is_used and window < count_positions(config)
