"""GgufModel: a .gguf file as a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from app.errors import InvalidInput, first_line
from app.model.loading.checkpoint import LOADING_ERRORS, check_config, hash_file
from app.model.loading.gguf.config import make_config
from app.model.loading.gguf.file import GgufFile
from app.model.loading.gguf.tokenizer import make_tokenizer
from app.model.loading.gguf.weights import load_weights


class GgufModel:
    """Its fingerprint is the file's sha256, so the same model has the same one under any name."""

    def __init__(self, file: GgufFile) -> None:
        self._file = file

    def read_config(self) -> Any:
        try:
            config = make_config(self._file)
        except LOADING_ERRORS as error:
            raise InvalidInput(
                f"the header of {self._file.path.name} describes no model ({first_line(error)})", param="model"
            ) from error
        check_config(config)
        return config

    def load_tokenizer(self) -> PreTrainedTokenizerFast:
        return make_tokenizer(self._file)

    def load_model(self, config: Any, dtype: torch.dtype) -> tuple[PreTrainedModel, Mapping[str, Any]]:
        return load_weights(self._file, config, dtype)

    def fingerprint(self) -> str:
        return hash_file(self._file.path)
