"""The choice between the CPU's two libraries of float32 matrix products, for processors that this one need not be."""

import pytest
import torch

from kdx import gemm
from kdx.errors import UserError

AMX = {"architecture": "x86_64", "amx_tile": True, "avx512_bf16": True}
AVX512 = {"architecture": "x86_64", "amx_tile": False, "avx512_bf16": True}
ARM = {"architecture": "arm64", "bf16": True}


@pytest.fixture(autouse=True)
def no_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ONEDNN_MAX_CPU_ISA", *gemm.ROUNDING_MODES):
        monkeypatch.delenv(name, raising=False)


def on(processor: dict[str, str | bool], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: processor)


@pytest.mark.parametrize(
    ("processor", "route", "precision"),
    [(AMX, "default", "highest"), (AVX512, "onednn", "medium"), (ARM, "default", "highest")],
)
def test_auto_is_onednn_unless_that_would_round(
    processor: dict[str, str | bool], route: str, precision: str, monkeypatch: pytest.MonkeyPatch
):
    on(processor, monkeypatch)
    assert gemm.set_gemm("auto") == route
    assert torch.get_float32_matmul_precision() == precision


@pytest.mark.parametrize(("processor", "why"), [(AMX, "a processor with AMX"), (ARM, r"a processor \(arm64\)")])
def test_onednn_is_refused_where_it_would_round(
    processor: dict[str, str | bool], why: str, monkeypatch: pytest.MonkeyPatch
):
    on(processor, monkeypatch)
    before = torch.get_float32_matmul_precision()
    with pytest.raises(UserError, match=rf"^device\.gemm: 'onednn' .* {why}.*; allowed: auto, default; .*$"):
        gemm.set_gemm("onednn")
    assert torch.get_float32_matmul_precision() == before


def test_a_named_library_is_taken(monkeypatch: pytest.MonkeyPatch):
    on(AVX512, monkeypatch)
    for route, precision in (("onednn", "medium"), ("default", "highest")):
        assert gemm.set_gemm(route) == route
        assert torch.get_float32_matmul_precision() == precision
    on(AMX, monkeypatch)
    assert gemm.set_gemm("default") == "default"


@pytest.mark.parametrize(
    ("limit", "route"),
    [
        ("AVX512_CORE_FP16", "onednn"),
        ("avx2", "onednn"),
        ("AVX512_CORE_AMX", "default"),
        ("AVX512_CORE_AMX_FP16", "default"),
        ("AVX10_2_512", "default"),
        ("DEFAULT", "default"),
        # oneDNN passes over what it does not know.
        ("AVX512", "default"),
    ],
)
def test_amx_can_be_hidden_from_onednn(limit: str, route: str, monkeypatch: pytest.MonkeyPatch):
    on(AMX, monkeypatch)
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", limit)
    assert gemm.set_gemm("auto") == route


def test_torch_tells_of_this_processor_too():
    """Whichever it is, what it is asked has an answer."""
    assert gemm.set_gemm("auto") == ("onednn" if gemm.onednn_rounds() is None else "default")


def test_convolutions_stay_float32_when_products_are_onednns(monkeypatch: pytest.MonkeyPatch):
    on(AVX512, monkeypatch)
    before = torch.backends.mkldnn.conv.fp32_precision
    gemm.set_gemm("onednn")
    assert torch.backends.mkldnn.matmul.fp32_precision == "bf16"
    assert torch.backends.mkldnn.conv.fp32_precision == before
    assert before in ("none", "ieee")


@pytest.mark.parametrize("route", ["auto", "default"])
@pytest.mark.parametrize("name", gemm.ROUNDING_MODES)
def test_an_environment_that_rounds_convolutions_is_refused(name: str, route: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(name, "bf16")
    with pytest.raises(UserError, match=rf"^{name}: 'bf16' would round .*; allowed: STRICT, or not set; .*$"):
        gemm.set_gemm(route)
    monkeypatch.setenv(name, "strict")
    assert gemm.set_gemm("default") == "default"
