"""Section fields: smooth Gaussian Markov random fields on a coarse grid, what the counts say and the image does not.

A field u has K + 1 channels: one is added to the activity logits of each metagene, the last to the log scale. Its
prior on a grid of h x w nodes is a zero-mean Gaussian with precision tau (L + ridge I), L the graph Laplacian of the
grid with free borders. L is diagonal in the basis of the discrete cosine transform (type II), with eigenvalues
4 - 2 cos(pi i / h) - 2 cos(pi j / w), so that determinants and samples are exact and cost one transform.

Source: Rue & Held, Gaussian Markov Random Fields, 2005, section 2.6 (cosine basis of a lattice with free borders).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse
from scipy.fft import idctn
from scipy.sparse.linalg import splu
from scipy.spatial import cKDTree
from torch import Tensor

from superst_monai.errors import ShapeError

Floats = NDArray[np.float64]
RIDGE = 0.02
"""Share of the identity in the precision; neighbouring spots correlate over about 1 / sqrt(RIDGE) = 7 nodes."""


@dataclass(frozen=True)
class FieldGrid:
    """Nodes of a field over a section.

    Attributes:
        x_um: of the first column of nodes, in the section's frame.
        y_um: of the first row.
        spacing_um: between nodes.
        height: rows of nodes.
        width: columns of nodes.
    """

    x_um: float
    y_um: float
    spacing_um: float
    height: int
    width: int

    @classmethod
    def over_spots(cls, x_um: Floats, y_um: Floats, *, per_pitch: float = 2.0) -> FieldGrid:
        """Lay a grid over spots, one pitch beyond them on all sides.

        Args:
            x_um: centres of the spots `(S,)`.
            y_um: the same.
            per_pitch: nodes in one distance between neighbouring spots.

        Raises:
            ShapeError: no spots.
        """
        if not len(x_um):
            raise ShapeError("a section field needs at least one spot, got none; a slide alone has no field to fit.")
        xy = np.column_stack([x_um, y_um])
        pitch = 100.0
        if len(xy) > 1:
            apart = cKDTree(xy).query(xy, k=2)[0][:, 1]
            pitch = float(np.median(apart[apart > 0])) if (apart > 0).any() else pitch
        spacing = pitch / per_pitch
        low, high = xy.min(axis=0) - pitch, xy.max(axis=0) + pitch
        width, height = (math.ceil(extent / spacing) + 1 for extent in high - low)
        return cls(float(low[0]), float(low[1]), spacing, height, width)

    @property
    def n_nodes(self) -> int:
        """Number of nodes."""
        return self.height * self.width

    def weights(self, x_um: Floats, y_um: Floats) -> Tensor:
        """Bilinear interpolation from nodes to points, as a sparse matrix; beyond the grid its border goes on.

        Args:
            x_um: of the points `(P,)`.
            y_um: the same.

        Returns:
            `(P, height * width)` sparse CSR, float32, rows summing to 1.
        """
        (left, right, across), (top, bottom, down) = self._columns(x_um), self._rows(y_um)
        nodes = np.stack([top * self.width + left, top * self.width + right])
        nodes = np.concatenate([nodes, np.stack([bottom * self.width + left, bottom * self.width + right])])  # (4, P)
        shares = np.stack([(1 - down) * (1 - across), (1 - down) * across, down * (1 - across), down * across])
        points = np.tile(np.arange(len(x_um)), 4)
        found = torch.sparse_coo_tensor(
            torch.from_numpy(np.stack([points, nodes.ravel()])),
            torch.from_numpy(shares.ravel().astype(np.float32)),
            (len(x_um), self.n_nodes),
            check_invariants=False,
        )
        return found.coalesce()

    def on_raster(self, field: Tensor, x_um: Floats, y_um: Floats) -> Tensor:
        """Interpolate bilinearly on a raster, the same as `weights` point by point.

        Args:
            field: `(C, height, width)`.
            x_um: of the raster's columns `(w,)`.
            y_um: of its rows `(h,)`.

        Returns:
            `(C, h, w)`.
        """
        (left, right, across), (top, bottom, down) = self._columns(x_um), self._rows(y_um)
        share = torch.from_numpy(across.astype(np.float32))
        lines = field[:, :, left] * (1 - share) + field[:, :, right] * share  # (C, height, w)
        share = torch.from_numpy(down.astype(np.float32))[:, None]
        return lines[:, top] * (1 - share) + lines[:, bottom] * share

    def _columns(self, x_um: Floats) -> tuple[NDArray[np.int64], NDArray[np.int64], Floats]:
        return _between((x_um - self.x_um) / self.spacing_um, self.width)

    def _rows(self, y_um: Floats) -> tuple[NDArray[np.int64], NDArray[np.int64], Floats]:
        return _between((y_um - self.y_um) / self.spacing_um, self.height)

    @cached_property
    def eigenvalues(self) -> Floats:
        """Eigenvalues of L + ridge I in the cosine basis `(height, width)`, all positive."""
        rows, cols = (2.0 - 2.0 * np.cos(np.pi * np.arange(n) / n) for n in (self.height, self.width))
        return np.asarray(rows[:, None] + cols + RIDGE)

    @cached_property
    def log_determinant(self) -> float:
        """log |L + ridge I|."""
        return float(np.log(self.eigenvalues).sum())

    @cached_property
    def diagonal(self) -> Tensor:
        """Diagonal of L + ridge I, number of neighbours plus ridge, `(height, width)` float32."""
        rows, cols = (
            np.full(n, 2.0) - (np.arange(n) == 0) - (np.arange(n) == n - 1) for n in (self.height, self.width)
        )
        return torch.from_numpy((rows[:, None] + cols + RIDGE).astype(np.float32))

    def energy(self, field: Tensor) -> Tensor:
        """u^T (L + ridge I) u of each channel `(..., height, width)`, `(...)`."""
        across, down = field.diff(dim=-1), field.diff(dim=-2)
        return across.square().sum((-2, -1)) + down.square().sum((-2, -1)) + RIDGE * field.square().sum((-2, -1))

    @cached_property
    def differences(self) -> sparse.csr_matrix:
        """Difference of each pair of neighbours, B with L = B^T B, `(pairs, nodes)`."""
        node = np.arange(self.n_nodes).reshape(self.height, self.width)
        pairs = [(node[:, :-1], node[:, 1:]), (node[:-1], node[1:])]
        first, second = (np.concatenate([pair[i].ravel() for pair in pairs]) for i in (0, 1))
        row = np.arange(len(first))
        ends = np.concatenate([first, second]), np.concatenate([np.ones(len(first)), -np.ones(len(second))])
        return sparse.csr_matrix((ends[1], (np.tile(row, 2), ends[0])), shape=(len(first), self.n_nodes))

    def prior_sample(self, log_precision: Floats, rng: np.random.Generator) -> NDArray[np.float32]:
        """Exact draw from the prior, `(C, height, width)`.

        Args:
            log_precision: log tau of each channel `(C,)`.
            rng: source of the noise.
        """
        noise = rng.standard_normal((len(log_precision), self.height, self.width))
        scaled = noise / np.sqrt(np.exp(log_precision)[:, None, None] * self.eigenvalues)
        return np.asarray(idctn(scaled, axes=(1, 2), norm="ortho"), dtype=np.float32)

    def posterior_noise(
        self, sd: NDArray[np.float32], log_precision: Floats, streams: Sequence[np.random.Generator]
    ) -> NDArray[np.float32]:
        """Draws round the mean of the posterior of which a mean-field guide knows the standard deviations.

        For a Gaussian of precision P the best independent normals have s_i^2 = 1 / P_ii (Bishop, Pattern Recognition
        and Machine Learning, 2006, section 10.1.2): between and beyond spots they are far too narrow. Let P = tau Q + D
        with Q = L + ridge I and D the diagonal of what the data say. Then D_ii = 1 / s_i^2 - tau Q_ii, and a draw is
        the solution x of P x = D^(1/2) e + tau^(1/2) (B^T e' + ridge^(1/2) e'') with standard normal e (Papandreou &
        Yuille, Gaussian sampling by local perturbations, NIPS 2010).

        Args:
            sd: s of each channel `(C, height, width)`.
            log_precision: log tau `(C,)`.
            streams: source of the noise of each draw.

        Returns:
            `(len(streams), C, height, width)`.
        """
        smooth = self.differences.T @ self.differences + RIDGE * sparse.identity(self.n_nodes)
        found = np.empty((len(streams), *sd.shape), np.float32)
        for channel, tau in enumerate(np.exp(np.asarray(log_precision, np.float64))):
            said = 1.0 / np.square(sd[channel].astype(np.float64)) - tau * self.diagonal.double().numpy()
            said = np.maximum(said, 0.0).ravel()
            solver = splu((tau * smooth + sparse.diags(said)).tocsc())
            parts = [[rng.standard_normal(n) for n in (*self.differences.shape, self.n_nodes)] for rng in streams]
            across, here, ridge = (np.stack(part, 1) for part in zip(*parts, strict=True))
            pull = np.sqrt(tau) * (self.differences.T @ across + np.sqrt(RIDGE) * ridge)
            drawn = solver.solve(np.sqrt(said)[:, None] * here + pull)  # (nodes, draws)
            found[:, channel] = drawn.T.reshape(len(streams), self.height, self.width)
        return found


def _between(place: Floats, n: int) -> tuple[NDArray[np.int64], NDArray[np.int64], Floats]:
    """Nodes on both sides of places in units of the spacing, held within 0 ... n - 1, and the share of the second."""
    place = np.clip(place, 0, n - 1)
    first = np.minimum(np.floor(place).astype(np.int64), max(n - 2, 0))
    return first, np.minimum(first + 1, n - 1), place - first


def field_divergence(mean: Tensor, log_sd: Tensor, log_precision: Tensor, grid: FieldGrid) -> Tensor:
    """KL of independent normals at the nodes from the prior [nat], summed over channels.

    KL = (tau (m^T Q m + sum_i Q_ii s_i^2) - n - n log tau - log |Q|) / 2 - sum_i log s_i with Q = L + ridge I.

    Args:
        mean: `(C, height, width)`.
        log_sd: the same shape.
        log_precision: log tau `(C,)`.
        grid: of the nodes.
    """
    spread = (grid.diagonal.to(mean.device) * (2.0 * log_sd).exp()).sum((-2, -1))
    quadratic = log_precision.exp() * (grid.energy(mean) + spread)
    constant = grid.n_nodes * (1.0 + log_precision) + grid.log_determinant
    return (0.5 * (quadratic - constant) - log_sd.sum((-2, -1))).sum()
