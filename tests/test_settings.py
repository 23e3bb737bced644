from __future__ import annotations

import re
from pathlib import Path

import pytest
from pydantic import ValidationError

from app.errors import InvalidInput
from app.settings import MIN_KEY_CHARS, ClientSettings, Settings, demo_tasks

DOCS = Path(__file__).parent.parent / "docs" / "settings.md"
KEY = "0123456789abcdef"


def test_the_environment_is_read_under_the_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOFTSWAP_PORT", "9000")
    monkeypatch.setenv("SOFTSWAP_HOST", "::1")
    monkeypatch.setenv("SOFTSWAP_DTYPE", "")
    settings = Settings(port=9001)
    assert (settings.port, settings.host, settings.dtype) == (9001, "::1", "auto")


def test_tasks_are_kept_where_the_registry_says_or_else_in_ones_own_data(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("SOFTSWAP_REGISTRY", raising=False)
    monkeypatch.delenv("XDG_DATA_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    own = tmp_path / ".local" / "share" / "softswap" / "prompts"
    assert (Settings().registry_folder, Settings().state_folder) == (own, own / ".state")
    assert Settings().tasks_below == demo_tasks()
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    assert Settings().registry_folder == tmp_path / "data" / "softswap" / "prompts"
    monkeypatch.setenv("SOFTSWAP_REGISTRY", str(tmp_path / "named"))
    assert (Settings().registry_folder, Settings().tasks_below) == (tmp_path / "named", None)


def test_keys_come_from_both_sources(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text(f"# a comment\n\n  {KEY}-file\n")
    monkeypatch.setenv("SOFTSWAP_API_KEYS", f"{KEY}-one,{KEY}-two")
    assert Settings(api_keys_file=file).read_api_keys() == (f"{KEY}-one", f"{KEY}-two", f"{KEY}-file")


@pytest.mark.parametrize("content", ["", "# nothing but a comment", "short"])
def test_a_file_without_a_good_key_is_refused(content: str, tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text(content)
    with pytest.raises(InvalidInput):
        Settings(api_keys_file=file).read_api_keys()
    with pytest.raises(InvalidInput):
        Settings(api_keys_file=tmp_path / "missing").read_api_keys()


@pytest.mark.parametrize(
    ("text", "size"),
    [("65536", 65536), ("512MiB", 2**29), ("4GB", 4 * 10**9), ("1.5 GiB", 3 * 2**29), ("70kb", 70_000)],
)
def test_memory_is_written_as_people_write_it(text: str, size: int) -> None:
    assert Settings(kv_cache_memory=text).kv_cache_memory == size


@pytest.mark.parametrize("text", ["", "GB", "4XB", "-1GB", "inf", "nan", "1e400"])
def test_memory_that_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(ValidationError):
        Settings(kv_cache_memory=text)


@pytest.mark.parametrize(
    "changes", [{"port": -1}, {"port": 65536}, {"dtype": "int8"}, {"log_level": "loud"}, {"nonsense": 1}]
)
def test_a_setting_that_cannot_be_is_refused(changes: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        Settings(**changes)


def test_every_setting_is_documented() -> None:
    rows = re.findall(r"^\| `SOFTSWAP_([A-Z_]+)` \|.*\| (.+) \|$", DOCS.read_text(), re.MULTILINE)
    fields = {**Settings.model_fields, **ClientSettings.model_fields}
    assert [(name.lower(), text) for name, text in rows] == [
        (name, field.description) for name, field in fields.items()
    ]
    assert f"of {MIN_KEY_CHARS} characters" in fields["api_keys"].description


def test_the_page_about_gpus_and_the_image_ask_for_the_torch_that_the_package_needs() -> None:
    root = DOCS.parents[1]
    [needed] = re.findall(r'"(torch>=[^"]+)"', (root / "pyproject.toml").read_text())
    for path in (root / "Dockerfile", DOCS.parent / "gpu.md"):
        assert re.findall(r'"(torch>=[^"]+)"', path.read_text()) == [needed], path.name
    assert "(docs/gpu.md)" in (root / "README.md").read_text()
