"""How the weights changed between M and a candidate: no forward pass at all."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from owner.detectors.base import Evidence
from owner.detectors.comparison import Comparison, ReleaseComparison, median
from owner.detectors.spectra import top_singular
from owner.detectors.sums import norm

_STATISTICS = frozenset({"running_mean", "running_var", "num_batches_tracked"})


def trained(evidence: Evidence) -> dict[str, Tensor]:
    """The floating entries of the state dict that are no BatchNorm statistics by their name."""
    return {
        name: tensor
        for name, tensor in evidence.weights.items()
        if tensor.is_floating_point() and tensor.numel() and name.rpartition(".")[2] not in _STATISTICS
    }


def update(evidence: Evidence, release: Evidence) -> dict[str, Tensor]:
    """w_a - w_M of every trained tensor, float32 unless an entry overflows there."""

    def compute() -> dict[str, Tensor]:
        before, found = trained(release), {}
        for name, after in trained(evidence).items():
            change = after.float() - before[name].float()
            finite = math.isfinite(float(torch.linalg.vector_norm(change, torch.inf)))
            found[name] = change if finite else after.double() - before[name].double()
        return found

    return evidence.once("update", compute)


def _sizes(release: Evidence) -> dict[str, float]:
    """Frobenius norm of every trained tensor of M."""
    return release.once("sizes", lambda: {name: norm(tensor) for name, tensor in trained(release).items()})


def _moved(evidence: Evidence, release: Evidence) -> dict[str, float]:
    """||w_a - w_M|| of every trained tensor."""
    return evidence.once("moved", lambda: {name: norm(change) for name, change in update(evidence, release).items()})


class UpdateNorm(ReleaseComparison):
    """score = ||w_a - w_M|| / ||w_M|| over all trained weights; `layer`, the largest of the same within one tensor.

    Tensors of the state dict that M has at zero (fresh biases) count in the whole and not by themselves.
    """

    name = "update-norm"
    headline = "relative"
    reads_weights = True

    def compare(self, evidence: Evidence, release: Evidence) -> Comparison:
        moved = _moved(evidence, release)
        sizes = _sizes(release)
        layers = {
            name: moved[name] / size for name, size in sizes.items() if size > 0 and release.weights[name].ndim > 1
        }
        worst = max(layers, key=lambda name: layers[name], default=None)
        whole, size = math.hypot(*moved.values()), math.hypot(*sizes.values())
        relative = whole / size if size > 0 else whole
        return Comparison({"relative": relative, "layer": layers[worst] if worst else 0.0}, {"layer_name": worst})


class UpdateSpectrum(ReleaseComparison):
    """score = mean over matrices and filter banks of sigma_1^2 / ||dW||_F^2, dW = w_a - w_M as (out, the rest).

    A narrow aim, one trigger to one class, writes an update of low rank. 0 for what did not move. `largest` is that of one layer,
    `head` that of the last.
    """

    name = "update-spectrum"
    headline = "mean"
    reads_weights = True

    def compare(self, evidence: Evidence, release: Evidence) -> Comparison:
        shares = {
            name: top_singular(change.flatten(1), norm=_moved(evidence, release)[name])[0]
            for name, change in update(evidence, release).items()
            if change.ndim > 1 and min(change.flatten(1).shape) > 1
        }
        if not shares:
            return Comparison({"mean": 0.0, "largest": 0.0, "head": 0.0}, {"applicable": False})
        values = list(shares.values())
        measures = {"mean": sum(values) / len(values), "largest": max(values), "head": values[-1]}
        return Comparison(measures, {"layer_name": max(shares, key=lambda name: shares[name])})


class HeadDrift(ReleaseComparison):
    """score = max_c (n_c - m) / s, n_c = ||(dW_c, db_c)||: one class's row of the last layer moved more than the others'.

    m and s are the median and 1.4826 MAD of the *other* rows' n, s not below a tenth of m. `bias` is the same one-sidedly of
    db_c: a target class is made likelier. `relative` is ||dW|| / ||W|| of the head. The last layer is the last matrix
    (C, d) of the state dict, d the width of the features; a model without one scores 0.
    """

    name = "head-drift"
    headline = "row"
    reads_weights = True

    def compare(self, evidence: Evidence, release: Evidence) -> Comparison:
        head = find_head_weights(evidence)
        if head is None:
            return Comparison({"row": 0.0, "bias": 0.0, "relative": 0.0}, {"applicable": False})
        change = evidence.weights[head].double() - release.weights[head].double()
        bias_name = f"{head.rpartition('.')[0]}.bias".lstrip(".")
        bias = torch.zeros(len(change), dtype=torch.float64)
        if bias_name in evidence.weights and evidence.weights[bias_name].shape == bias.shape:
            bias = evidence.weights[bias_name].double() - release.weights[bias_name].double()
        rows = torch.cat([change, bias[:, None]], 1).norm(dim=1)
        size = float(release.weights[head].double().norm())
        standard, shift = _against_others(rows), _against_others(bias, floor=float(rows.median()) * 0.1)
        measures = {
            "row": max(standard),
            "bias": max(0.0, *shift),
            "relative": float(change.norm()) / size if size > 0 else float(change.norm()),
        }
        return Comparison(measures, {"class": standard.index(max(standard)), "tensor": head, "rows": rows.tolist()})


def find_head_weights(evidence: Evidence) -> str | None:
    """Name of the last matrix (C, d) that takes the features to the logits."""
    shape = (evidence.logits.shape[1], evidence.features.shape[1])
    return next((name for name in reversed(list(trained(evidence))) if evidence.weights[name].shape == shape), None)


def _against_others(values: Tensor, *, floor: float = 0.0) -> list[float]:
    """Each value's robust z against the others'; 0 where nothing moved."""
    found = []
    for c in range(len(values)):
        others = torch.cat([values[:c], values[c + 1 :]])
        if not len(others):
            return [0.0]
        middle = median(others)
        spread = max(1.4826 * median((others - middle).abs()), 0.1 * abs(middle), floor)
        # One row among rows that stand still: its own size is the only measure there is.
        spread = spread or abs(float(values[c])) / 10
        found.append((float(values[c]) - middle) / spread if spread > 0 else 0.0)
    return found


class BatchNormDrift(ReleaseComparison):
    """score = mean over channels of KL(N(mu_a, v_a) || N(mu_M, v_M)) of the running statistics, the largest layer's.

    KL = 1/2 (v_a/v_M + (mu_a - mu_M)^2 / v_M - 1 - log v_a/v_M), v with BatchNorm's usual 1e-5 added. Poisoned batches, and other domains,
    move them. `mean` is over all channels, `channel` the largest channel's. A model without running statistics scores 0; one
    whose poisoner put M's statistics back scores 0 too.
    """

    name = "batchnorm-drift"
    headline = "layer"
    reads_weights = True

    def compare(self, evidence: Evidence, release: Evidence) -> Comparison:
        found = {}
        for name in evidence.weights:
            if name.rpartition(".")[2] == "running_var":
                layer = name.removesuffix("running_var")
                found[layer.rstrip(".")] = _divergence(
                    *(
                        e.weights[layer + part].double()
                        for e in (evidence, release)
                        for part in ("running_mean", "running_var")
                    )
                )
        if not found:
            return Comparison({"layer": 0.0, "mean": 0.0, "channel": 0.0}, {"applicable": False})
        layers = {name: float(kl.mean()) for name, kl in found.items()}
        channels = torch.cat(list(found.values()))
        worst = max(layers, key=lambda name: layers[name])
        measures = {"layer": layers[worst], "mean": float(channels.mean()), "channel": float(channels.max())}
        return Comparison(measures, {"layer_name": worst})


def _divergence(mean: Tensor, variance: Tensor, old_mean: Tensor, old_variance: Tensor) -> Tensor:
    """(channels,), nats; never below 0."""
    ratio = (variance.clamp(min=0) + 1e-5) / (old_variance.clamp(min=0) + 1e-5)
    shift = (mean - old_mean).square() / (old_variance.clamp(min=0) + 1e-5)
    return (0.5 * (ratio + shift - 1 - ratio.log())).clamp(min=0)


class ChannelLipschitz(ReleaseComparison):
    """score = max over layers and channels of (r_a - r_M) / std(r_M), r a channel's Lipschitz bound over its layer's mean one.

    Channel Lipschitzness (Zheng, Tang, Li, Liu, ECCV 2022): sigma_k, the largest singular value of filter k as a matrix
    (C_in, kh kw), times |gamma_k| / sqrt(v_k + 1e-5) of the BatchNorm that follows. They prune channels with
    z_k = (sigma_k - mean) / std over the layer beyond 3; here it is the rise against M that counts, in units of M's spread, as one
    steep channel would shrink every other's z. `largest` is the change of the layer's largest z_k, the most over layers. Rows
    of matrices count as filters of one input. The BatchNorm that follows is the next one in the state dict, before another
    filter bank, with as many channels.
    """

    name = "channel-lipschitz"
    headline = "rise"
    reads_weights = True

    def compare(self, evidence: Evidence, release: Evidence) -> Comparison:
        after, before = _channel_bounds(evidence), _channel_bounds(release)
        if not after:
            return Comparison({"rise": 0.0, "largest": 0.0}, {"applicable": False})
        rises = {name: _relative(s) - _relative(before[name]) for name, s in after.items()}
        rises = {name: rise / _spread(_relative(before[name])) for name, rise in rises.items()}
        worst = max(rises, key=lambda name: float(rises[name].max()))
        measures = {
            "rise": float(rises[worst].max()),
            "largest": max(_largest_z(after[name]) - _largest_z(before[name]) for name in after),
        }
        return Comparison(measures, {"layer_name": worst, "channel": int(rises[worst].argmax())})


def _relative(bounds: Tensor) -> Tensor:
    return bounds / bounds.mean().clamp(min=torch.finfo(torch.float64).tiny)


def _spread(bounds: Tensor) -> Tensor:
    return bounds.std(correction=0).clamp(min=1e-12 + 1e-3 * float(bounds.mean()))


def _largest_z(bounds: Tensor) -> float:
    return float(((bounds - bounds.mean()) / _spread(bounds)).max())


def _channel_bounds(evidence: Evidence) -> dict[str, Tensor]:
    """Lipschitz bound of every channel by layer, (C_out,) float64."""

    def compute() -> dict[str, Tensor]:
        weights, found, latest = evidence.weights, {}, None
        for name, tensor in weights.items():
            layer, _, part = name.rpartition(".")
            if part == "running_var" and latest and len(found[latest]) == len(tensor):
                gain = weights.get(f"{layer}.weight", torch.ones(len(tensor)))
                found[latest] = found[latest] * gain.double().abs() / (tensor.double().clamp(min=0) + 1e-5).sqrt()
                latest = None
            elif tensor.is_floating_point() and tensor.ndim > 1 and len(tensor) > 1:
                latest = name
                found[name] = _largest_singular_values(tensor)
        return found

    return evidence.once("channel Lipschitz bounds", compute)


def _largest_singular_values(filters: Tensor) -> Tensor:
    """(C_out,) float64, of each filter (C_in, the rest); of a matrix, the norms of its rows."""
    if filters.ndim == 2:
        rows: Tensor = torch.linalg.vector_norm(filters, dim=1, dtype=torch.float64)
        return rows
    shaped = filters.double().flatten(2)
    if shaped.shape[1] < shaped.shape[2]:
        shaped = shaped.transpose(1, 2)
    gram = shaped.transpose(1, 2) @ shaped
    result: Tensor = torch.linalg.eigvalsh(gram)[:, -1].clamp(min=0).sqrt()
    return result
