"""Exit codes, messages and silence of every command."""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Callable

import pytest
import typer
from typer.testing import CliRunner

from superst_monai.cli.kernel import add_command, given, if_interrupted, quiet_libraries
from superst_monai.errors import SlideError


def invoke(body: Callable[[], None]) -> tuple[int, str]:
    """Exit code and stderr of a command with this body."""
    app = typer.Typer()
    add_command(app, "demo", body, example="superst demo")
    app.command("other")(lambda: None)
    result = CliRunner().invoke(app, ["demo"])
    return result.exit_code, result.stderr


def test_bad_input_is_one_message_and_code_2() -> None:
    """What the user can mend is one line on stderr, without a traceback."""

    def body() -> None:
        raise SlideError("there is no A.svs; check the path.")

    assert invoke(body) == (2, "superst: there is no A.svs; check the path.\n")


def test_our_fault_shows_the_traceback_and_code_1() -> None:
    """Anything unexpected shows where it happened, and asks for a report."""

    def body() -> None:
        raise LookupError("lost")

    code, said = invoke(body)
    assert code == 1
    assert "Traceback" in said
    assert said.endswith("unexpected LookupError: lost; this is a fault of superst, please report the lines above.\n")


def test_interruption_says_what_was_kept_and_code_130() -> None:
    """Ctrl-C ends with what was kept and how to go on, asked for at that time."""
    kept = "nothing"

    def body() -> None:
        nonlocal kept
        with if_interrupted(lambda: f"{kept} was kept."):
            kept = "epoch 7"
            raise KeyboardInterrupt

    assert invoke(body) == (130, "superst: interrupted. epoch 7 was kept.\n")


def test_an_exit_of_the_command_passes() -> None:
    """A command may end with a code of its own."""

    def body() -> None:
        raise typer.Exit(7)

    assert invoke(body) == (7, "")


def test_libraries_are_silent_while_a_command_runs(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither their warnings nor their log lines show; afterwards all is as before."""
    monkeypatch.delenv("SUPERST_DEBUG", raising=False)
    logger = logging.getLogger("ignite")
    handler = logging.StreamHandler(sys.stderr)
    logger.addHandler(handler)
    try:
        with quiet_libraries():
            warnings.warn("chatter", UserWarning, stacklevel=1)
            logger.error("chatter")
        logger.error("heard again")
    finally:
        logger.removeHandler(handler)
    assert capsys.readouterr().err == "heard again\n"
    with pytest.warns(UserWarning, match="chatter"):
        warnings.warn("chatter", UserWarning, stacklevel=1)


def test_debugging_lets_libraries_speak(monkeypatch: pytest.MonkeyPatch) -> None:
    """With SUPERST_DEBUG=1 nothing is held back."""
    monkeypatch.setenv("SUPERST_DEBUG", "1")
    with quiet_libraries(), pytest.warns(UserWarning, match="chatter"):
        warnings.warn("chatter", UserWarning, stacklevel=1)


def test_options_left_out_are_not_passed() -> None:
    """Zero and false are values; None is not."""
    assert given(a=0, b=None, c=False) == {"a": 0, "c": False}
