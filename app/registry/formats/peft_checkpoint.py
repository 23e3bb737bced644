"""PEFT's prompt-learning checkpoints, in and out: adapter_config.json and adapter_model.safetensors.

Layouts are those of peft 0.21 (`PeftModel.get_prompt`, `get_peft_model_state_dict`). Only JSON and safetensors are
read; no class, tokenizer or model that a configuration names is ever loaded.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from typing import Annotated, Any, NoReturn, TypeAlias

import safetensors.torch
import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from app.errors import InvalidInput
from app.model.backbone import Backbone
from app.registry.formats.json_file import describe_fault
from app.registry.formats.safetensors_file import DTYPES, narrowest_dtype, open_tensors, tensor_names
from app.task_prompt import MAX_VIRTUAL_TOKENS, PromptKind, TaskPrompt

CONFIG_FILE = "adapter_config.json"
TENSOR_FILE = "adapter_model.safetensors"
TENSOR_NAME = "prompt_embeddings"
MAX_CONFIG_BYTES = 2**20
PEFT_TYPE_TO_KIND = {
    "PROMPT_TUNING": PromptKind.EMBEDDINGS,
    "P_TUNING": PromptKind.EMBEDDINGS,
    "MULTITASK_PROMPT_TUNING": PromptKind.EMBEDDINGS,
    "CPT": PromptKind.EMBEDDINGS,
    "PREFIX_TUNING": PromptKind.KV,
    "CARTRIDGE": PromptKind.KV,
}
_Size: TypeAlias = Annotated[int, Field(ge=1, le=2**31)] | None
_MULTITASK_NAMES = {TENSOR_NAME, "prefix_task_cols", "prefix_task_rows"}


class PeftConfig(BaseModel):
    """What an adapter_config.json says about a prompt. Fields that old files leave out are None.

    Attributes:
        num_transformer_submodules: 2 for encoder-decoders, whose files hold every virtual token twice.
        token_dim: width of a row; for keys and values, of one layer's keys.
    """

    model_config = ConfigDict(strict=True, frozen=True)

    peft_type: Any = None
    task_type: Any = None
    num_virtual_tokens: Annotated[int, Field(ge=1, le=MAX_VIRTUAL_TOKENS)]
    num_transformer_submodules: _Size = None
    token_dim: _Size = None
    num_layers: _Size = None
    num_attention_heads: _Size = None
    base_model_name_or_path: Any = None
    prompt_tuning_init_text: Any = None

    @classmethod
    def decode(cls, content: bytes) -> PeftConfig:
        """Raises InvalidInput: not a prompt, not for generating text, or not readable; names the field."""
        if len(content) > MAX_CONFIG_BYTES:
            _refuse(f"{CONFIG_FILE} may have at most {MAX_CONFIG_BYTES} bytes", CONFIG_FILE)
        try:
            return cls.model_validate_json(content)
        except ValidationError as error:
            field, fault = describe_fault(error)
            raise InvalidInput(f"{CONFIG_FILE}: {fault}", param=field or CONFIG_FILE) from error

    @model_validator(mode="before")
    @classmethod
    def _require_prompt(cls, fields: Any) -> Any:
        """First, so that an adapter of another kind is refused for that, whatever else it says or leaves out."""
        if not isinstance(fields, dict):
            _refuse(f"{CONFIG_FILE} must be a JSON object", CONFIG_FILE)
        if fields.get("peft_type") not in list(PEFT_TYPE_TO_KIND):
            known = ", ".join(PEFT_TYPE_TO_KIND)
            _refuse(f"only prompts can be served ({known}); other adapters change the weights", "peft_type")
        if fields.get("task_type") not in (None, "CAUSAL_LM", "SEQ_2_SEQ_LM"):
            _refuse("the checkpoint is for a classification head, not for generating text", "task_type")
        if fields.get("modules_to_save"):
            _refuse("the checkpoint changes modules of the model besides its prompt", "modules_to_save")
        return fields

    @property
    def num_submodules(self) -> int:
        return self.num_transformer_submodules or (2 if self.task_type == "SEQ_2_SEQ_LM" else 1)

    @property
    def kind(self) -> PromptKind:
        return PEFT_TYPE_TO_KIND[self.peft_type]

    @property
    def provenance(self) -> dict[str, Any]:
        said = {"base_model": self.base_model_name_or_path, "init_text": self.prompt_tuning_init_text}
        texts = {name: text[:500] for name, text in said.items() if text and isinstance(text, str)}
        return {"source": "peft", "peft_type": self.peft_type, **texts}

    def require_backbone(self, backbone: Backbone) -> None:
        """Raises InvalidInput that names the first field in which the checkpoint is for another model."""
        needed = {"token_dim": backbone.hidden_size}
        if self.kind is PromptKind.KV:
            shape = backbone.kv_shape
            num_heads, width = shape.num_kv_heads, shape.num_kv_heads * shape.head_dim
            needed = {"num_layers": shape.num_layers, "num_attention_heads": num_heads, "token_dim": width}
        for name, actual in needed.items():
            declared = getattr(self, name)
            if declared is not None and declared != actual:
                _refuse(f"{name} is {declared}, but {backbone.name} needs {actual}", name)


def read_rows(config: PeftConfig, tensors: bytes, *, source_task: int | None = None) -> torch.Tensor:
    """The rows that precede a text: (num_virtual_tokens, width), in the file's dtype.

    P_TUNING files hold the encoder's output and CPT files the sum with the delta, so they need no computation. Only the
    first half of an encoder-decoder's rows is used, as in PEFT.

    Args: source_task: which task of MULTITASK_PROMPT_TUNING; None if the file has only one.

    Raises InvalidInput: the file is not what the configuration says.
    """
    is_multitask = config.peft_type == "MULTITASK_PROMPT_TUNING"
    rows = _read_tensors(tensors, DTYPES, is_multitask=is_multitask, source_task=source_task)
    num_rows = config.num_virtual_tokens * (1 if config.kind is PromptKind.KV else config.num_submodules)
    if rows.ndim != 2 or rows.shape[0] != num_rows:
        _refuse(f"the tensor must have {num_rows} rows, as num_virtual_tokens says", "num_virtual_tokens")
    return rows[: config.num_virtual_tokens]


def read_bare_rows(tensors: bytes, dtypes: Collection[str], *, source_task: int | None = None) -> torch.Tensor:
    """The same of a file without a configuration: its tensors' names say what it holds. Raises InvalidInput."""
    is_multitask = tensor_names(tensors) == _MULTITASK_NAMES
    return _read_tensors(tensors, dtypes, is_multitask=is_multitask, source_task=source_task)


