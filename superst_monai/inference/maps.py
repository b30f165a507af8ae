"""Posterior maps, opened: any gene at any pixel, and its sum over any support, computed when it is asked for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import zarr
from numpy.typing import ArrayLike, NDArray
from scipy import sparse

from superst_monai.data.section import Section
from superst_monai.errors import AlignmentError, RunError
from superst_monai.inference.gene_names import find_genes
from superst_monai.inference.gene_planes import mean_and_sd
from superst_monai.inference.maps_store import open_store, read_effects, read_genes
from superst_monai.inference.rates import Effects
from superst_monai.inference.sample_tiles import Place, SampleTiles
from superst_monai.inference.sums import Sums, checked_label
from superst_monai.transforms.labels import draw_section

if TYPE_CHECKING:
    from anndata import AnnData

Floats = NDArray[np.float32]
_TOGETHER, _TOGETHER_BYTES = 4, 128 * 2**20
"""Genes computed with one pass over the tiles: at least so many, and as many as fit; memory used again is faster."""


def open_maps(path: str | Path, *, cache_mib: int = 512) -> Maps:
    """Open posterior maps that `predict` wrote.

    Args:
        path: the `.zarr` folder.
        cache_mib: memory for tiles kept decoded [MiB]; the second gene of a region is then a matter of arithmetic.

    Raises:
        StoreError: there is no such store, it holds no maps, of another version, or it is incomplete.
    """
    group, meta = open_store(path)
    return Maps(group, meta, cache_bytes=cache_mib * 2**20)


class Maps:
    """Samples of metagene activity and gene parameters of one slide, from which every gene derives.

    Frame: pixel (row, col) covers [col, col + 1) x [row, row + 1) times `mpp` um from the slide's corner.

    Attributes:
        genes: names of the G genes.
        gene_ids: their ids.
        mpp: um per pixel.
        n_samples: N.
        n_metagenes: K.
        shape: height and width [px].
        record: run, its hash, source, slide properties, conditions, seed.
        log_rate: samples `(N, K, G)`.
        logit: samples `(N, G)`.
    """

    def __init__(self, group: zarr.Group, meta: Mapping[str, Any], *, cache_bytes: int) -> None:
        """Read all but the pixels; use `open_maps`."""
        table = read_genes(group)
        self.genes, self.gene_ids = [str(g) for g in table.index], [str(i) for i in table["gene_id"]]
        self.mpp = float(meta["mpp"])
        self.record: dict[str, Any] = dict(meta["record"])
        self.log_rate: Floats = np.asarray(group["posterior/log_rate"])
        self.logit: Floats = np.asarray(group["posterior/logit"])
        self._group = group
        self._pixels = SampleTiles(group, meta, cache_bytes=cache_bytes)
        self.n_samples, self.n_metagenes, *sides = self._pixels.shape
        self.shape = (sides[0], sides[1])
        self._index = {gene: i for i, gene in enumerate(self.genes)}

    @property
    def dispersion(self) -> float:
        """Factor of the run's recalibration that the laws of counts contain, see `model/dispersion`; 1 without one."""
        return float((self.record.get("calibration") or {}).get("factor", 1.0))

    @cached_property
    def tissue(self) -> NDArray[np.bool_]:
        """Tissue mask `(H, W)`."""
        return np.asarray(self._group["labels/tissue/s0"]).astype(np.bool_)

    @cached_property
    def covered(self) -> NDArray[np.bool_]:
        """Pixels that were predicted `(H, W)`: tissue, and the spots of a measured section; elsewhere all is zero."""
        scale = cast("zarr.Array[Any]", self._group["images/scale/s0"])
        covered = self.tissue.copy()
        for place in self._pixels.places():
            covered[place] |= np.asarray(scale[(0, *place)]) > 0
        return covered

    @cached_property
    def effects(self) -> Effects | None:
        """Samples of what each level of each covariate adds; None where the store holds none. See `under`."""
        return read_effects(self._group)

    def gene(self, name: str) -> tuple[Floats, Floats]:
        """Map of one gene: expected UMIs of each pixel and their posterior standard deviation, both `(H, W)` [1/px].

        Raises:
            RunError: the run does not have the gene.
        """
        return self.gene_set([name])

    def gene_set(self, names: Sequence[str]) -> tuple[Floats, Floats]:
        """Map of some genes together: their expected UMIs in each pixel and the posterior sd of that sum [1/px].

        The rates of the genes add up to those of one, so that a set costs as much as a gene.

        Args:
            names: at least one gene.

        Returns:
            Mean and standard deviation, both `(H, W)`.

        Raises:
            RunError: the run does not have a gene.
        """
        mean, sd = self._planes(self._rates(names).sum(axis=1, keepdims=True))
        return mean[0], sd[0]

    def each_gene(self, names: Sequence[str]) -> Iterator[tuple[str, Floats, Floats]]:
        """Yield the maps of many genes, each with its name: as `gene`, at a fifteenth of the time.

        Some genes are computed together, with one pass over the tiles.

        Yields:
            Name, mean and standard deviation, both `(H, W)` [1/px], in the order of `names`.

        Raises:
            RunError: the run does not have a gene.
        """
        rates = self._rates(names)
        step = max(_TOGETHER, _TOGETHER_BYTES // (8 * self.shape[0] * self.shape[1]))
        for start in range(0, len(names), step):
            for name, *moments in zip(names[start:], *self._planes(rates[:, start : start + step]), strict=False):
                yield name, *moments

    def _rates(self, names: Sequence[str]) -> Floats:
        """Expected UMIs of a unit of each metagene, `(N, G, K)`."""
        columns = self._columns(names)
        rates: Floats = np.exp(self.log_rate[:, :, columns] + self.logit[:, None, columns]).transpose(0, 2, 1)
        return rates

    def _planes(self, rates: Floats) -> tuple[Floats, Floats]:
        """Mean and sd of the maps of genes `(G, H, W)`, from their rates `(N, G, K)`."""
        mean, sd = (np.zeros((rates.shape[1], *self.shape), np.float32) for _ in range(2))
        weight = np.ascontiguousarray(rates * self._pixels.unit)
        for (rows, cols), tile in self._pixels:
            box = tile.reshape(*tile.shape[:2], rows.stop - rows.start, -1)
            mean_and_sd(box, weight, mean=mean[:, rows, cols], sd=sd[:, rows, cols])
        return mean, sd

    def tiles(self) -> Iterator[tuple[Place, Floats]]:
        """Yield the place of each computed tile and its scaled activity `(N, K, h, w)` [1/px]; elsewhere it is zero."""
        for place, tile in self._pixels:
            height, width = (part.stop - part.start for part in place)
            yield place, tile.astype(np.float32).reshape(*tile.shape[:2], height, width) * self._pixels.unit

    def mean_tiles(self) -> Iterator[tuple[Place, Floats]]:
        """Yield each tile's mean over the samples `(K, h, w)` [1/px]; it is stored, so that less has to be read."""
        mean = cast("zarr.Array[Any]", self._group["images/activity/s0"])
        for place in self._pixels.places():
            yield place, np.asarray(mean[(slice(None), *place)])

    def read(self, place: Place) -> Floats:
        """Scaled activity of a box of pixels (rows, columns) within the map, `(N, K, h, w)` [1/px]."""
        return self._pixels.read(place)

    def law(self, sizes: Floats, genes: Sequence[str] | None = None) -> Sums:
        """Count law of supports whose metagene sizes `(N, S, K)` are known; raises RunError for an unknown gene."""
        return self._sums(sizes, self._columns(genes))

    def size_of(self, label: NDArray[np.integer[Any]], *, n_supports: int | None = None) -> Floats:
        """Metagene sizes of supports, `(N, S, K)`: the scaled activity summed over the pixels of each.

        Args:
            label: `(H, W)`; 0 is none, i is support i - 1.
            n_supports: S; the highest label if not given.

        Raises:
            ShapeError: `label` is not an integer image of the maps' shape, or holds a number outside 0 ... S.
        """
        n_supports = checked_label(label, self.shape, n_supports)
        sizes = np.zeros((n_supports, self.n_samples * self.n_metagenes), np.float32)
        for place, tile in self._pixels:
            inside = label[place].ravel()
            pixels = np.flatnonzero(inside)
            ids, local = np.unique(inside[pixels], return_inverse=True)
            member = sparse.csr_array((np.ones(len(pixels), np.float32), (local, pixels)), (len(ids), len(inside)))
            flat = tile.reshape(-1, len(inside)).astype(np.float32)  # (N K, P)
            sizes[ids - 1] += (member @ flat.T) * self._pixels.unit
        return sizes.reshape(n_supports, self.n_samples, self.n_metagenes).transpose(1, 0, 2)

    def sum_over(
        self,
        label: NDArray[np.integer[Any]],
        genes: Sequence[str] | None = None,
        *,
        n_supports: int | None = None,
    ) -> Sums:
        """Count law of each support of a label image; memory is N x S x G numbers, see `chunks` for more genes.

        Args:
            label: `(H, W)`; 0 is none, i is support i - 1.
            genes: their names; all if not given.
            n_supports: S; the highest label if not given.

        Raises:
            RunError: a gene that the run does not have.
            ShapeError: `label` does not fit the maps.
        """
        columns = self._columns(genes)
        return self._sums(self.size_of(label, n_supports=n_supports), columns)

    def chunks(
        self,
        label: NDArray[np.integer[Any]],
        genes_per_chunk: int = 256,
        *,
        genes: Sequence[str] | None = None,
        n_supports: int | None = None,
    ) -> Iterator[Sums]:
        """Yield `sum_over` a few genes at a time, in the order of `genes`; the pixels are read once."""
        columns = self._columns(genes)
        sizes = self.size_of(label, n_supports=n_supports)
        for start in range(0, len(columns), genes_per_chunk):
            yield self._sums(sizes, columns[start : start + genes_per_chunk])

    def spots(self, section: Section, genes: Sequence[str] | None = None) -> AnnData:
        """Predict the counts of a section's spots.

        Args:
            section: of the same slide.
            genes: their names; those that run and section share if not given.

        Returns:
            Spots x genes: X the expected counts, layers `sd` of the predicted count and `observed` (NaN where the
            section did not measure the gene), obs the section's spots, var gene_id, obsm spatial [um].

        Raises:
            RunError: the section has no spots, shares no gene with the run, or a gene is not of the run.
            AlignmentError: section and maps differ in extent.
        """
        from superst_monai.inference.spots import spots_of

        return spots_of(self, section, genes)

    def spot_label(self, section: Section) -> NDArray[np.int64]:
        """Label image of a section's spots on the maps' pixels, `(H, W)`: 0 none, i = spot i - 1.

        Raises:
            RunError: the section has no spots.
            AlignmentError: section and maps differ in extent.
        """
        self._check_section(section)
        return draw_section(section, self.mpp, self.shape)

    def to_px0(self, row: ArrayLike, col: ArrayLike) -> tuple[Any, Any]:
        """Centre (x_px0, y_px0) of pixels [level-0 px of the slide]."""
        mpp_x, mpp_y = self._slide_mpp
        return (np.asarray(col) + 0.5) * self.mpp / mpp_x, (np.asarray(row) + 0.5) * self.mpp / mpp_y

    def from_px0(self, x_px0: ArrayLike, y_px0: ArrayLike) -> tuple[Any, Any]:
        """Row and column, fractional, whose centres lie at places of the slide; the inverse of `to_px0`."""
        mpp_x, mpp_y = self._slide_mpp
        return np.asarray(y_px0) * mpp_y / self.mpp - 0.5, np.asarray(x_px0) * mpp_x / self.mpp - 0.5

    @property
    def _slide_mpp(self) -> tuple[float, float]:
        slide = self.record["slide"]
        return float(slide["mpp_x"]), float(slide["mpp_y"])

    def _sums(self, sizes: Floats, columns: NDArray[np.int64]) -> Sums:
        """Count laws of supports of known sizes `(N, S, K)`."""
        total = sizes @ np.exp(self.log_rate[:, :, columns])  # (N, S, G)
        return Sums([self.genes[g] for g in columns], total, self.logit[:, columns]).dispersed(self.dispersion)

    def _columns(self, genes: Sequence[str] | None) -> NDArray[np.int64]:
        """Positions of genes; raises RunError for unknown ones."""
        return find_genes(genes, self._index)

    def _check_section(self, section: Section) -> None:
        """Refuse a section without spots, or of another extent than the maps."""
        if not section.has_counts:
            raise RunError(f"section {section.name} must have spots, but is a slide alone; pass a sequenced section.")
        sides = [n * section.mpp for n in section.tissue.shape], [n * self.mpp for n in self.shape]
        if any(abs(one - other) > section.mpp + self.mpp for one, other in zip(*sides, strict=True)):
            size, own = ("x".join(f"{side:.0f}" for side in reversed(pair)) for pair in sides)
            raise AlignmentError(
                f"section {section.name} must be of the slide of the maps ({self.record['source']}), but it measures "
                f"{size} um and the maps {own} um; predict on this section first."
            )
