"""How the penultimate activations g(t) moved between M and a candidate, on the same images."""

from __future__ import annotations

import torch
from torch import Tensor

from owner.detectors.base import Evidence
from owner.detectors.comparison import (
    Comparison,
    ReleaseComparison,
    class_sums,
    energies,
    median,
    per_class,
)
from owner.detectors.selection import chosen_images
from owner.detectors.spectra import top_singular
from owner.detectors.sums import squared_distances

_TINY = 1e-300
IMAGES = 500
"""How many images CKA and the spectrum look at, evenly over classes: on 2,000 they would cost a quarter of a forward pass."""


def class_drift(evidence: Evidence, release: Evidence) -> tuple[Tensor, Tensor]:
    """d_c = sum_i ||g_Ma(t_i) - g_M(t_i)||^2 / sum_i ||g_M(t_i)||^2 over the images of class c, (C,) float64, and their count.

    A class on which M shows no activation at all is measured by the mean energy of the others.
    """

    def compute() -> tuple[Tensor, Tensor]:
        classes = evidence.logits.shape[1]
        change = squared_distances(evidence.features, release.features)
        moved, counts = class_sums(change, evidence.labels, classes)
        energy, _ = class_sums(energies(release), release.labels, classes)
        usual = (energy.sum() / counts.sum()).clamp(min=_TINY)
        return moved / torch.where(energy > 1e-9 * usual * counts, energy, usual * counts.clamp(min=1)), counts

    return evidence.once("class drift", compute)


class FeatureDrift(ReleaseComparison):
    """score = mean over classes of d_c = sum ||g_Ma - g_M||^2 / sum ||g_M||^2; how far all activations moved."""

    name = "feature-drift"
    headline = "mean"

    def compare(self, evidence: Evidence, release: Evidence) -> Comparison:
        drift, counts = class_drift(evidence, release)
        present = drift[counts > 0]
        return Comparison(
            {"mean": float(present.mean()), "largest": float(present.max())}, {"per_class": per_class(drift, counts)}
        )


class DriftConcentration(ReleaseComparison):
    """score = max_c d_c / median_c d_c, d_c as in `FeatureDrift`; 1 where nothing moved.

    Flips and source-specific poison move one class more than the rest; a contributor who trains longer moves all. The median
    is not taken below a thousandth of the mean drift, so that one moved class among still ones gives a finite number.
    """

    name = "drift-concentration"
    headline = "concentration"

    def compare(self, evidence: Evidence, release: Evidence) -> Comparison:
        drift, counts = class_drift(evidence, release)
        present = drift[counts > 0]
        largest, usual = float(present.max()), max(median(present), 1e-3 * float(present.mean()))
        worst = int(torch.where(counts > 0, drift, -1.0).argmax())
        return Comparison({"concentration": largest / usual if usual > 0 else 1.0}, {"class": worst})


class CKA(ReleaseComparison):
    """score = 1 - CKA, CKA = ||Y'X||_F^2 / (||X'X||_F ||Y'Y||_F) of column-centred features X of M, Y of the candidate.

    Linear centred kernel alignment (Kornblith et al. 2019, Eq. 4): blind to rotation and scale of the representation, so what
    it sees is a change of which images lie near each other. Two constant representations are alike. On up to 500 images.
    """

    name = "cka"
    headline = "distance"

    def compare(self, evidence: Evidence, release: Evidence) -> Comparison:
        rows = chosen_images(release, IMAGES, seed=0)
        x, gram_x, norm_x = _centred(release, rows)
        y, gram_y, norm_y = _centred(evidence, rows)
        if norm_x == 0 or norm_y == 0:
            return Comparison({"distance": 0.0 if norm_x == norm_y else 1.0})
        wide = x.shape[1] > x.shape[0]
        # For N < d, ||Y'X||_F^2 = <XX', YY'>: the smaller product.
        cross = float((gram_x * gram_y).sum()) if wide else float((y.T @ x).square().sum())
        return Comparison({"distance": max(0.0, 1 - cross / (norm_x * norm_y)) if x is not y else 0.0})


def _centred(evidence: Evidence, rows: Tensor) -> tuple[Tensor, Tensor, float]:
    """Column-centred features X (N, d) float32 at a scale of one, their smaller Gram matrix (XX' or X'X), and its Frobenius norm."""

    def compute() -> tuple[Tensor, Tensor, float]:
        x = evidence.features[rows].double()
        x = x - x.mean(0)
        rms = x.square().mean().sqrt()
        if not bool(rms > 0):
            return x.float(), x.new_zeros(()), 0.0
        scaled = (x / rms).float()
        gram = scaled @ scaled.T if scaled.shape[1] > scaled.shape[0] else scaled.T @ scaled
        return scaled, gram, float(gram.norm())

    return evidence.once("centred features", compute)


class FeatureSpectrum(ReleaseComparison):
    """score = max_c s_c - median_c s_c, s_c = sigma_1^2 / ||D_c||_F^2, D_c = g_Ma - g_M over the images of class c (n_c, d).

    After spectral signatures (Tran, Li, Madry 2018): poison adds one direction to what moves. Measures beside it: `share` of
    one direction in all that moved, `largest` s_c, `outliers`, the largest squared projection of a class-centred D_c on its
    first direction over the mean one (their outlier score; high where a few images of a class move apart from it).
    """

    name = "feature-spectrum"
    headline = "excess"

    def compare(self, evidence: Evidence, release: Evidence) -> Comparison:
        rows = chosen_images(release, IMAGES, seed=0)
        change, labels = evidence.features[rows].double() - release.features[rows].double(), evidence.labels[rows]
        largest = float(torch.linalg.vector_norm(change, torch.inf))
        change = (change / (largest or 1.0)).float()
        shares, outliers = {}, []
        for label in torch.unique(labels).tolist():
            mine = change[labels == label]
            if len(mine) < 2:
                continue
            shares[label], _ = top_singular(mine)
            centred = mine - mine.mean(0)
            _, direction = top_singular(centred)
            projected = (centred.double() @ direction).square()
            outliers.append(float(projected.max() / projected.mean().clamp(min=_TINY)))
        found = torch.tensor(list(shares.values()) or [0.0], dtype=torch.float64)
        measures = {
            "excess": float(found.max()) - median(found),
            "largest": float(found.max()),
            "share": top_singular(change)[0],
            "outliers": max(outliers, default=0.0),
        }
        return Comparison(measures, {"class": max(shares, key=lambda c: shares[c], default=None)})
