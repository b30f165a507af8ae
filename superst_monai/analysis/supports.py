"""What a prediction is summed over: pixels, bins, spots, cells or regions, and the sums, tile by tile."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import sparse

from superst_monai.analysis.polygon_coverage import Shares
from superst_monai.errors import RunError
from superst_monai.inference.maps import Maps
from superst_monai.inference.sample_tiles import Place

Floats = NDArray[np.float32]
Indices = NDArray[np.int64]


class Piece(NamedTuple):
    """Finished sums of some supports."""

    rows: Indices  # (s,), which of the supports
    sizes: Floats  # (N, s, K), their metagene sizes
    covered_px: Floats  # (s,), area of theirs that was predicted [px]
    done: float  # share of the slide that is summed, 1 with the last


class Supports(ABC):
    """S parts of a slide, each of which has counts of its own.

    Attributes:
        kind: what they are, in the plural: "bins".
        size_um: side of those of a grid [um]; None where each has its own.
        notes: what was left out or changed, one sentence each.
    """

    kind: str
    size_um: float | None = None
    notes: tuple[str, ...] = ()

    @abstractmethod
    def __len__(self) -> int:
        """S."""

    @abstractmethod
    def table(self) -> pd.DataFrame:
        """S rows of unique names: x_um, y_um (centre), area_um2 (within the slide), and what else is known."""

    @abstractmethod
    def pieces(self, maps: Maps) -> Iterator[Piece]:
        """Yield the sums of the supports, each at most once; one that has no predicted pixel may be missing."""

    def outlines_um(self) -> NDArray[Any]:
        """Outlines, shapely polygons `(S,)` [um].

        Raises:
            RunError: these supports have none.
        """
        raise RunError(f"{self.kind} of a label image have no outlines; write .h5ad, .csv or .parquet instead.")


class SharedPixels(Supports):
    """Supports of any form, each given by its shares of pixels."""

    @abstractmethod
    def shares(self, place: Place) -> Shares:
        """What they cover of a box of pixels."""

    @abstractmethod
    def ends(self) -> Indices:
        """Last row and last column that each may reach, plus one, `(S, 2)` [px]."""

    def pieces(self, maps: Maps) -> Iterator[Piece]:
        """Yield the sums of the supports as soon as no later tile can add to them.

        A support has in each posterior sample the sum of its shares of the pixels' metagene sizes. Negative binomials
        of one logit add, and a share of a pixel has that share of its total count, so that this is its law.
        """
        ends = self.ends()
        waiting, sums = np.zeros(0, np.int64), np.zeros((0, maps.n_samples * maps.n_metagenes + 1), np.float32)
        for place, samples in maps.tiles():
            values = np.concatenate([samples.reshape(sums.shape[1] - 1, -1), maps.covered[place].reshape(1, -1)])
            ids, added = _add_up(self.shares(place), values)
            together = np.union1d(waiting, ids)
            total = np.zeros((len(together), sums.shape[1]), np.float32)
            total[np.searchsorted(together, waiting)] = sums
            total[np.searchsorted(together, ids)] += added
            bottom, right = ends[together].T
            rows, cols = place
            done = (bottom <= rows.start) | ((bottom <= rows.stop) & (right <= cols.stop))
            yield _piece(together[done], total[done], maps, _passed(place, maps.shape))
            waiting, sums = together[~done], total[~done]
        yield _piece(waiting, sums, maps, 1.0)


def _add_up(shares: Shares, values: Floats) -> tuple[Indices, Floats]:
    """Supports `(s,)` in ascending order, and the sums `(s, V)` over their shares of pixels of values `(V, P)`."""
    ids, local = np.unique(shares.support, return_inverse=True)
    member = sparse.csr_array((shares.share, (local, shares.pixel)), (len(ids), values.shape[1]))
    return ids, np.asarray(member @ values.T)


def _piece(rows: Indices, sums: Floats, maps: Maps, done: float) -> Piece:
    sizes = sums[:, :-1].reshape(len(rows), maps.n_samples, maps.n_metagenes)
    return Piece(rows, sizes.transpose(1, 0, 2), sums[:, -1], done)


def _passed(place: Place, shape: tuple[int, int]) -> float:
    """Share of the slide up to a tile, row by row."""
    rows, cols = place
    return float(rows.start * shape[1] + (rows.stop - rows.start) * cols.stop) / (shape[0] * shape[1])
