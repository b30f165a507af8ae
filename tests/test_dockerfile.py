"""The Dockerfile, read and not built: it copies what there is, pins what it installs, and runs as no one special."""

from __future__ import annotations

import configparser
import json
import re
from fnmatch import fnmatch
from pathlib import Path
from typing import NamedTuple

import pytest

CHECKOUT = Path(__file__).resolve().parents[1]


class Instruction(NamedTuple):
    """One instruction, its continuation lines joined."""

    word: str
    text: str


@pytest.fixture(scope="module")
def instructions() -> list[Instruction]:
    """All instructions, in their order."""
    text = re.sub(r"^#.*\n", "", (CHECKOUT / "Dockerfile").read_text(), flags=re.MULTILINE).replace("\\\n", " ")
    return [Instruction(*line.split(maxsplit=1)) for line in text.splitlines() if line.strip()]


@pytest.fixture(scope="module")
def declared() -> configparser.ConfigParser:
    """What setup.cfg declares."""
    parser = configparser.ConfigParser()
    parser.read(CHECKOUT / "setup.cfg", encoding="utf-8")
    return parser


def texts(instructions: list[Instruction], word: str) -> list[str]:
    """Texts of the instructions of a kind."""
    return [found.text for found in instructions if found.word == word]


def is_sent(path: str) -> bool:
    """Whether .dockerignore lets a path of the checkout through: its last pattern that fits decides."""
    sent = True
    for line in (CHECKOUT / ".dockerignore").read_text().splitlines():
        if not line or line.startswith("#"):
            continue
        pattern = line.removeprefix("!")
        parts = [path, *map(str, Path(path).parents)]
        if any(fnmatch(part, pattern.removeprefix("**/")) or fnmatch(part, f"*/{pattern[3:]}") for part in parts):
            sent = line.startswith("!")
    return sent


def test_every_copied_file_is_there_and_is_sent(instructions: list[Instruction]) -> None:
    """Sources of COPY exist in the checkout and are not held back; nothing else of the checkout goes along."""
    copied = [text.split()[:-1] for text in texts(instructions, "COPY") if not text.startswith("--from")]
    sources = sorted(source for group in copied for source in group)
    assert sources == [
        *("LICENSE", "README.md", "bundles", "pyproject.toml"),
        *("requirements/constraints.txt", "setup.cfg", "superst_monai"),
    ]
    assert [source for source in sources if not (CHECKOUT / source).exists() or not is_sent(source)] == []
    held_back = (".git/config", "tests/conftest.py", "demo/run/models/model.pt", "superst_monai/__pycache__/a.pyc")
    assert [path for path in held_back if is_sent(path)] == []
    assert is_sent("superst_monai/data/slide.py")


def test_what_the_package_needs_to_build_is_copied(
    instructions: list[Instruction], declared: configparser.ConfigParser
) -> None:
    """Readme, licence and both package folders are there before the package is installed."""
    copied = " ".join(texts(instructions, "COPY"))
    assert declared["metadata"]["long_description"].removeprefix("file:").strip() in copied
    assert declared["metadata"]["license_files"] in copied
    assert {"bundles", "superst_monai"} <= set(copied.split())


def test_every_installation_is_pinned(instructions: list[Instruction], declared: configparser.ConfigParser) -> None:
    """pip is bound by the constraints, on the Python that they were made for; extras exist; no apt, no `latest`."""
    installs = [text for text in texts(instructions, "RUN") if "pip install" in text]
    assert len(installs) == 2
    assert all("--constraint requirements/constraints.txt" in text for text in installs)
    assert [re.findall(r"\.\[(\w+)\]", text) for text in installs] == [[], ["onnx"]]
    assert "onnx" in declared["options.extras_require"]
    assert "whl/cpu torch" in installs[0]
    bases = {text.split()[0] for text in texts(instructions, "FROM")}
    assert bases == {"python:3.11-slim"}
    assert "with Python 3.11" in (CHECKOUT / "requirements" / "constraints.txt").read_text().splitlines()[0]
    assert not any(word in text for text in texts(instructions, "RUN") for word in ("apt", "sudo", "curl"))


def test_it_runs_the_command_as_an_ordinary_user(
    instructions: list[Instruction], declared: configparser.ConfigParser
) -> None:
    """The user is made and is not root, and nothing more is installed as it; the command is the declared one."""
    words = [found.word for found in instructions]
    assert texts(instructions, "USER") == ["superst"]
    assert any(text.startswith("useradd") and text.endswith(" superst") for text in texts(instructions, "RUN"))
    assert "RUN" not in words[words.index("USER") :]
    assert "COPY" not in words[words.index("USER") :]
    [entry] = map(json.loads, texts(instructions, "ENTRYPOINT"))
    scripts = declared["options.entry_points"]["console_scripts"]
    assert [line.partition("=")[0].strip() for line in scripts.splitlines() if line] == entry
    assert json.loads(texts(instructions, "CMD")[0]) == ["--help"]