def _read_tensors(
    content: bytes, dtypes: Collection[str], *, is_multitask: bool, source_task: int | None
) -> torch.Tensor:
    if source_task is not None and not is_multitask:
        _refuse("only a MULTITASK_PROMPT_TUNING checkpoint holds several tasks to choose from", "source_task")
    stored = open_tensors(content, names=_MULTITASK_NAMES if is_multitask else {TENSOR_NAME}, dtypes=dtypes)
    tensor = {name: each.read() for name, each in stored.items()}
    return _rows_of_task(tensor, source_task) if is_multitask else tensor[TENSOR_NAME]


def _rows_of_task(tensor: dict[str, torch.Tensor], index: int | None) -> torch.Tensor:
    """The shared prompt times what is one task's own (Wang et al. 2023, section 3.1): (num_rows, width).

    Computed in float32, as PEFT does, which loads its own weights so.
    """
    shared, columns, rows = tensor[TENSOR_NAME], tensor["prefix_task_cols"], tensor["prefix_task_rows"]
    num_tasks, num_ranks = columns.shape[0], columns.shape[-1]
    (num_rows, width) = shared.shape if shared.ndim == 2 else (0, 0)
    if columns.shape != (num_tasks, num_rows, num_ranks) or rows.shape != (num_tasks, num_ranks, width):
        _refuse("prefix_task_cols and prefix_task_rows must match prompt_embeddings", "prefix_task_cols")
    if index is None and num_tasks > 1:
        _refuse(
            f"the checkpoint holds {num_tasks} tasks: say which with source_task, from 0 to {num_tasks - 1} "
            "(softswap tasks add FOLDER --task NAME --source-task 0)",
            "source_task",
        )
    if not 0 <= (index or 0) < num_tasks:
        _refuse(f"the checkpoint's tasks are 0 to {num_tasks - 1}", "source_task")
    return shared.float() * (columns[index or 0].float() @ rows[index or 0].float())


def encode_checkpoint(prompt: TaskPrompt, backbone: Backbone) -> dict[str, bytes]:
    """Names to contents of files that `PeftModel.from_pretrained` loads; none for a text, which PEFT cannot hold.

    The values are stored exactly, in half the room if bfloat16 or float16 can hold them, which PEFT loads too.
    """
    if prompt.rows is None:
        return {}
    fields: dict[str, Any] = {
        "base_model_name_or_path": backbone.name,
        "inference_mode": True,
        "num_layers": backbone.kv_shape.num_layers,
        "num_transformer_submodules": 1,
        "num_virtual_tokens": prompt.num_virtual_tokens,
        "task_type": "CAUSAL_LM",
    }
    if prompt.kind is PromptKind.EMBEDDINGS:
        fields |= {"peft_type": "PROMPT_TUNING", "token_dim": backbone.hidden_size}
    else:
        num_heads, width = backbone.kv_shape.num_kv_heads, backbone.kv_shape.num_kv_heads * backbone.kv_shape.head_dim
        fields |= {"num_attention_heads": num_heads, "token_dim": width, "encoder_hidden_size": width}
        fields |= {"peft_type": "PREFIX_TUNING", "prefix_projection": False}
    config = json.dumps(fields, indent=2, sort_keys=True) + "\n"
    stored = prompt.rows.to(narrowest_dtype(prompt.rows))
    tensors = safetensors.torch.save({TENSOR_NAME: stored}, metadata={"format": "pt"})
    return {CONFIG_FILE: config.encode(), TENSOR_FILE: tensors}


def _refuse(message: str, param: str) -> NoReturn:
    raise InvalidInput(message, param=param)
