"""`superst bundle export` and `superst bundle check` parse, call and show."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from superst_monai.errors import RunError
from superst_monai.inference.deploy.check import Finding
from superst_monai.inference.deploy.export import Agreement

Runner = Callable[..., Any]
StandIn = Callable[..., None]


@pytest.mark.parametrize("overwrite", [False, True])
def test_options_reach_the_export(run: Runner, stand_in: StandIn, tmp_path: Path, overwrite: bool) -> None:
    """Format, file and overwrite are passed on, and the agreement is shown."""
    seen: dict[str, Any] = {}

    def export_network(opened: str, out: Path, **options: Any) -> Agreement:
        seen.update(run=opened, out=out, **options)
        return Agreement((3, 3, 80, 112), 2.5e-7, 1e-6)

    stand_in("superst_monai.inference.run", load_run=lambda path, device: f"{path.name} on {device}")
    stand_in("superst_monai.inference.deploy.export", export_network=export_network)
    (tmp_path / "r").mkdir()
    out = tmp_path / "net.onnx"
    more = ["--overwrite"] if overwrite else []
    done = run("bundle", "export", tmp_path / "r", "--format", "onnx", "--out", out, *more)
    assert done.exit_code == 0, done.output
    assert seen == {"run": "r on cpu", "out": out, "format": "onnx", "overwrite": overwrite}
    assert "at most 2.5e-07 per px, 1.0e-06 of the largest activity, on 3 random images of 80 x 112 px" in done.stdout
    assert f"wrote {out}, {out}.json (how to use it), {out}.genes.csv" in done.stdout


def test_the_check_shows_a_table_and_ends_with_code_2_if_there_are_faults(
    run: Runner, stand_in: StandIn, tmp_path: Path
) -> None:
    """Every finding is a row, with why; faults are said again, all at once, on stderr."""
    findings = [Finding("files", "10 of 11", ["no LICENSE"]), Finding("domain", "none", notes=["no guard"])]

    def require_sound(path: Path, given: list[Finding]) -> None:
        faults = [fault for finding in given for fault in finding.faults]
        if faults:
            raise RunError(f"{path.name}: {faults}")

    stand_in("superst_monai.inference.deploy.check", check_run=lambda _: findings, require_sound=require_sound)
    done = run("bundle", "check", tmp_path)
    assert done.exit_code == 2
    assert f"{tmp_path.name}: ['no LICENSE']" in done.stderr
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in done.stdout.splitlines() if "│" in line]
    assert ["files", "10 of 11", "fault", "no LICENSE"] in rows
    assert ["domain", "none", "note", "no guard"] in rows
    findings.pop(0)
    assert run("bundle", "check", tmp_path).exit_code == 0


def test_a_run_that_is_not_there_is_refused(run: Runner, tmp_path: Path) -> None:
    """Before anything is imported."""
    for words in (("check",), ("export", "--format", "ts", "--out", tmp_path / "a.ts")):
        done = run("bundle", words[0], tmp_path / "no", *words[1:])
        assert done.exit_code == 2
        assert f"there is no {tmp_path / 'no'} (RUN)" in " ".join(done.stderr.split())
