"""The choice between the CPU's two libraries of float32 matrix products, for processors that this one need not be."""

import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from kdx.device import cpu
from kdx.errors import UserError

AMX = {"architecture": "x86_64", "amx_tile": True, "avx512_bf16": True}
AVX512 = {"architecture": "x86_64", "amx_tile": False, "avx512_bf16": True}
ARM = {"architecture": "arm64", "bf16": True}


@pytest.fixture(autouse=True)
def no_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ONEDNN_MAX_CPU_ISA", *cpu.ROUNDING_MODES):
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
    assert cpu.set_gemm("auto") == route
    assert torch.get_float32_matmul_precision() == precision


@pytest.mark.parametrize(("processor", "why"), [(AMX, "a processor with AMX"), (ARM, r"a processor \(arm64\)")])
def test_onednn_is_refused_where_it_would_round(
    processor: dict[str, str | bool], why: str, monkeypatch: pytest.MonkeyPatch
):
    on(processor, monkeypatch)
    before = torch.get_float32_matmul_precision()
    with pytest.raises(UserError, match=rf"^device\.gemm: 'onednn' .* {why}.*; allowed: auto, default; .*$"):
        cpu.set_gemm("onednn")
    assert torch.get_float32_matmul_precision() == before


def test_a_named_library_is_taken(monkeypatch: pytest.MonkeyPatch):
    on(AVX512, monkeypatch)
    for route, precision in (("onednn", "medium"), ("default", "highest")):
        assert cpu.set_gemm(route) == route
        assert torch.get_float32_matmul_precision() == precision
    on(AMX, monkeypatch)
    assert cpu.set_gemm("default") == "default"


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
    assert cpu.set_gemm("auto") == route


def test_torch_tells_of_this_processor_too():
    """Whichever it is, what it is asked has an answer."""
    assert cpu.set_gemm("auto") == ("onednn" if cpu.onednn_rounds() is None else "default")


def test_convolutions_stay_float32_when_products_are_onednns(monkeypatch: pytest.MonkeyPatch):
    on(AVX512, monkeypatch)
    before = torch.backends.mkldnn.conv.fp32_precision
    cpu.set_gemm("onednn")
    assert torch.backends.mkldnn.matmul.fp32_precision == "bf16"
    assert torch.backends.mkldnn.conv.fp32_precision == before
    assert before in ("none", "ieee")


@pytest.mark.parametrize("route", ["auto", "default"])
@pytest.mark.parametrize("name", cpu.ROUNDING_MODES)
def test_an_environment_that_rounds_convolutions_is_refused(name: str, route: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(name, "bf16")
    with pytest.raises(UserError, match=rf"^{name}: 'bf16' would round .*; allowed: STRICT, or not set; .*$"):
        cpu.set_gemm(route)
    monkeypatch.setenv(name, "strict")
    assert cpu.set_gemm("default") == "default"


# Page faults of five blocks of 48 MiB, one after another, when there has been one already.
FAULTS = """
import resource
from kdx.device.cpu import keep_freed_memory
kept = keep_freed_memory()
faults = []
for _ in range(6):
    block = bytearray(48 * 2**20)
    del block
    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)
print(int(kept), faults[-1] - faults[0])
"""
GLIBC = os.confstr("CS_GNU_LIBC_VERSION") if "CS_GNU_LIBC_VERSION" in os.confstr_names else None


def kept_and_faults(**environment: str) -> tuple[bool, int]:
    """Whether a process with these variables keeps what it frees, and how many page faults it has."""
    inherited = {name: value for name, value in os.environ.items() if name not in cpu.OWN_CHOICES}
    words = [sys.executable, "-c", FAULTS]
    done = subprocess.run(words, env=inherited | environment, capture_output=True, text=True, check=True)
    kept, faults = done.stdout.split()
    return kept == "1", int(faults)


@pytest.mark.skipif(GLIBC is None, reason="the C library is not glibc")
def test_freed_memory_costs_no_page_faults_again():
    kept, faults = kept_and_faults()
    # Five blocks of huge pages would be 120.
    assert kept
    assert faults < 20


@pytest.mark.skipif(GLIBC is None, reason="the C library is not glibc")
def test_who_has_chosen_keeps_the_choice():
    kept, faults = kept_and_faults(MALLOC_TRIM_THRESHOLD_="131072")
    assert not kept
    assert faults >= 5 * 24


GIVEN_BACK = """
import psutil
from kdx.device.cpu import give_back_freed_memory, keep_freed_memory
keep_freed_memory()
blocks = [bytearray(2**20) for _ in range(64)]
last = bytearray(2**20)
del blocks
kept = psutil.Process().memory_info().rss
give_back_freed_memory()
print((kept - psutil.Process().memory_info().rss) / 2**20)
"""


@pytest.mark.skipif(GLIBC is None, reason="the C library is not glibc")
def test_what_is_kept_can_be_given_back():
    done = subprocess.run([sys.executable, "-c", GIVEN_BACK], capture_output=True, text=True, check=True)
    assert float(done.stdout) > 60


def library(monkeypatch: pytest.MonkeyPatch, most: int) -> list[tuple[int, int]]:
    """A C library that maps blocks by themselves from `most` bytes on at the latest; what it is told, as it comes."""
    told: list[tuple[int, int]] = []

    def mallopt(parameter: int, value: int) -> int:
        told.append((parameter, value))
        return int(parameter != cpu.M_MMAP_THRESHOLD or value <= most)

    monkeypatch.setattr("ctypes.CDLL", lambda _: SimpleNamespace(mallopt=mallopt))
    monkeypatch.setattr(sys, "platform", "linux")
    for name in cpu.OWN_CHOICES:
        monkeypatch.delenv(name, raising=False)
    return told


def test_an_older_glibc_allows_less(monkeypatch: pytest.MonkeyPatch):
    told = library(monkeypatch, most=32 * 2**20)
    assert cpu.keep_freed_memory()
    assert told == [(-3, 512 * 2**20), (-3, 32 * 2**20), (-1, -1)]


def test_nothing_is_changed_by_halves(monkeypatch: pytest.MonkeyPatch):
    """To set the second alone would end glibc's own adaptation, and cost more page faults than before."""
    told = library(monkeypatch, most=0)
    assert not cpu.keep_freed_memory()
    assert cpu.M_TRIM_THRESHOLD not in dict(told)


def test_other_c_libraries_are_left_alone(monkeypatch: pytest.MonkeyPatch):
    library(monkeypatch, most=0)
    monkeypatch.setattr("ctypes.CDLL", lambda _: SimpleNamespace())
    assert not cpu.keep_freed_memory()
