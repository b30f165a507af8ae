"""Files that appear under their name whole or not at all, in a folder that is made for them."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from superst_monai.errors import StoreError


def make_folder(path: Path | str) -> Path:
    """Make a folder, and those above it, if it is not there.

    Raises:
        StoreError: it cannot be made, or a file has the name.
    """
    path = Path(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as exc:
        raise StoreError(f"folder {path} cannot be made ({exc.strerror or exc}); choose another name.") from exc
    return path


def write_whole(path: Path, write: Callable[[Path], object]) -> Path:
    """Let `write` fill a hidden sibling file, which then takes the name `path`; an existing file is replaced.

    Args:
        path: the file to come.
        write: called with the hidden sibling, which has the suffix of `path`.

    Returns:
        `path`.

    Raises:
        StoreError: the folder is missing or not writable, or the disk is full; nothing is left behind.
    """
    partial = path.with_name(f".{path.stem}.partial-{os.getpid()}{path.suffix}")
    try:
        write(partial)
        partial.replace(path)
    except OSError as exc:
        raise StoreError(f"cannot write {path} ({exc.strerror or exc}); check the folder and free space.") from exc
    finally:
        partial.unlink(missing_ok=True)
    return path


def write_text(path: Path, text: str) -> Path:
    """Write a text file, UTF-8; raises as `write_whole` does."""
    return write_whole(path, lambda partial: partial.write_text(text, encoding="utf-8"))


def write_json(path: Path, content: Mapping[str, Any]) -> Path:
    """Write a JSON file without NaN or infinity, which JSON does not know; raises as `write_whole` does."""
    return write_text(path, json.dumps(content, indent=2, allow_nan=False, ensure_ascii=False) + "\n")
