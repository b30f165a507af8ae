"""Folders that appear under their name whole or not at all, whatever ends the process."""

from __future__ import annotations

import errno
import os
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from superst_monai.errors import StoreError, SuperstError

_STORE_FILES = ("zarr.json", ".zgroup")


@contextmanager
def new_store(path: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """Yield a hidden sibling folder to fill; it takes the name `path` when the block ends without an error.

    A process that is killed leaves only the hidden folder, which the next write to the same name removes.

    Args:
        path: the store to come; folders above it are made.
        overwrite: replace a store of that name, at the end and in two renames.
    Yields:
        Path that does not exist yet, on the same file system.
    Raises:
        StoreError: the name is taken, the disk is full, or the folder cannot be written.
    """
    partial = _hidden(path, "partial")
    try:
        refuse_existing(path, overwrite=overwrite)
        path.parent.mkdir(parents=True, exist_ok=True)
        remove_leftovers(path)
        yield partial
        refuse_existing(path, overwrite=overwrite)  # another process may have been faster
        move_in(partial, path)
    except SuperstError:
        raise
    except OSError as exc:
        raise cannot_write(path, exc, "nothing was left behind") from exc
    finally:
        shutil.rmtree(partial, ignore_errors=True)


@contextmanager
def scratch_folder(path: Path) -> Iterator[Path]:
    """Yield a hidden folder beside a file to come, for it and what it is made from; it is removed at the end.

    A process that is killed leaves the folder, which the next one for the same name removes.

    Args:
        path: the file to come; folders above it are made.

    Raises:
        StoreError: the disk is full, or the folder cannot be written.
    """
    folder = _hidden(path, "partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        remove_leftovers(path)
        folder.mkdir()
        yield folder
    except SuperstError:
        raise
    except OSError as exc:
        raise cannot_write(path, exc, "nothing was left behind") from exc
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def cannot_write(path: Path, exc: OSError, left: str) -> StoreError:
    """The error of a store that could not be written, in words.

    Args:
        path: of the store.
        exc: what the system said.
        left: what is on disk now.
    """
    full = exc.errno in (errno.ENOSPC, errno.EDQUOT)
    reason = "disk full" if full else exc.strerror or str(exc)
    step = "free some space or choose another disk" if full else "check the folder and its permissions"
    return StoreError(f"{path} cannot be written ({reason}), {left}; {step}.")


def refuse_existing(path: Path, *, overwrite: bool) -> None:
    """Keep what has the name already, unless it is a store and may be replaced.

    Raises:
        StoreError: the name is taken.
    """
    if not (path.exists() or path.is_symlink()):
        return
    if not overwrite:
        raise StoreError(
            f"{path} must not exist yet, but it does; choose another name or pass --overwrite / overwrite=True."
        )
    if path.is_symlink() or not any((path / file).is_file() for file in _STORE_FILES):
        raise StoreError(f"{path} is not a zarr store, so it is not overwritten; choose another name.")


def move_in(partial: Path, path: Path) -> None:
    """Rename a finished folder to its name; what was there is removed, or comes back if that fails."""
    old = _hidden(path, "old")
    if path.exists():
        path.rename(old)
    try:
        partial.rename(path)
    except OSError:
        if old.exists():
            old.rename(path)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _hidden(path: Path, kind: str) -> Path:
    """Hidden sibling of a store that belongs to this process."""
    return path.with_name(f".{path.name}.{kind}-{socket.gethostname()}-{os.getpid()}")


def remove_leftovers(path: Path) -> None:
    """Remove hidden folders that killed processes here left; an old store is kept while it is the only one."""
    host = socket.gethostname()
    for kind in ("partial", "old"):
        for leftover in path.parent.glob(f".{path.name}.{kind}-{host}-*"):
            pid = leftover.name.rpartition("-")[2]
            if pid.isdigit() and not is_alive(int(pid)) and (kind == "partial" or path.exists()):
                shutil.rmtree(leftover, ignore_errors=True)


def is_alive(pid: int) -> bool:
    """Whether another process of that number runs; where the system does not tell (Windows) it is taken to."""
    if pid == os.getpid():
        return False
    if os.name != "posix":
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
