"""How every command runs: exit codes, one clear message, no chatter of libraries, and an example in its help."""

from __future__ import annotations

import functools
import logging
import os
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import typer

from superst_monai.errors import SuperstError

BAD_INPUT, OUR_FAULT, INTERRUPTED = 2, 1, 130

Body = Callable[..., None]


def add_command(app: typer.Typer, name: str, body: Body, *, example: str) -> None:
    """Register a function as a command whose help ends with an example and whose errors become exit codes."""
    app.command(name, epilog=f"Example: {example}", no_args_is_help=name != "demo")(guarded(body))


def guarded(body: Body) -> Body:
    """Turn what a command raises into a message on stderr and an exit code.

    2 for what the user can mend (`SuperstError`), 130 when interrupted, 1 with the traceback for everything else.
    Libraries stay silent unless the environment has SUPERST_DEBUG=1.
    """

    @functools.wraps(body)
    def run(*args: Any, **options: Any) -> None:
        try:
            with quiet_libraries():
                body(*args, **options)
        except typer.Exit:
            raise
        except SuperstError as exc:
            complain(" ".join([str(exc), *getattr(exc, "__notes__", [])]))
            raise typer.Exit(BAD_INPUT) from exc
        except KeyboardInterrupt as exc:
            notes = getattr(exc, "__notes__", [])
            complain(" ".join(["interrupted.", *notes]))
            raise typer.Exit(INTERRUPTED) from exc
        except Exception as exc:
            traceback.print_exc(file=sys.stderr)
            complain(
                f"unexpected {type(exc).__name__}: {exc}; this is a fault of superst, please report the lines above."
            )
            raise typer.Exit(OUR_FAULT) from exc

    return run


def complain(message: str) -> None:
    """Write an error message to stderr."""
    typer.echo(typer.style("superst: ", fg=typer.colors.RED, bold=True) + message, err=True)


@contextmanager
def if_interrupted(advice: Callable[[], str]) -> Iterator[None]:
    """Let an interruption of the block say what was kept and how to go on.

    Args:
        advice: asked when it happens, since it depends on how far the work came.
    """
    try:
        yield
    except KeyboardInterrupt as exc:
        exc.add_note(advice())
        raise


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Keep what libraries log or warn off the terminal while a command runs; what goes wrong is raised."""
    if os.environ.get("SUPERST_DEBUG") == "1":
        yield
        return
    before = logging.root.manager.disable
    with warnings.catch_warnings():
        for category in (DeprecationWarning, FutureWarning, UserWarning):
            warnings.simplefilter("ignore", category)
        logging.disable(logging.ERROR)
        try:
            yield
        finally:
            logging.disable(before)


def given(**options: Any) -> dict[str, Any]:
    """The options that the user gave; the others keep the defaults of what is called."""
    return {name: value for name, value in options.items() if value is not None}
