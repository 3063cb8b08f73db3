"""The would-be release: arithmetic of the merge policies."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from common.errors import ConfigurationError, GuardError, UnknownNameError
from owner.gatekeeper import MergePolicy, merge


def weights(value: float, counter: int, variance: float = 1.0) -> dict[str, Tensor]:
    return {
        "layer.weight": torch.full((2, 3), value),
        "norm.running_var": torch.full((3,), variance),
        "norm.num_batches_tracked": torch.tensor(counter),
        "mask": torch.tensor([True, False]),
    }


def test_average_adds_the_weighted_update_to_current() -> None:
    merged = merge("average", weights(10.0, 1), weights(1.0, 1), weights(3.0, 1), 0.25)
    assert torch.equal(merged["layer.weight"], torch.full((2, 3), 10.5))


def test_average_onto_the_base_itself_is_the_weighted_mean() -> None:
    merged = merge("average", weights(1.0, 1), weights(1.0, 1), weights(3.0, 1), 0.5)
    assert torch.equal(merged["layer.weight"], torch.full((2, 3), 2.0))


def test_replace_is_the_submission() -> None:
    merged = merge("replace", weights(1.0, 1), weights(1.0, 1), weights(3.0, 1))
    assert torch.equal(merged["layer.weight"], torch.full((2, 3), 3.0))


@pytest.mark.parametrize("policy", ["average", "replace"])
def test_counters_and_masks_are_the_current_releases(policy: str) -> None:
    current, submission = weights(1.0, 40), weights(3.0, 90)
    submission["mask"] = torch.tensor([False, False])
    merged = merge(policy, current, weights(1.0, 40), submission)
    assert merged["norm.num_batches_tracked"].dtype == torch.int64
    assert int(merged["norm.num_batches_tracked"]) == 40
    assert merged["mask"].tolist() == [True, False]


def test_replace_onto_another_release_is_refused() -> None:
    with pytest.raises(GuardError, match="current release only"):
        merge("replace", weights(2.0, 1), weights(1.0, 1), weights(3.0, 1))


@given(st.floats(0, 100), st.floats(0, 100), st.floats(0, 100), st.floats(0.01, 1))
def test_a_merged_variance_is_never_negative(current: float, base: float, submission: float, weight: float) -> None:
    merged = merge("average", *(weights(0.0, 1, v) for v in (current, base, submission)), weight)
    assert float(merged["norm.running_var"].min()) >= 0


@given(st.floats(0, 100), st.floats(0, 100), st.floats(0.01, 1))
def test_the_bound_on_variances_changes_nothing_where_base_is_current(
    base: float, submission: float, weight: float
) -> None:
    merged = merge("average", *(weights(0.0, 1, v) for v in (base, base, submission)), weight)
    expected = torch.full((3,), base + weight * (submission - base))
    torch.testing.assert_close(merged["norm.running_var"], expected, rtol=1e-5, atol=1e-5)


def test_merging_keeps_dtypes_and_touches_no_argument() -> None:
    given = [{"w": torch.full((2,), v, dtype=torch.bfloat16)} for v in (1.0, 1.0, 2.0)]
    merged = merge("average", *given, 0.5)
    assert merged["w"].dtype == torch.bfloat16
    merged["w"].zero_()
    assert [float(g["w"][0]) for g in given] == [1.0, 1.0, 2.0]


def test_weights_of_other_names_are_refused_by_name() -> None:
    with pytest.raises(GuardError, match=r"layer\.weight"):
        merge("average", weights(1.0, 1), weights(1.0, 1), {"norm.running_var": torch.ones(3)})


@pytest.mark.parametrize("weight", [0.0, -0.5, 1.1, float("nan")])
def test_a_merge_weight_out_of_range_is_refused(weight: float) -> None:
    with pytest.raises(ConfigurationError, match="merge weight"):
        MergePolicy("average", weight)


def test_an_unknown_policy_is_named_with_the_nearest() -> None:
    with pytest.raises(UnknownNameError) as caught:
        MergePolicy("averaging")  # type: ignore[arg-type]
    assert "average" in caught.value.hint
