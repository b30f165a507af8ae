"""How altering what is trained on changes the prediction of withheld spots: levels of harm, repeats, paired tests."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from superst_monai.data.section import Section
from superst_monai.data.store import read_section
from superst_monai.errors import RunError
from superst_monai.experiments.effort import Effort
from superst_monai.experiments.figures import COLOURS, SMALL_PT
from superst_monai.experiments.folder import ExperimentFolder
from superst_monai.experiments.paired import median, paired_test
from superst_monai.experiments.withheld_spots import (
    KINDS,
    SCORES,
    Mask,
    draw_withheld,
    score_spots,
    train_and_predict,
    without_spots,
)
from superst_monai.inference.maps import Maps

Alter = Callable[[Section, float, np.random.Generator], Section]
"""Alters a section to a level; levels above 0 of one generator's state are of one kind, such as in one direction."""
Parts = Callable[[Section, float, np.random.Generator], Mapping[str, Mask]]
"""Names parts of the spots of a section, for the same level and generator."""
FEWEST = 5
"""Spots of a part below which it is not scored: a correlation over fewer says nothing."""
UNALTERED = "_unaltered"
"""Suffix of the scores, on the same spots, of the model that was trained on the section as it is."""
_KEYS = ["kind", "part", "level", "section", "gene"]


@dataclass(frozen=True, eq=False)
class Alteration:
    """An experiment that alters sections to some levels and judges each by the same withheld spots.

    Attributes:
        folder: of the experiment.
        paths: stores of the sections.
        levels: above 0, which is always there as the section itself.
        alter: alters a section from which the withheld spots have been taken.
        parts: of the spots, beside all of them.
        effort: `repeats` draws spots, alteration, and the seed of training and prediction anew.
        withheld: share of the spots.
        covariates: column of the spots for each covariate of the training.
        seed: of everything.
    """

    folder: ExperimentFolder
    paths: Sequence[str]
    levels: Sequence[float]
    alter: Alter
    parts: Parts
    effort: Effort
    withheld: float
    covariates: Mapping[str, str] | None
    seed: int

    def table(self) -> pd.DataFrame:
        """Scores of all levels and repeats: repeat, kind, part, level, section, spots, gene, SCORES and unaltered."""
        found = []
        for repeat in range(self.effort.repeats):
            for level in (0.0, *self.levels):
                part = self.folder.part(f"{repeat}-{level:g}", partial(self._score, repeat, level))
                found.append(pd.DataFrame(part["scores"]))
        columns = [*SCORES, *(score + UNALTERED for score in SCORES)]
        return pd.concat(found, ignore_index=True).astype(dict.fromkeys(columns, np.float64))

    def _maps(self, repeat: int, level: float) -> list[dict[str, Maps]]:
        """Maps of the sections, trained on them altered."""
        stores = [
            self.folder.section(f"{repeat}-{level:g}-{number}", partial(self._altered, repeat, level, number))
            for number in range(len(self.paths))
        ]
        seed = self.seed + repeat
        name = f"{repeat}-{level:g}"
        return train_and_predict(self.folder, name, stores, self.effort, covariates=self.covariates, seed=seed)

    def _altered(self, repeat: int, level: float, number: int) -> Section:
        """A section to train on."""
        section = read_section(self.paths[number])
        kept = without_spots(section, self._withheld(section, repeat, number))
        return kept if level == 0 else self.alter(kept, level, self._rng(repeat, number, 1))

    def _score(self, repeat: int, level: float) -> dict[str, Any]:
        """Scores of one level: on the same spots of the model of this level, and of the unaltered one."""
        altered, plain = self._maps(repeat, level), self._maps(repeat, 0.0)
        found = []
        for number, path in enumerate(self.paths):
            section = read_section(path)
            withheld = self._withheld(section, repeat, number)
            parts = {"all": np.ones_like(withheld), **self.parts(section, level, self._rng(repeat, number, 1))}
            for name, chosen in parts.items():
                judged = withheld & chosen
                if judged.sum() < FEWEST:
                    continue
                for kind in KINDS:
                    scores = score_spots(altered[number][kind], section, judged)
                    before = score_spots(plain[number][kind], section, judged)[list(SCORES)].add_suffix(UNALTERED)
                    table = pd.concat([scores, before], axis="columns")
                    table = table.assign(repeat=repeat, kind=kind, part=name, level=level, section=section.name)
                    found.append(table.assign(spots=int(judged.sum())))
        scored = pd.concat(found, ignore_index=True)
        return {"scores": scored.astype(object).where(scored.notna(), None).to_dict("list")}

    def _withheld(self, section: Section, repeat: int, number: int) -> Mask:
        return draw_withheld(section.n_spots, self.withheld, self._rng(repeat, number, 0))

    def _rng(self, repeat: int, number: int, stream: int) -> np.random.Generator:
        """Source of the withheld spots (stream 0) and the alteration (1) of a section: the same at all levels."""
        return np.random.default_rng((self.seed, repeat, number, stream))


