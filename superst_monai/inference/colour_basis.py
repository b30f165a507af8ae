"""Colours round a place as functions of a regression: linear, and by their likeness to those of known spots."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.cluster import kmeans_plusplus
from sklearn.metrics.pairwise import rbf_kernel

Floats = NDArray[np.float64]
FARTHEST = 4.0
"""Standard deviations of the training spots beyond which a feature counts as that far and no farther."""
WEIGHT_SD = 0.05
"""Prior standard deviation of a standardised feature's weight on a metagene's logit."""
KERNEL_SD = 0.5
"""Prior standard deviation of what is not linear in a metagene's logit."""
LANDMARKS = 400
"""Spots at most to which others are likened."""


@dataclass(frozen=True, eq=False)
class Basis:
    """Functions of the colours round a spot, whose weights on a metagene's logit are Normal(0, 1) before the counts.

    With such weights their sum is a Gaussian process over standardised features z, of covariance
    WEIGHT_SD^2 z z' + KERNEL_SD^2 likeness(z, z'): linear, and what is not. It is exact at the landmarks, and all spots
    are landmarks unless they are many; then it is Nystroem's approximation (Williams & Seeger, NIPS 2000).

    Attributes:
        mean: of the features over the spots that are fitted to `(F,)`.
        sd: the same `(F,)`.
        landmarks: standardised features of LANDMARKS of these spots at most `(J, F)`.
        root: of the inverse of the covariance between landmarks `(J, R)`, without directions that they hardly have.
    """

    mean: Floats
    sd: Floats
    landmarks: Floats
    root: Floats

    @classmethod
    def of(cls, features: Floats, *, seed: int) -> Basis:
        """Of the spots that are fitted to `(S, F)`; the seed draws the landmarks, spread out, from more spots.

        scikit-learn's Nystroem keeps directions down to 1e-12 of the covariance: weights that float32 cannot carry.
        """
        mean, sd = features.mean(axis=0), features.std(axis=0) + 1e-6
        landmarks = standardised(features, mean, sd)
        if len(landmarks) > LANDMARKS:
            landmarks = kmeans_plusplus(landmarks, LANDMARKS, random_state=seed)[0]
        values, vectors = np.linalg.eigh(likeness(landmarks, landmarks))
        whole = values > 1e-4 * values.max()
        return cls(mean, sd, landmarks, vectors[:, whole] / np.sqrt(values[whole]))

    def scaled(self, features: Floats) -> Floats:
        """Standardised features of places `(S, F)`."""
        return standardised(features, self.mean, self.sd)

    def __call__(self, features: Floats) -> Floats:
        """The functions at places of given features `(S, F + R)`."""
        z = self.scaled(features)
        return np.hstack([WEIGHT_SD * z, KERNEL_SD * likeness(z, self.landmarks) @ self.root])

    def unfolded(self, weights: Floats) -> tuple[Floats, Floats]:
        """Weights of the functions `(F + R, K)` as those of the features `(F, K)` and of the likeness `(J, K)`."""
        n = len(self.mean)
        return WEIGHT_SD * weights[:n], KERNEL_SD * self.root @ weights[n:]


def standardised(features: NDArray[Any], mean: NDArray[Any], sd: NDArray[Any]) -> NDArray[Any]:
    """Features `(S, F)` in standard deviations from their mean, FARTHEST at most."""
    return np.asarray(np.clip((features - mean) / sd, -FARTHEST, FARTHEST))


def likeness(features: NDArray[Any], landmarks: NDArray[Any]) -> NDArray[Any]:
    """How like places are to others, from the standardised features of both: exp(-d^2 / (2 F)) `(S, J)`.

    d is the distance of their F features; two spots at random are sqrt(2 F) apart, and exp(-1) alike.
    """
    return np.asarray(rbf_kernel(features, landmarks, gamma=0.5 / features.shape[1]))
