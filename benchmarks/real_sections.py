"""Benchmark on public sections: prepare, train, predict, evaluate and draw by the command line, timed stage by stage.

    python benchmarks/real_sections.py her2st --data DATA --out OUT --minutes 20

Each stage is a process of its own, so that its peak memory is its own. OUT holds what the stages write, the log of
each and `benchmark.json`. Without a case all three run, each in OUT/CASE. docs/benchmarks.md describes DATA.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from superst_monai.analysis.files import write_json
from superst_monai.data.store import read_section

CHECKOUT = Path(__file__).resolve().parents[1]
GENES = ("ERBB2", "EPCAM", "LUM", "PTPRC")
BULB_GENES = ("ENSMUSG00000045573.9", "ENSMUSG00000024871.10", "ENSMUSG00000021803.9")  # Penk, Doc2g, Cdhr1


@dataclass(frozen=True)
class Case:
    """A benchmark.

    Attributes:
        train: names of the training sections.
        test: name of the section that is predicted and compared.
        image: file below DATA to predict from, instead of the prepared section.
        needs: files and folders below DATA.
        prepare: arguments of `superst prepare` for a section, from DATA and its name.
        genes: to draw, those of them that the run models.
        options: of `superst train`.
    """

    train: tuple[str, ...]
    test: str
    needs: tuple[str, ...]
    prepare: Callable[[Path, str], list[str]]
    genes: tuple[str, ...] = GENES
    options: tuple[str, ...] = ()
    image: str = ""


@dataclass(frozen=True)
class Stage:
    """What one stage took: wall-clock [s] and the peak resident memory of its process [MiB]."""

    name: str
    command: str
    seconds: float
    peak_rss_mib: float


def her2st(data: Path, name: str) -> list[str]:
    """A section of the HER2+ breast tumour, on an ST array."""
    folder = data / "her2st"
    files = ["--counts", folder / f"{name}.tsv.gz", "--image", folder / f"{name}.jpg"]
    return ["st", *map(str, [*files, "--spots", folder / f"{name}_selection.tsv"])]


def visium(data: Path, _: str) -> list[str]:
    """The Visium section of a breast tumour."""
    return ["visium", str(data / "visium_brca" / "outs")]


def bulb(data: Path, name: str) -> list[str]:
    """A section of the mouse olfactory bulb; neither file states the resolution."""
    folder = data / "mob"
    sizes = ["--slide-mpp", "4.15", "--spot-diameter-um", "100", "--mpp", "4.15"]
    return ["h5ad", str(folder / f"{name}.h5ad"), "--image", str(folder / f"{name}.jpg"), *sizes]


CASES = {
    "her2st": Case(
        train=("C2", "C6"),
        test="C3",
        needs=tuple(f"her2st/{k}{end}" for k in ("C2", "C3", "C6") for end in (".jpg", ".tsv.gz", "_selection.tsv")),
        prepare=her2st,
        options=("--covariate", "section=section"),
        image="her2st/C3.jpg",
    ),
    "visium_brca": Case(
        train=("brca",),
        test="brca",
        needs=("visium_brca/outs",),
        prepare=visium,
    ),
    "mob": Case(
        train=("MOB1", "MOB2"),
        test="MOB3",
        needs=tuple(f"mob/MOB{i}{end}" for i in (1, 2, 3) for end in (".h5ad", ".jpg")),
        prepare=bulb,
        genes=BULB_GENES,
    ),
}


def run_stage(out: Path, name: str, words: list[str]) -> Stage:
    """Run `superst` with some words and log what it says; stop the benchmark where it fails."""
    log, command = out / f"{name}.log", [sys.executable, "-m", "superst_monai.cli", *words]
    print(f"{name}: superst {' '.join(words)}", flush=True)
    started = time.monotonic()
    with log.open("w") as file:
        process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT)
        _, status, usage = os.wait4(process.pid, 0)  # the usage of this process and of its own children
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{name} ended with code {process.returncode}:\n{log.read_text()}")
    unit = 2**20 if sys.platform == "darwin" else 2**10  # [units of ru_maxrss per MiB]
    seconds = round(time.monotonic() - started, 1)
    return Stage(name, " ".join(["superst", *words]), seconds, round(usage.ru_maxrss / unit, 1))


def run_case(case: Case, data: Path, out: Path, minutes: float) -> dict[str, Any]:
    """Run all stages of a benchmark; stages, scores and the machine they were taken on."""
    out.mkdir(parents=True, exist_ok=True)
    if any(out.iterdir()):
        raise SystemExit(f"{out} must be new or empty; name another folder with --out.")
    stores = {name: str(out / f"{name}.zarr") for name in dict.fromkeys((*case.train, case.test))}
    run, maps, evaluation = (str(out / name) for name in ("run", "maps.zarr", "evaluation"))
    stages = [
        run_stage(out, f"prepare-{name}", ["prepare", *case.prepare(data, name), "--out", store])
        for name, store in stores.items()
    ]
    words = [*(stores[name] for name in case.train), "--out", run, "--minutes", f"{minutes:g}", *case.options]
    stages.append(run_stage(out, "train", ["train", *words]))
    source = [stores[case.test]]
    if case.image:  # whose file does not state the um per pixel that its spots' pitch tells
        mpp = read_section(stores[case.test]).slide["mpp_x"]
        source = [str(data / case.image), "--slide-mpp", f"{mpp:.8g}"]
    stages.append(run_stage(out, "predict", ["predict", run, *source, "--out", maps]))
    stages.append(run_stage(out, "evaluate", ["evaluate", maps, "--truth", stores[case.test], "--out", evaluation]))
    with (out / "run" / "genes.csv").open(newline="") as file:
        known = {row["gene"] for row in csv.DictReader(file)}
    genes = ",".join(gene for gene in case.genes if gene in known)
    if genes:
        stages.append(run_stage(out, "maps", ["maps", maps, "--genes", genes, "--out", str(out / "figures")]))
    record = json.loads((out / "run" / "run.json").read_text())
    result = json.loads((out / "evaluation" / "evaluation.json").read_text())
    machine = {"platform": platform.platform(), "cpus": os.cpu_count(), "threads": record["threads"]}
    training = {key: record[key] for key in ("mpp", "genes", "steps", "epochs", "seconds")}
    return {
        "minutes": minutes,
        "machine": machine | {"torch": version("torch"), "superst-monai": version("superst-monai")},
        "training": training,
        "stages": [asdict(stage) for stage in stages],
        "evaluation": result,
    }


def show(name: str, result: dict[str, Any]) -> None:
    """Print what each stage took, and the scores of model and baselines."""
    print(f"\n{name}\n{'stage':<16}{'seconds':>10}{'peak MiB':>10}")
    for stage in result["stages"]:
        print(f"{stage['name']:<16}{stage['seconds']:>10.1f}{stage['peak_rss_mib']:>10.0f}")
    found = result["evaluation"]
    print(f"\n{'median r':<18}{'raw, all':>10}{'raw, top':>10}{'log, all':>10}{'log, top':>10}")
    rows = {"superst": found, **{key: value for key, value in found["baselines"].items() if value is not None}}
    for label, scores in rows.items():
        medians = [scores[kind][part]["median"] for kind in ("raw", "lognorm") for part in ("all", "top100")]
        print(f"{label:<18}" + "".join(f"{'-' if m is None else format(m, '.3f'):>10}" for m in medians))
    print(f"coverage of 50 % and 90 % intervals: {found['coverage']}; trained on it: {found['trained_on_truth']}")


def main() -> None:
    """Read the arguments and run the cases."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("cases", nargs="*", choices=[[], *CASES], metavar="CASE", help=f"of {', '.join(CASES)}; all")
    parser.add_argument("--data", type=Path, default=CHECKOUT.parent / "shared" / "data", help="folder of the data")
    parser.add_argument("--out", type=Path, default=Path("runs") / "benchmarks", help="folder to write, new or empty")
    parser.add_argument("--minutes", type=float, default=20.0, help="wall-clock of each training [min]")
    given = parser.parse_args()
    cases = {name: CASES[name] for name in given.cases or CASES}
    missing = [need for case in cases.values() for need in case.needs if not (given.data / need).exists()]
    if missing:
        parser.error(
            f"{given.data} lacks {', '.join(missing)}; docs/benchmarks.md says where they are from; pass --data."
        )
    for name, case in cases.items():
        out = given.out if len(cases) == 1 else given.out / name
        result = {"case": name, **run_case(case, given.data, out, given.minutes)}
        write_json(out / "benchmark.json", result)
        show(name, result)


if __name__ == "__main__":
    main()
