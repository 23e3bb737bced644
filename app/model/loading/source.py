"""find_model: what `--model` names. Without torch, so that what cannot be served is refused at once."""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from app.errors import InvalidInput
from app.model.loading.catalog.models import NAME_TO_MODEL, CatalogModel

if TYPE_CHECKING:
    from app.model.loading.gguf.file import GgufFile

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?", re.ASCII)
GGUF = ".gguf"
MAX_NAMED = 5
MAX_CHARS = 100
KINDS = "a name that `softswap models` lists, a folder, a .gguf file, or a hub id such as Qwen/Qwen3-0.6B"


@dataclass(frozen=True)
class ModelSource:
    """Where a model lies.

    Attributes:
        name: what the backbone is called.
        path: a folder in Hugging Face's layout or a .gguf file; None if it lies on the hub, or in its cache.
        entry: of the catalog, if the model was named by it; its file may have to be pulled first.
    """

    name: str
    path: Path | None
    entry: CatalogModel | None = None

    @property
    def must_be_pulled(self) -> bool:
        """Whether it is of the catalog and not here yet."""
        return self.entry is not None and self.path is not None and not self.path.exists()

    def check_revision(self, revision: str | None) -> None:
        """Raises InvalidInput: only the hub has revisions."""
        if revision is not None and self.path is not None:
            raise InvalidInput(
                f"--revision belongs to a hub id, and {self.name} lies on this machine", param="revision"
            )

    def check_fingerprint(self, fingerprint: str) -> None:
        """Raises InvalidInput: the file is not what the catalog names."""
        source = None if self.entry is None else self.entry.source
        if source is not None and source.sha256 != fingerprint:
            raise InvalidInput(
                f"{self.path} is not the file that the catalog calls {self.name}; "
                f"`softswap pull {self.name}` fetches it again",
                param="model",
            )


def find_model(model: str, cache: Path) -> ModelSource:
    """Looks at names and headers only. Args: cache: folder of pulled models.

    Raises:
        InvalidInput: there is no such thing, or it lacks something.
        UnsupportedModel: a .gguf file that cannot be served.
    """
    if entry := NAME_TO_MODEL.get(model):
        return ModelSource(entry.name, entry.path(cache), entry)
    try:
        path = Path(model).expanduser()
        if path.is_dir():
            return _look_into(path)
        if path.is_file():
            return _look_at(path)
    except (OSError, RuntimeError) as error:  # it may not be looked at, is too long, or has a home that is none
        reason = getattr(error, "strerror", None) or error
        raise InvalidInput(f"{model[:MAX_CHARS]} cannot be read ({reason})", param="model") from error
    if model.startswith(("/", ".", "~")) or model.endswith(GGUF) or model.count("/") > 1:
        raise InvalidInput(f"there is no {model}", param="model")
    if meant := _near_name(model):
        raise InvalidInput(f"there is no model {model}; did you mean {meant}?", param="model")
    if not HUB_ID.fullmatch(model):
        raise InvalidInput(f"{model!r} cannot be a model: give {KINDS}", param="model")
    return ModelSource(model, None)


def _near_name(model: str) -> str | None:
    """The catalog's name that was probably meant; its first part is often all that is typed."""
    spelling_to_name = {part: name for name in NAME_TO_MODEL for part in (name.partition("-")[0], name)}
    near = difflib.get_close_matches(model.lower(), spelling_to_name, n=1)
    return spelling_to_name[near[0]] if near else None


def _look_into(folder: Path) -> ModelSource:
    """A folder in Hugging Face's layout, or one that holds a single .gguf file."""
    files = sorted(file for file in folder.iterdir() if file.suffix.lower() == GGUF)
    if not files or (any(folder.glob("*.safetensors")) and (folder / "config.json").is_file()):
        check_folder(folder)
        return ModelSource(folder.resolve().name, folder)
    if len(files) == 1:
        return _look_at(files[0])
    names = ", ".join(file.name for file in files[:MAX_NAMED]) + (", ..." if len(files) > MAX_NAMED else "")
    raise InvalidInput(f"there are {len(files)} .gguf files in {folder}; name one of them: {names}", param="model")


def check_folder(folder: Path) -> None:
    """Raises InvalidInput: it is not one in Hugging Face's layout with safetensors."""
    if not (folder / "config.json").is_file():
        if (folder / "adapter_config.json").is_file():
            raise InvalidInput(
                f"{folder} is an adapter and not a model; `softswap tasks add` publishes it as a task", param="model"
            )
        raise InvalidInput(
            f"there is no config.json in {folder}; a model is a folder with config.json, tokenizer.json and "
            ".safetensors files, or a .gguf file",
            param="model",
        )
    if not any(folder.glob("*.safetensors")):
        raise InvalidInput(
            f"{folder.resolve().name} has no .safetensors weights; pickled weights are never opened", param="model"
        )


def _look_at(file: Path) -> ModelSource:
    if file.suffix.lower() != GGUF:
        raise InvalidInput(f"{file} is a file; name its folder, or a .gguf file", param="model")
    open_gguf(file)
    return ModelSource(file.stem, file)


def open_gguf(path: Path) -> GgufFile:
    """Raises InvalidInput, UnsupportedModel: it is refused before anything slow."""
    from app.model.loading.gguf.architectures import architecture_of
    from app.model.loading.gguf.file import GgufFile
    from app.model.loading.gguf.tokenizer import check_tokenizer

    file = GgufFile.read(path)
    architecture_of(file)
    check_tokenizer(file)
    return file
