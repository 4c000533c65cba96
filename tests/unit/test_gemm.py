"""The choice between the CPU's two routes for float32 matrix products."""

import json
from pathlib import Path

import pytest
import torch

from kdx import gemm


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    before = torch.get_float32_matmul_precision()
    yield tmp_path / "kdx" / "gemm.json"
    torch.set_float32_matmul_precision(before)


def test_a_named_route_is_taken_without_measuring(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(gemm, "faster_gemm")
    for route, precision in (("default", "highest"), ("onednn", "medium")):
        assert gemm.set_gemm(route) == route
        assert torch.get_float32_matmul_precision() == precision
    assert not cache.exists()


def test_auto_measures_once_per_machine_and_remembers(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = iter(["onednn"])
    monkeypatch.setattr(gemm, "faster_gemm", lambda: next(answers))
    assert [gemm.set_gemm("auto") for _ in range(3)] == ["onednn"] * 3
    (machine,) = json.loads(cache.read_text())
    assert torch.__version__ in machine
    assert f"{torch.get_num_threads()} threads" in machine


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b'{"other machine": "onednn"}', b"\xff"])
def test_a_memory_that_says_nothing_about_this_machine_is_not_believed(
    cache: Path, content: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache.parent.mkdir()
    cache.write_bytes(content)
    monkeypatch.setattr(gemm, "faster_gemm", lambda: "default")
    assert gemm.set_gemm("auto") == "default"
    assert "default" in json.loads(cache.read_text()).values()


@pytest.mark.parametrize("route", ["default", "onednn"])
def test_the_route_that_takes_less_time_wins(route: str, monkeypatch: pytest.MonkeyPatch) -> None:
    fast = gemm.PRECISION[route]

    def timed(left: torch.Tensor, right: torch.Tensor) -> tuple[torch.Tensor, float]:
        return left @ right, 1.0 if torch.get_float32_matmul_precision() == fast else 2.0

    monkeypatch.setattr(gemm, "_timed_products", timed)
    assert gemm.faster_gemm() == route


def test_a_fast_route_that_is_not_float32_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def timed(left: torch.Tensor, right: torch.Tensor) -> tuple[torch.Tensor, float]:
        if torch.get_float32_matmul_precision() == "medium":
            return (left.bfloat16() @ right.bfloat16()).float(), 1.0
        return left @ right, 2.0

    monkeypatch.setattr(gemm, "_timed_products", timed)
    assert gemm.faster_gemm() == "default"


def test_measuring_leaves_the_setting_alone() -> None:
    torch.set_float32_matmul_precision("high")
    gemm.faster_gemm()
    assert torch.get_float32_matmul_precision() == "high"
