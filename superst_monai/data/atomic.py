"""Folders that appear under their name whole or not at all, whatever ends the process."""

from __future__ import annotations

import errno
import os
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from superst_monai.errors import StoreError

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
    hidden = f"{socket.gethostname()}-{os.getpid()}"
    partial, old = (path.with_name(f".{path.name}.{kind}-{hidden}") for kind in ("partial", "old"))
    try:
        _refuse_existing(path, overwrite=overwrite)
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(path)
        yield partial
        _refuse_existing(path, overwrite=overwrite)  # another process may have been faster
        _move_in(partial, path, old)
    except StoreError:
        raise
    except OSError as exc:
        full = exc.errno in (errno.ENOSPC, errno.EDQUOT)
        reason = "disk full" if full else exc.strerror or str(exc)
        step = "free some space or choose another disk" if full else "check the folder and its permissions"
        raise StoreError(f"{path} cannot be written ({reason}), nothing was left behind; {step}.") from exc
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _refuse_existing(path: Path, *, overwrite: bool) -> None:
    """Keep what has the name already, unless it is a store and may be replaced."""
    if not (path.exists() or path.is_symlink()):
        return
    if not overwrite:
        raise StoreError(
            f"{path} must not exist yet, but it does; choose another name or pass --overwrite / overwrite=True."
        )
    if path.is_symlink() or not any((path / file).is_file() for file in _STORE_FILES):
        raise StoreError(f"{path} is not a zarr store, so it is not overwritten; choose another name.")


def _move_in(partial: Path, path: Path, old: Path) -> None:
    """Rename the finished folder to its name; what was there comes back if that fails."""
    if path.exists():
        path.rename(old)
    try:
        partial.rename(path)
    except OSError:
        if old.exists():
            old.rename(path)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _remove_leftovers(path: Path) -> None:
    """Remove hidden folders that killed processes here left; an old store is kept while it is the only one."""
    host = socket.gethostname()
    for kind in ("partial", "old"):
        for leftover in path.parent.glob(f".{path.name}.{kind}-{host}-*"):
            pid = leftover.name.rpartition("-")[2]
            if pid.isdigit() and not _is_alive(int(pid)) and (kind == "partial" or path.exists()):
                shutil.rmtree(leftover, ignore_errors=True)


def _is_alive(pid: int) -> bool:
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
