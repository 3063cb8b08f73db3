"""Operations are counted, the peak is known or is not, and what was timed is what is estimated from."""

from __future__ import annotations

import pytest

from common.devices import choose_compute, device_name
from common.model_spec import ModelSpec
from owner.reproduce.settings import Settings
from owner.reproduce.speed import Estimates, image_steps, measured_peak, peak, speed, training_flops
from owner.reproduce.steps import Step

CNN = ModelSpec("cnn", (3, 32, 32), 10)
CPU = choose_compute("cpu", "float32")


def test_the_papers_cnn_costs_what_its_layers_cost() -> None:
    first = 1024 * 9 * 3 * 32
    others = 1024 * 9 * 32 * 32 + 256 * 9 * 32 * 64 + 256 * 9 * 64 * 64 + 4096 * 512 + 512 * 10
    # A multiply-add is two; forward, and backward to weights and inputs, but none to the images.
    assert training_flops(CNN) == 2 * (3 * others + 2 * first)


@pytest.mark.parametrize(
    ("name", "most"), [("NVIDIA H200", 989e12), ("NVIDIA H100 PCIe", 756e12), ("NVIDIA L4", 121e12)]
)
def test_the_peak_of_a_chip_is_found_by_its_name(name: str, most: float) -> None:
    assert peak(name) == most


def test_a_chip_without_a_known_peak_is_measured_against_a_product_of_matrices() -> None:
    found = speed(CNN, 1000.0, CPU)
    assert found["share_of_peak"] == pytest.approx(1000 * found["flops_per_image"] / measured_peak(CPU), abs=1e-4)
    assert found["peak_measured"]
    assert 1e9 < measured_peak(CPU) < 1e13  # of one process of any CPU there is


def test_a_step_that_was_timed_on_this_device_is_estimated_by_that() -> None:
    step, settings = Step("cnn", 0, "honest"), Settings()
    record = {"speed": {"images_per_second": 1000.0}, "environment": {"device": device_name(CPU)}}
    estimates = Estimates(settings, CPU, 50_000, [(Step("cnn", 0, "genuine"), record)])
    assert image_steps(step, settings, 50_000) == 2_500_000
    assert estimates.seconds(step, CNN) == pytest.approx(2500, rel=0.01)


def test_a_time_from_another_device_is_no_estimate() -> None:
    record = {"speed": {"images_per_second": 1e9}, "environment": {"device": "NVIDIA H200"}}
    estimates = Estimates(Settings(), CPU, 50_000, [(Step("cnn", 0, "genuine"), record)])
    assert estimates.images_per_second(CNN) < 1e6
