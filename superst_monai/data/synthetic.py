"""A synthetic stained tissue whose expression is known at every pixel: three subtypes, told apart by the cells' shape.

It restates the deconvolution experiment of Bergenstråhle et al. 2022, Extended Data Fig. 1a-c
(doi:10.1038/s41587-021-01075-3): spots are coarser than the cells, so that only the image tells where in a spot a
subtype lies.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import tifffile
from numpy.typing import NDArray
from PIL import Image
from scipy.sparse import csr_matrix

from superst_monai.data import synthetic_image as picture
from superst_monai.data.platforms.assay import Assay
from superst_monai.errors import RunError, SlideError

SUBTYPES = ("stroma", "circle", "square", "triangle")
_SIZE_PER_UM2 = np.array([3.0, 10.8, 10.8, 10.8])  # expected UMIs of one um2 of each subtype, all genes together
_MARKER_FOLD = 10.0
_TILE_PX = 256


@dataclass(frozen=True, eq=False)
class SyntheticTissue:
    """A slide, its spots and counts, and the truth behind them.

    Attributes:
        image: stained slide `(H, W, 3)`.
        tissue: tissue mask `(H, W)`.
        subtype: subtype of each pixel `(H, W)`: 0 stroma or glass, 1 circle, 2 square, 3 triangle.
        profiles: expected UMIs of one pixel of stroma and of each subtype `(4, G)` [1/px]; glass has none.
        logits: logit of each gene `(G,)`: a spot's variance is its mean times 1 + exp(logit).
        counts: UMIs `(S, G)`, int32.
        spots: S rows named by barcode: x_px0, y_px0, diameter_px0 [level-0 px], array_row, array_col.
        genes: G rows named by gene: gene_id, subtype (the one that the gene marks, else "").
        mpp: um per pixel of `image`.
        seed: what the tissue was made from.
    """

    image: NDArray[np.uint8]
    tissue: NDArray[np.bool_]
    subtype: NDArray[np.int64]
    profiles: NDArray[np.float64]
    logits: NDArray[np.float64]
    counts: csr_matrix
    spots: pd.DataFrame
    genes: pd.DataFrame
    mpp: float
    seed: int

    def expected(self, gene: str, *, mpp: float | None = None) -> NDArray[np.float32]:
        """True map of one gene `(h, w)`: expected UMIs of each pixel [1/px], of a pixel of `mpp` um if given.

        Raises:
            RunError: there is no such gene.
        """
        if gene not in self.genes.index:
            raise RunError(
                f"gene must be one of the {len(self.genes)} synthetic genes, got {gene!r}; see tissue.genes."
            )
        rate = self.profiles[:, self.genes.index.get_loc(gene)][self.subtype] * self.tissue  # (H, W)
        return _average(rate, self._shape_at(mpp)) * np.float32(self._px_per_px(mpp))

    def truth(self, subtype: int, *, mpp: float | None = None) -> NDArray[np.bool_]:
        """Pixels `(h, w)` that lie by more than half in cells of a subtype (0 is stroma, without glass)."""
        return _average((self.subtype == subtype) & self.tissue, self._shape_at(mpp)) > 0.5

    def tissue_at(self, mpp: float) -> NDArray[np.bool_]:
        """Pixels `(h, w)` that lie by more than half in tissue."""
        return _average(self.tissue, self._shape_at(mpp)) > 0.5

    def _shape_at(self, mpp: float | None) -> tuple[int, int]:
        height, width = (max(1, round(side * self.mpp / (mpp or self.mpp))) for side in self.tissue.shape)
        return height, width

    def _px_per_px(self, mpp: float | None) -> float:
        return self.tissue.size / math.prod(self._shape_at(mpp))


def make_tissue(
    *,
    seed: int,
    size_px: int = 2400,
    mpp: float = 1.0,
    n_genes: int = 300,
    spot_diameter_um: float = 65.0,
    pitch_um: float = 100.0,
) -> SyntheticTissue:
    """Make a tissue of three subtypes that mix within spots, and measure it; the same seed gives the same tissue.

    A spot's counts are NegativeBinomial(total_count = sum over its pixels of profile / exp(logit), logit), the law
    of the model: negative binomials of one logit add over pixels.

    Args:
        seed: of every draw; picture, genes and counts draw from streams of their own.
        size_px: side of the square slide [px].
        mpp: um per pixel.
        n_genes: G; a sixth each marks one of the subtypes, a twelfth the stroma, a sixth is the same in all.
        spot_diameter_um: [um].
        pitch_um: distance of neighbouring spot centres on a hexagonal grid [um].

    Raises:
        RunError: the slide is too small for its cells, or spots overlap or are smaller than a pixel; all faults.
    """
    _check_arguments(size_px, mpp, n_genes, spot_diameter_um, pitch_um)
    layout, paint, genome, sequencer = (np.random.default_rng(s) for s in np.random.SeedSequence(seed).spawn(4))
    tissue = picture.draw_tissue(layout, size_px)
    subtype, depth_um, owner = picture.draw_cells(picture.place_cells(layout, tissue, mpp), size_px, mpp)
    image = picture.stain(paint, tissue, depth_um, owner, mpp)
    genes, profiles, logits = _make_genes(genome, n_genes)
    profiles = profiles * mpp**2  # [1/um2] -> [1/px]
    spots = _place_spots(tissue, mpp, spot_diameter_um, pitch_um)
    mean = _areas(spots, tissue, subtype) @ profiles  # (S, G)
    # A negative binomial is a Poisson whose rate is Gamma(total_count) * exp(logit).
    drawn = sequencer.poisson(sequencer.standard_gamma(mean / np.exp(logits)) * np.exp(logits))
    counts = csr_matrix(drawn.astype(np.int32))
    return SyntheticTissue(image, tissue, subtype, profiles, logits, counts, spots, genes, mpp, seed)


def _check_arguments(size_px: int, mpp: float, n_genes: int, diameter_um: float, pitch_um: float) -> None:
    """Refuse a slide too small for its cells, and spots that overlap or hold no pixel; all faults at once."""
    rules = {
        f"size_px * mpp must be at least 300 um, got {size_px} * {mpp}": size_px * mpp >= 300,
        f"mpp must be in (0, 6] so that cells keep their shape, got {mpp}": 0 < mpp <= 6,
        f"n_genes must be at least 12, got {n_genes}": n_genes >= 12,
        f"spot_diameter_um must be in [2 * mpp, pitch_um], got {diameter_um} with mpp {mpp} and pitch_um {pitch_um}": (
            2 * mpp <= diameter_um <= pitch_um < math.inf
        ),
    }
    faults = [rule for rule, kept in rules.items() if not kept]
    if faults:
        raise RunError("; ".join(faults) + ". Change these arguments of make_tissue.")


def write_slide(tissue: SyntheticTissue, path: Path, *, levels: int = 3) -> None:
    """Write the image as a pyramidal, tiled TIFF (JPEG tiles) that carries its resolution; OpenSlide reads it.

    Args:
        tissue: whose image to write.
        path: the file, replaced if it exists; a write that fails leaves nothing behind.
        levels: pyramid levels, each half the one before.

    Raises:
        SlideError: the file cannot be written.
    """
    partial = path.with_name(f".{path.name}.partial")
    try:
        with tifffile.TiffWriter(partial) as writer:
            for level in range(levels):
                pixels = np.asarray(Image.fromarray(tissue.image).reduce(2**level))
                per_cm = 10_000 * pixels.shape[1] / (tissue.mpp * tissue.image.shape[1])
                writer.write(
                    pixels,
                    photometric="rgb",
                    tile=(_TILE_PX, _TILE_PX),
                    compression="jpeg",
                    compressionargs={"level": 95},
                    resolution=(per_cm, per_cm),
                    resolutionunit="CENTIMETER",
                    subfiletype=int(level > 0),
                    metadata=None,
                    software="superst_monai",
                )
        os.replace(partial, path)
    except OSError as exc:
        partial.unlink(missing_ok=True)
        raise SlideError(f"slide {path} must be writable, got: {exc}; choose another folder or free space.") from exc


def to_assay(tissue: SyntheticTissue, image_path: Path | None = None) -> Assay:
    """Present the counts as an assay of the written slide, or of the image in memory where no path is given."""
    return Assay(
        counts=tissue.counts,
        spots=tissue.spots.copy(),
        genes=tissue.genes.copy(),
        platform="visium",
        image=tissue.image if image_path is None else image_path,
        mpp=tissue.mpp,
        scale_factors={},
        shape="circle",
        notes=(
            f"The counts are of a synthetic tissue (seed {tissue.seed}); coordinates are level-0 pixels of its slide.",
        ),
    )


def _make_genes(
    rng: np.random.Generator, n_genes: int
) -> tuple[pd.DataFrame, NDArray[np.float64], NDArray[np.float64]]:
    """Name the genes and draw their profiles `(4, G)` [1/um2] and logits `(G,)`."""
    names = ("circle", "square", "triangle", "stroma", "house")
    share = (n_genes // 6, n_genes // 6, n_genes // 6, n_genes // 12, n_genes // 6)
    role = np.repeat([*names, "base"], [*share, n_genes - sum(share)])  # (G,)
    number = pd.Series(role).groupby(role).cumcount() + 1
    fold = np.exp(0.3 * rng.standard_normal((4, n_genes)))  # (4, G)
    fold[:, role == "house"] = 1.0
    marks = np.array(SUBTYPES)[:, None] == role  # (4, G)
    fold[:, marks.any(0)] = np.where(marks, _MARKER_FOLD, 1.0)[:, marks.any(0)]
    share_of_gene = fold * rng.lognormal(0.0, 0.6, n_genes)
    profiles = share_of_gene / share_of_gene.sum(1, keepdims=True) * _SIZE_PER_UM2[:, None]
    genes = pd.DataFrame(
        {
            "gene_id": [f"SYN{i:08d}" for i in range(1, n_genes + 1)],
            "subtype": np.where(marks.any(0), role, ""),
        },
        index=pd.Index([f"{kind}-{i:02d}" for kind, i in zip(role, number, strict=True)], name="gene"),
    )
    return genes, profiles, rng.uniform(-1.0, 0.5, n_genes)


def _place_spots(tissue: NDArray[np.bool_], mpp: float, diameter_um: float, pitch_um: float) -> pd.DataFrame:
    """Lay a hexagonal grid over the slide and keep the spots whose centre lies in tissue (S rows)."""
    side_um = tissue.shape[0] * mpp
    row, half = np.indices((int(side_um / (pitch_um * math.sqrt(0.75))) + 1, int(side_um / pitch_um) + 1))
    col = 2 * half + row % 2  # as Visium counts columns: neighbours of a row are two apart
    x_px0 = (0.5 + col / 2) * pitch_um / mpp
    y_px0 = (0.5 + row * math.sqrt(0.75)) * pitch_um / mpp
    on_slide = (x_px0 < tissue.shape[1]) & (y_px0 < tissue.shape[0])
    at = np.minimum(y_px0, tissue.shape[0] - 1).astype(int), np.minimum(x_px0, tissue.shape[1] - 1).astype(int)
    keep = on_slide & tissue[at]
    return pd.DataFrame(
        {
            "x_px0": x_px0[keep],
            "y_px0": y_px0[keep],
            "diameter_px0": diameter_um / mpp,
            "array_row": row[keep],
            "array_col": col[keep],
        },
        index=pd.Index([f"spot-{r:03d}x{c:03d}" for r, c in zip(row[keep], col[keep], strict=True)], name="barcode"),
    )


def _areas(spots: pd.DataFrame, tissue: NDArray[np.bool_], subtype: NDArray[np.int64]) -> NDArray[np.float64]:
    """Count the tissue pixels of each subtype whose centre lies in a spot `(S, 4)` [px]."""
    radius_px = float(spots["diameter_px0"].iloc[0]) / 2
    x_px, y_px = spots["x_px0"].to_numpy(), spots["y_px0"].to_numpy()
    row, col, dx, dy = picture.window(x_px, y_px, radius_px, tissue.shape[0])
    inside = (np.hypot(dx, dy) <= radius_px) & tissue[row, col]  # (S, w, w)
    spot = np.broadcast_to(np.arange(len(spots))[:, None, None], inside.shape)
    key = spot[inside] * 4 + subtype[row, col][inside]
    return np.bincount(key, minlength=4 * len(spots)).reshape(-1, 4).astype(np.float64)


def _average(values: NDArray[np.generic], shape: tuple[int, int]) -> NDArray[np.float32]:
    """Average a map over the pixels of a coarser grid, by area."""
    image = Image.fromarray(values.astype(np.float32))
    return np.asarray(image.resize(shape[::-1], Image.Resampling.BOX), dtype=np.float32)