def over_repeats(table: pd.DataFrame) -> pd.DataFrame:
    """Mean of the scores of each gene over the repeats in which it has one; a row for each of _KEYS."""
    columns = [*SCORES, *(score + UNALTERED for score in SCORES)]
    return table.groupby(_KEYS, sort=False)[columns].mean().reset_index()


def summarise(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Medians over genes and paired tests against the unaltered model.

    Args:
        table: of `Alteration.table`.

    Returns:
        For each kind, part and level: these three, `spots` (withheld, of all sections, mean over the repeats),
        `medians` of SCORES over the genes of all sections, `unaltered` the same of the unaltered model on the same
        spots, and `tests` of each score, level against unaltered, by `paired.paired_test`.
    """
    spots = table.drop_duplicates(["repeat", *_KEYS[:-1]]).groupby(_KEYS[:3])["spots"].sum().to_dict()
    found = []
    for keys, group in over_repeats(table).groupby(_KEYS[:3], sort=False):
        found.append(
            {
                **dict(zip(_KEYS[:3], keys, strict=True)),
                "spots": spots[keys] / table["repeat"].nunique(),
                "medians": {score: median(group[score]) for score in SCORES},
                "unaltered": {score: median(group[score + UNALTERED]) for score in SCORES},
                "tests": {score: paired_test(group[score], group[score + UNALTERED]) for score in SCORES},
            }
        )
    return found


def require_judged(paths: Sequence[str], withheld: float) -> None:
    """Refuse sections of which too few spots would be withheld to be judged by.

    Raises:
        RunError: fewer than FEWEST of a section, or none is left to train on; all sections.
    """
    found = {section.name: section.n_spots for section in map(read_section, paths)}
    few = [
        f"{name}: {round(withheld * n)} of {n}" for name, n in found.items() if not FEWEST <= round(withheld * n) < n
    ]
    if few:
        raise RunError(
            f"at least {FEWEST} spots of each section must be withheld, and some must be left, but a share of "
            f"{withheld:g} withholds {'; '.join(few)}; pass another share."
        )


def levels_faults(levels: Sequence[float], what: str, highest: float) -> list[str]:
    """What is wrong with levels: none, not in (0, highest], or twice."""
    if levels and all(0 < level <= highest for level in levels) and len(set(levels)) == len(levels):
        return []
    said = ", ".join(f"{level:g}" for level in levels) or "none"
    end = f"in (0, {highest:g}]" if np.isfinite(highest) else "positive"
    return [f"{what} must be {end}, each once (0 is always there), got {said}"]


def write_p(axes: Axes, summary: Sequence[Mapping[str, Any]], score: str, part: str, levels: Sequence[float]) -> None:
    """Write the p-value of each level's test under the boxes of `figures.boxes` with the groups KINDS."""
    width = 0.8 / len(KINDS)
    for i, kind in enumerate(KINDS):
        for row in summary:
            if (row["kind"], row["part"]) != (kind, part) or row["level"] not in levels:
                continue
            p = row["tests"][score]["p"]
            place = levels.index(row["level"]) + (i - (len(KINDS) - 1) / 2) * width
            text = "" if p is None or row["level"] == 0 else f"p {p:.0e}" if p < 0.001 else f"p {p:.3f}"
            axes.text(
                place,
                0.01,
                text,
                transform=axes.get_xaxis_transform(),
                ha="center",
                va="bottom",
                fontsize=SMALL_PT,
                rotation=90,
                color=COLOURS[i],
            )


def values_at(
    table: pd.DataFrame, score: str, part: str, levels: Sequence[float], *, change: bool = False
) -> dict[str, list[np.ndarray[Any, np.dtype[np.float64]]]]:
    """Values to box, for each of KINDS at each level: a score of genes, or its change against the unaltered model."""
    found: dict[str, list[np.ndarray[Any, np.dtype[np.float64]]]] = {}
    for kind in KINDS:
        rows = table[(table["kind"] == kind) & (table["part"] == part)]
        parts = [rows[rows["level"] == level] for level in levels]
        values = [p[score] - p[score + UNALTERED] if change else p[score] for p in parts]
        found[kind] = [each.to_numpy(np.float64) for each in values]
    return found
