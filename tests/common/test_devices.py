from __future__ import annotations

import pytest
import torch

from common.devices import Compute, choose_compute
from common.errors import ConfigurationError, UnknownNameError


def test_a_chosen_compute_survives_json() -> None:
    for precision in ("float32", "bfloat16"):
        compute = choose_compute("cpu", precision)
        assert Compute.from_json(compute.to_json()) == compute


def test_auto_takes_bfloat16_only_where_the_cpu_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True}, raising=False)
    assert choose_compute("cpu").dtype == torch.float32
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_bf16": True}, raising=False)
    assert choose_compute("cpu").dtype == torch.bfloat16


def test_autocast_computes_matrix_products_in_the_chosen_dtype() -> None:
    a = torch.ones(2, 2)
    for precision, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16)):
        with choose_compute("cpu", precision).autocast():
            assert (a @ a).dtype == dtype


def test_an_unknown_precision_names_the_nearest() -> None:
    with pytest.raises(UnknownNameError) as caught:
        choose_compute("cpu", "bfloat")
    assert "did you mean bfloat16?" in caught.value.hint


def test_an_unknown_device_names_the_nearest() -> None:
    with pytest.raises(UnknownNameError) as caught:
        choose_compute("cpuu")
    assert "did you mean cpu?" in caught.value.hint


@pytest.mark.parametrize("device", ["cuda:63", "meta", "xla"])
def test_a_device_this_machine_lacks_is_refused_in_one_line(device: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        choose_compute(device)
    assert device in caught.value.message
    assert "\n" not in caught.value.message


def test_a_stored_compute_without_its_dtype_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="dtype"):
        Compute.from_json({"device": "cpu"})
