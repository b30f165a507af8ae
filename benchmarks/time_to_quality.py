"""Benchmark of training: held-out quality against wall-clock, for budgets, metagene schedules and seeds.

    python benchmarks/time_to_quality.py her2st --data DATA --out OUT --minutes 1 2 5 20 --seeds 0 1 2
    python benchmarks/time_to_quality.py brca --schedules fixed drop_and_split extra --minutes 5

Every training is a run of its own with the learning rate annealed to its budget, as a user gets it, so a curve over
budgets is what a longer wait buys. `her2st` trains on C2 and C6 and predicts C3 from its image, `mob` on MOB1, MOB2 and
predicts MOB3; `brca` trains on four fifths of the spots of visium_brca and predicts the others from the image.
`--minutes 0` trains by the default rule: `default_steps`, or --steps, unless the held-out score has stopped rising
before. OUT/runs.csv holds the figures,
OUT/time_to_quality.png the curves; a run that is there is not trained again.
"""

from __future__ import annotations

import argparse
import json
import resource
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from real_sections import CASES, CHECKOUT, run_stage

from superst_monai.analysis.comparison import compare
from superst_monai.analysis.evaluation import evaluate
from superst_monai.analysis.files import write_json
from superst_monai.data.section import Section
from superst_monai.data.store import read_section, write_section
from superst_monai.engines.workflow import train
from superst_monai.inference.colours_fit import fit_colours
from superst_monai.inference.maps import open_maps
from superst_monai.inference.run import load_run
from superst_monai.inference.slide_map import predict

SECTIONS = {"her2st": ("C2", "C6", "C3"), "mob": ("MOB1", "MOB2", "MOB3"), "brca": ("brca",)}
FOLDERS = {"her2st": "her2st", "mob": "mob", "brca": "visium_brca"}


def prepared(case: str, data: Path, out: Path) -> tuple[list[Path], Section]:
    """Stores to train on, and what is held out."""
    stores = [out / f"{name}.zarr" for name in SECTIONS[case]]
    for store in stores:
        if not store.exists():
            words = CASES[FOLDERS[case]].prepare(data, store.stem)
            run_stage(out, f"prepare_{store.stem}", ["prepare", *words, "--out", str(store), "--name", store.stem])
    if case != "brca":
        return stores[:-1], read_section(stores[-1])
    section, kept = read_section(stores[0]), out / "brca_kept.zarr"
    withheld = np.random.default_rng(0).permutation(section.n_spots) % 5 == 0
    parts = [
        replace(section, counts=section.counts[np.flatnonzero(rows)], spots=section.spots[rows])
        for rows in (~withheld, withheld)
    ]
    if not kept.exists():
        write_section(parts[0], kept)
    return [kept], parts[1]


def judge(case: str, stores: list[Path], truth: Section, folder: Path, given: dict[str, Any]) -> dict[str, Any]:
    """Train, predict from the image alone, and compare."""
    covariates = {} if case == "brca" else {"section": "section"}
    options = {"metagene_schedule": given["schedule"]} | ({"default_steps": given["steps"]} if given["steps"] else {})
    begun = time.monotonic()
    run_dir = train(
        stores,
        folder,
        covariates=covariates,
        minutes=given["minutes"] or None,
        seed=given["seed"],
        options=options,
        show=lambda *_: None,
    )
    spent = time.monotonic() - begun
    fit_colours(run_dir)
    run = load_run(run_dir)
    maps = folder.with_name(f"{folder.name}.maps.zarr")
    predict(run, truth, maps, use_field=False, tell=lambda _: None, overwrite=True)
    both = compare(open_maps(maps), truth)
    mean, sd = both.moments(500)
    found = evaluate(mean, both.observed, sd=sd, samples=both.samples(500))
    curve = pd.read_csv(run_dir / "metrics.csv")
    held = curve["val_loglik_per_spot"].dropna()
    return given | {
        "seconds": round(spent),
        "steps": int(run.record["steps"]),
        "raw": found["raw"]["top100"]["median"],
        "lognorm": found["lognorm"]["top100"]["median"],
        "lognorm_expected": found["lognorm_expected"]["top100"]["median"],
        "depth": found["depth"],
        "totals": float(mean.sum() / both.observed.sum()),
        "coverage90_top100": found["coverage_top100"]["90"],
        "nb_loglik_per_spot": found["nb_loglik_per_spot"],
        "best_val_loglik": float(held.max()),
        "nan": bool(curve["loss"].isna().any()),
        "metagenes_used": int((usage(maps) > 0.01).sum()),
        "peak_rss_mib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
    }


def usage(maps: Path) -> np.ndarray:
    """Share of each metagene in the scaled activity of a slide `(K,)`."""
    total = np.sum([part.sum((1, 2), dtype=float) for _, part in open_maps(maps).mean_tiles()], axis=0)
    return total / total.sum()


def draw(table: pd.DataFrame, case: str) -> Figure:
    """Quality against wall-clock, a line for each schedule: mean over seeds, and each seed as a point."""
    figure = Figure(figsize=(9, 3.6), dpi=150, layout="constrained")
    for axes, score, words in zip(
        figure.subplots(1, 2), ("raw", "lognorm"), ("raw counts", "log-normalised counts"), strict=True
    ):
        for schedule, part in table.groupby("schedule"):
            mean = part.groupby("minutes")[["seconds", score]].mean().sort_values("seconds")
            (line,) = axes.plot(mean["seconds"] / 60, mean[score], "-", label=schedule)
            axes.plot(part["seconds"] / 60, part[score], ".", color=line.get_color())
        axes.set(xlabel="training [min]", ylabel=f"median r of 100 highest genes,\n{words}")
        axes.legend(title="metagenes")
    figure.suptitle(f"{case}: held-out quality against training time")
    return figure


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("case", choices=[*SECTIONS])
    parser.add_argument("--data", type=Path, default=CHECKOUT.parent / "shared" / "data", help="folder of the data")
    parser.add_argument("--out", type=Path, default=Path("runs") / "time_to_quality", help="folder to write")
    parser.add_argument("--minutes", type=float, nargs="+", default=[1.0, 2.0, 5.0, 20.0])
    parser.add_argument("--schedules", nargs="+", default=["fixed"])
    parser.add_argument("--steps", type=int, help="of a training by the default rule, instead of default_steps")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    words = parser.parse_args()
    out: Path = words.out / words.case
    out.mkdir(parents=True, exist_ok=True)
    stores, truth = prepared(words.case, words.data, out)
    for schedule in words.schedules:
        for minutes in words.minutes:
            for seed in words.seeds:
                folder = out / f"{schedule}_{minutes:g}min_seed{seed}"
                done = out / f"{folder.name}.json"
                if done.exists():
                    continue
                given = {"schedule": schedule, "minutes": minutes, "seed": seed, "steps": words.steps}
                found = judge(words.case, stores, truth, folder, given)
                write_json(done, found)
                print(found, flush=True)
    table = pd.DataFrame([json.loads(file.read_text()) for file in sorted(out.glob("*_seed*.json"))])
    table.to_csv(out / "runs.csv", index=False)
    draw(table, words.case).savefig(out / "time_to_quality.png")
    scores = ["steps", "raw", "lognorm", "lognorm_expected", "totals"]
    print(table.groupby(["schedule", "minutes"])[scores].agg(["mean", "std"]).round(3))


if __name__ == "__main__":
    main()
