"""Everything that training takes from the sections: genes, patches, conditions, first values and held-out spots."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from monai.data import Dataset
from numpy.typing import NDArray
from scipy import sparse

from superst_monai.data.section import Section
from superst_monai.data.store import read_section
from superst_monai.engines.genes import select_genes
from superst_monai.engines.holdout import BLOCK, split_counts, withheld_spots
from superst_monai.errors import ResolutionError, RunError
from superst_monai.model.first_values import fit_baseline, set_first_values
from superst_monai.model.metagenes import factorised_profiles
from superst_monai.model.objective import FusionVAE
from superst_monai.transforms.balance import section_glass, white_balance
from superst_monai.transforms.labels import spot_labels
from superst_monai.transforms.patches import PatchDataset, training_chain, validation_chain
from superst_monai.transforms.sampling import share_items
from superst_monai.transforms.sources import PatchKey, PatchSource
from superst_monai.types import Key

PATCHES_WITHOUT_BLOCKS = 8
"""Patches of a validation where no spot is withheld, each round a spot of the training."""
SPOTS_A_METAGENE = 24
METAGENES = (12, 24)
"""Least and most metagenes, if nothing else is asked for. On 567 spots of visium_brca fields of 24 tell withheld spots
much better than those of 12, and as well as those of 36; on fewer than 200 they gain nothing, or follow noise
(docs/benchmarks.md)."""


class TrainingData:
    """Prepared sections at one resolution, ready for the trainer.

    Args:
        sections: stores written by `superst prepare`, or sections in memory.
        base_dir: folder that relative paths start from.
        mpp: working resolution [um/px]; None takes the finest at which a spot is `spot_px` pixels wide, at least the
            resolution of the stores.
        spot_px: width of the smallest spot at the resolution that `mpp=None` chooses [px].
        covariates: column of the spot table that holds each covariate, for example `{"section": "section"}`.
        patch_px: side of a patch [px].
        min_counts: least UMIs of a gene over all sections.
        exclude_genes: regular expression of gene names to leave out.
        val_share: share of the spots withheld to watch training; each section keeps at least one spot to train on.
        val_block: withheld spots in one block.
        val_umis: share of the UMIs of every other spot set aside to watch training, see `thin_counts`.
        augmentation: arguments of `training_chain` that differ from its own.
        seed: of the withheld spots, the UMIs set aside, the patches and the factorisation.

    Raises:
        RunError: no sections, sections without counts, or covariates that they do not have.
        ResolutionError: `mpp` is finer than a section.
    """

    def __init__(
        self,
        sections: Sequence[str | Path | Section],
        *,
        base_dir: str | Path = ".",
        mpp: float | None = None,
        spot_px: float = 6.4,
        covariates: Mapping[str, str] | None = None,
        patch_px: int = 96,
        min_counts: int = 50,
        exclude_genes: str = r"(?i)(mt-|rp[ls])",
        val_share: float = 0.1,
        val_block: int = BLOCK,
        val_umis: float = 0.05,
        augmentation: Mapping[str, Any] | None = None,
        seed: int = 0,
    ) -> None:
        if not sections:
            raise RunError("training needs at least one section, got none; name the stores of `superst prepare`.")
        self.paths = [None if isinstance(s, Section) else str((Path(base_dir) / s).resolve()) for s in sections]
        loaded = [s if isinstance(s, Section) else read_section(Path(base_dir) / s) for s in sections]
        _check_sections(loaded)
        self.mpp = choose_mpp(loaded, spot_px) if mpp is None else mpp
        coarse = [s for s in loaded if s.mpp > self.mpp * (1 + 1e-6)]
        if coarse:
            raise ResolutionError(
                f"training at {self.mpp:g} um/px needs sections at least that fine, but "
                + ", ".join(f"{s.name} has {s.mpp:g}" for s in coarse)
                + "; prepare them again with a smaller --mpp, or train with a larger --mpp."
            )
        self.sections = [s.at(self.mpp) for s in loaded]
        _check_patch(self.sections, patch_px)
        self.seed = seed
        self.patch_px = patch_px
        self.val_umis = val_umis
        self.augmentation = dict(augmentation or {})
        self.genes = select_genes(self.sections, min_counts=min_counts, exclude=exclude_genes)
        self.covariate_columns = dict(covariates or {})
        self.levels = section_levels(self.sections, self.covariate_columns)
        xy_um = [s.spots[["x_um", "y_um"]].to_numpy(np.float64) for s in self.sections]
        self.held_out = withheld_spots(xy_um, val_share, block=val_block, seed=seed)

    @property
    def n_genes(self) -> int:
        """G."""
        return len(self.genes)

    @property
    def n_sections(self) -> int:
        """Number of training sections."""
        return len(self.sections)

    @property
    def n_metagenes(self) -> int:
        """K that so many spots can tell apart, unless another is asked for: one for SPOTS_A_METAGENE of them."""
        spots = sum(section.n_spots for section in self.sections)
        return int(np.clip(round(spots / SPOTS_A_METAGENE), *METAGENES))

    @property
    def covariates(self) -> dict[str, list[str]]:
        """Known levels of each covariate, sorted."""
        return {c: sorted({v for v in found if v is not None}) for c, found in self.levels.items()}

    @cached_property
    def counts(self) -> list[sparse.csr_matrix]:
        """Counts of the modelled genes on each section, `(S, G)`."""
        return [s.counts[:, s.genes.index.get_indexer(self.genes.index)].tocsr() for s in self.sections]

    @cached_property
    def training_spots(self) -> list[NDArray[np.bool_]]:
        """Which spots of each section are not withheld, `(S,)`."""
        found = [np.ones(s.n_spots, dtype=bool) for s in self.sections]
        for trained, blocks in zip(found, self.held_out, strict=True):
            for rows in blocks:
                trained[rows] = False
        return found

    @cached_property
    def _split(self) -> tuple[list[sparse.csr_matrix], list[sparse.csr_matrix]]:
        """Counts to train on and counts to score with, `(S, G)` of each section; together they are `counts`."""
        return split_counts(self.counts, self.training_spots, self.val_umis, rng=np.random.default_rng((self.seed, 1)))

    @cached_property
    def _labels(self) -> list[NDArray[np.int64]]:
        return [spot_labels(s) for s in self.sections]

    def _sources(self, *, training: bool) -> list[PatchSource]:
        """Sections with what is trained on, or with what is set aside and withheld: labels, counts and their share."""
        sources = []
        for n, (section, label, trained) in enumerate(
            zip(self.sections, self._labels, self.training_spots, strict=True)
        ):
            if training:
                shown = np.r_[True, trained, True]
                share = np.r_[np.full(section.n_spots, 1.0 - self.val_umis), 1.0]
            else:  # the support outside the tissue, which has no counts to set aside, tells nothing
                shown = np.r_[True, ~trained | (self.val_umis > 0), False]
                share = np.r_[np.where(trained, self.val_umis, 1.0), 0.0]
            image = white_balance(section.image, section_glass(section.image, section.tissue))
            counts = self._split[0 if training else 1][n]
            label = np.where(shown[label], label, 0)
            sources.append(PatchSource.from_arrays(image, label, section.tissue, counts, share))
        return sources

    @cached_property
    def n_patches(self) -> int:
        """N, patches after which each spot has been seen once on average.

        A patch centred on a random tissue pixel holds, whole, the spots whose centre lies within half a patch less
        a spot radius; N is the number of spots over the mean of that number over the tissue.
        """
        whole = 0.0
        for section in self.sections:
            xy = section.spots[["x_um", "y_um"]].to_numpy() / self.mpp
            reach = max(1.0, self.patch_px / 2 - section.spots["radius_um"].mean() / self.mpp)
            inside = np.zeros(np.add(section.tissue.shape, 1))
            row, col = (np.clip(np.round(xy[:, [1, 0]]).astype(int), 0, np.array(section.tissue.shape) - 1)).T
            np.add.at(inside, (row + 1, col + 1), 1.0)
            inside = inside.cumsum(0).cumsum(1)  # integral image of spot centres
            y, x = np.nonzero(section.tissue)
            low_y, low_x = np.maximum(y - int(reach), 0), np.maximum(x - int(reach), 0)
            high_y = np.minimum(y + int(reach), section.tissue.shape[0])
            high_x = np.minimum(x + int(reach), section.tissue.shape[1])
            near = inside[high_y, high_x] - inside[low_y, high_x] - inside[high_y, low_x] + inside[low_y, low_x]
            whole += near.sum()
        pixels = sum(int(s.tissue.sum()) for s in self.sections)
        return max(1, round(sum(s.n_spots for s in self.sections) * pixels / max(whole, 1.0)))

    def training_set(self, *, batch_size: int, min_steps: int = 10) -> PatchDataset:
        """Patches of one epoch of the trainer: whole batches, at least `min_steps` of them and N patches."""
        sources = self._sources(training=True)
        items = batch_size * max(min_steps, math.ceil(self.n_patches / batch_size))
        sections = share_items([s.tissue_area_px for s in sources], items)
        return PatchDataset(training_chain(sources, size=self.patch_px, **self.augmentation), sections, self.seed)

    def validation_set(self) -> Dataset:
        """Patches to watch training with, unchanged: one round each block of withheld spots, or else a handful.

        They hold the withheld spots whole and of all other spots the UMIs set aside, told apart by Key.SHARE.
        """
        places = [(n, rows) for n, blocks in enumerate(self.held_out) for rows in blocks]
        if not places and self.val_umis:
            first = np.cumsum([0, *(s.n_spots for s in self.sections)])
            drawn = np.random.default_rng((self.seed, 2)).permutation(first[-1])[:PATCHES_WITHOUT_BLOCKS]
            at = np.searchsorted(first, drawn, side="right") - 1
            places = [(int(n), np.array([row])) for n, row in zip(at, drawn - first[at], strict=True)]
        items = []
        for n, rows in places:
            col, row = self.sections[n].spots[["x_um", "y_um"]].to_numpy()[rows].mean(axis=0) / self.mpp
            items.append({Key.SECTION: n, PatchKey.ROW: int(row), PatchKey.COL: int(col)})
        return Dataset(items, validation_chain(self._sources(training=False), size=self.patch_px))

    def set_first_values(self, network: FusionVAE) -> None:
        """Write conditions, baselines, profiles and scale into a freshly built network; from what is trained on."""
        rows = [counts[trained] for counts, trained in zip(self._split[0], self.training_spots, strict=True)]
        stacked = sparse.vstack(rows, format="csr")
        section = np.repeat(np.arange(self.n_sections), [c.shape[0] for c in rows])
        in_use = int(network.generative.active.sum())
        profiles = factorised_profiles(stacked, section, in_use, seed=self.seed)
        profiles = np.pad(profiles, ((0, network.arch.n_metagenes - in_use), (0, 0)))
        network.generative.set_conditions(self.levels)
        thinned = fit_baseline(stacked)
        baseline = replace(thinned, log_rate=thinned.log_rate - math.log1p(-self.val_umis))
        set_first_values(network, baseline, profiles, spot_area_px=self.spot_area_px)

    @property
    def spot_area_px(self) -> float:
        """Mean area of a spot at the working resolution [px], at least 1."""
        sizes = [
            np.bincount(lb.ravel(), minlength=s.n_spots + 2)[1:-1]
            for lb, s in zip(self._labels, self.sections, strict=True)
        ]
        return max(1.0, float(np.concatenate(sizes).mean()))


def _check_sections(sections: Sequence[Section]) -> None:
    """Refuse sections without counts and names that stand twice."""
    empty = [s.name for s in sections if not s.has_counts]
    if empty:
        raise RunError(f"training sections need counts, but {', '.join(empty)} hold a slide alone; leave them out.")
    names = [s.name for s in sections]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise RunError(
            f"training sections need names of their own, but {', '.join(twice)} is given more than once; "
            "leave one out, or prepare it again with another --name."
        )


def _check_patch(sections: Sequence[Section], patch_px: int) -> None:
    """Refuse a patch that is mostly beyond every section: it costs memory and shows nothing."""
    widest = max(max(s.tissue.shape) for s in sections)
    if patch_px > 2 * widest + 64:
        raise RunError(
            f"a patch of {patch_px} px is far wider than the sections, which have at most {widest} px at "
            f"{sections[0].mpp:g} um; pass a smaller --patch or --mpp."
        )


def choose_mpp(sections: Sequence[Section], spot_px: float) -> float:
    """Resolution at which the smallest spot is `spot_px` pixels wide, but no finer than any section [um/px]."""
    smallest = min(2.0 * float(s.spots["radius_um"].min()) for s in sections)
    return max(smallest / spot_px, *(s.mpp for s in sections), 0.0)


def section_levels(sections: Sequence[Section], columns: Mapping[str, str]) -> dict[str, list[str | None]]:
    """Level of each covariate on each section; None where the section does not say.

    Raises:
        RunError: no section has the column, or a section holds several levels.
    """
    found: dict[str, list[str | None]] = {}
    faults = []
    for name, column in columns.items():
        levels: list[str | None] = []
        for section in sections:
            column_of = section.spots[column].dropna() if column in section.spots else pd.Series(dtype=object)
            values = sorted({str(value) for value in column_of} - {""})
            if len(values) > 1:
                faults.append(f"{name}: column {column} of {section.name} holds {len(values)} levels, not one")
            levels.append(values[0] if values else None)
        if not any(levels):
            have = ", ".join(sections[0].spots.columns)
            faults.append(f"{name}: no section has a column {column} (the first has {have})")
        found[name] = levels
    if faults:
        raise RunError("a covariate is one level a section: " + "; ".join(faults) + ". Pass --covariate NAME=COLUMN.")
    return found
