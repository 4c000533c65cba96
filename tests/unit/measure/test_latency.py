import csv

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdx.data.dataset import Data, Split
from kdx.measure import latency, measure
from kdx.measure.csr import CsrConv2d, CsrLinear, ScipyProduct, TorchProduct, csr_network

PRODUCTS = [ScipyProduct, TorchProduct]
CPU = torch.device("cpu")


class Residual(nn.Module):
    """A module tree with a forward of its own, a layer that is used twice, and inputs that are not elementwise."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.blocks = nn.ModuleList([nn.Sequential(nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1))])
        self.again = self.blocks[0]
        self.head = nn.Linear(8, 5, bias=False)

    def forward(self, images: Tensor) -> Tensor:
        x = self.stem(images)
        x = x + self.blocks[0](x)
        x = x + self.again(x)
        return self.head(F.adaptive_avg_pool2d(x, 1).flatten(1))


def pruned(model: nn.Module, keep: float = 0.3) -> nn.Module:
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter *= torch.rand(parameter.shape, generator=generator) < keep
    return model.eval()


def images(count: int, *shape: int) -> Tensor:
    return torch.randn(count, *shape, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("product", PRODUCTS)
@pytest.mark.parametrize("count", [1, 7])
@pytest.mark.parametrize("keep", [0.3, 0.0])
def test_csr_mlp_computes_the_same(product, count, keep):
    model = nn.Sequential(
        nn.Flatten(), nn.Linear(12, 9), nn.ReLU(), nn.Linear(9, 4, bias=False), nn.ReLU(), nn.Linear(4, 3)
    )
    model, batch = pruned(model, keep), images(count, 3, 2, 2)
    sparse = csr_network(model, product)
    with torch.inference_mode():
        torch.testing.assert_close(sparse(batch), model(batch))
    assert sum(isinstance(module, CsrLinear) for module in sparse.modules()) == 3
    assert isinstance(model[1], nn.Linear)


@pytest.mark.parametrize("product", PRODUCTS)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"padding": 2, "stride": 2},
        {"padding": (1, 0), "stride": (1, 3), "bias": False},
        {"padding": "same", "dilation": 2},
        {"dilation": 2, "padding": 1},
        {"groups": 2, "padding": 1},
        {"groups": 4},
        {"padding": 1, "padding_mode": "circular"},
    ],
    ids=str,
)
def test_csr_convolution_computes_the_same(product, options):
    model = pruned(nn.Sequential(nn.Conv2d(4, 8, (3, 2), **options), nn.ReLU(), nn.Flatten()))
    batch = images(5, 4, 9, 8)
    with torch.inference_mode():
        torch.testing.assert_close(csr_network(model, product)(batch), model(batch))


def test_large_batches_are_convolved_in_parts(monkeypatch):
    model, batch = pruned(nn.Conv2d(2, 3, 3)), images(11, 2, 6, 6)
    monkeypatch.setattr("kdx.measure.csr.COLUMN_NUMBERS", 4 * 2 * 9 * 16)
    with torch.inference_mode():
        torch.testing.assert_close(csr_network(model, ScipyProduct)(batch), model(batch))


@pytest.mark.parametrize("product", PRODUCTS)
def test_any_module_tree_is_substituted(product):
    model, batch = pruned(Residual()), images(4, 3, 8, 8)
    sparse = csr_network(model, product)
    with torch.inference_mode():
        torch.testing.assert_close(sparse(batch), model(batch))
    assert not any(isinstance(module, nn.Linear | nn.Conv2d) for module in sparse.modules())
    assert sum(isinstance(module, CsrConv2d) for module in sparse.modules()) == 2


def test_latencies_of_a_small_network_and_the_settings_afterwards(tmp_path):
    threads = torch.get_num_threads()
    model = pruned(nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 3))).train()
    try:
        torch.set_num_threads(2)
        torch.set_float32_matmul_precision("medium")
        rows = latency.latencies(model, images(5, 1, 4, 4), CPU, seconds=0.1)
        assert torch.get_num_threads() == 2
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_num_threads(threads)
    runtimes = ["dense", "csr scipy", "csr torch"]
    assert [(row.runtime, row.batch) for row in rows] == [(name, batch) for name in runtimes for batch in (1, 1024)]
    assert all(0 < row.p10_ms <= row.median_ms <= row.p90_ms and row.repetitions >= 3 for row in rows)
    assert {(row.device, row.threads) for row in rows} == {("cpu", 1)}
    assert all(module.training for module in model.modules())
    latency.write_latency(tmp_path / "latency.csv", rows)
    with (tmp_path / "latency.csv").open(newline="") as file:
        written = list(csv.DictReader(file))
    ratio = ["against_dense", "against_dense_low", "against_dense_high"]
    assert list(written[0]) == [
        *("device", "threads", "runtime", "batch", "median_ms", "p10_ms", "p90_ms", "repetitions"), *ratio,
    ]  # fmt: skip
    assert [float(row["median_ms"]) for row in written] == [row.median_ms for row in rows]
    for row in written:
        # What is noise has an interval and no ratio, and dense has nothing to be compared with.
        low, high = (float(row[key] or 0) for key in ratio[1:])
        told = float(row["against_dense"] or 0)
        assert (low, told, high) == (0, 0, 0) if row["runtime"] == "dense" else 0 < low <= (told or low) <= high
        assert bool(told) == (0 < high <= 1.5 * low)


def test_runtimes_are_compared_round_by_round(monkeypatch):
    """By a clock that moves only in networks: CSR of scipy takes twice, of torch three times what dense takes.

    After a while everything takes ten times as long, and every other round with 1024 images CSR of torch fifty times.
    """
    clock, calls = [0.0], {"csr torch": 0}
    pace = {"dense": 0.001, "csr scipy": 0.002, "csr torch": 0.003}

    class Paced(nn.Module):
        def __init__(self, name: str) -> None:
            super().__init__()
            self.name = name

        def forward(self, images: Tensor) -> Tensor:
            slower = 10 if clock[0] > 0.3 else 1
            if self.name == "csr torch" and len(images) == 1024:
                calls[self.name] += 1
                slower *= 50 if calls[self.name] % 2 else 1
            clock[0] += pace[self.name] * slower
            return images

    def csr_network(_: nn.Module, product: type) -> nn.Module:
        return Paced("csr scipy" if product is ScipyProduct else "csr torch")

    monkeypatch.setattr(latency, "csr_network", csr_network)
    monkeypatch.setattr("kdx.deploy.rounds.perf_counter", lambda: clock[0])
    rows = latency.latencies(Paced("dense"), images(2, 1, 2, 2), CPU, seconds=1.2)
    # By then a call takes longer than its share of a round.
    assert calls == {"csr torch": 6}
    by_place = {(row.runtime, row.batch): row for row in rows}
    assert by_place["dense", 1].against_dense is None
    scipy = by_place["csr scipy", 1]
    assert scipy.p90_ms > 5 * scipy.p10_ms
    assert scipy.against_dense == pytest.approx(1 / 2)
    assert by_place["csr torch", 1].against_dense == pytest.approx(1 / 3)
    assert by_place["csr scipy", 1024].against_dense == pytest.approx(1 / 2)
    noise = by_place["csr torch", 1024]
    assert noise.against_dense is None
    assert (noise.against_dense_low, noise.against_dense_high) == pytest.approx((1 / 150, 1 / 3))


def test_networks_run_on_one_thread_in_full_precision():
    seen = set()

    class Spy(nn.Linear):
        def forward(self, input: Tensor) -> Tensor:
            seen.add((torch.get_num_threads(), torch.get_float32_matmul_precision(), torch.is_inference_mode_enabled()))
            return super().forward(input)

    latency.latencies(nn.Sequential(nn.Flatten(), Spy(4, 2)), images(2, 1, 2, 2), CPU, seconds=0.01)
    assert seen == {(1, "highest", True)}


def test_the_runs_own_device_is_timed_dense_and_waited_for(monkeypatch):
    # The meta device computes nothing and is everywhere; what matters is that its end is waited for.
    waited = []
    monkeypatch.setattr(torch.accelerator, "synchronize", waited.append)
    meta = torch.device("meta")
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
    rows = [row for row in latency.latencies(model, images(2, 1, 2, 2), meta, seconds=0.01) if row.device != "cpu"]
    assert [(row.device, row.runtime, row.batch) for row in rows] == [("meta", "dense", 1), ("meta", "dense", 1024)]
    assert len(waited) >= sum(row.repetitions for row in rows)
    assert set(waited) == {meta}


def test_batches_that_take_too_long_are_left_out(monkeypatch):
    monkeypatch.setattr(latency, "MAX_CALL_SECONDS", 0.0)
    split = Split(images(3, 1, 2, 2), torch.zeros(3).long())
    data = Data("made", split, None, split, 2, "none")
    measured = measure(nn.Sequential(nn.Flatten(), nn.Linear(4, 2)), None, data, CPU, 0.05)
    assert {row.batch for row in measured.latencies} == {1}
    assert measured.figures["latency_1024_ms"] is None
    assert measured.figures["csr_latency_1024_ms"] is None


def test_figures_are_the_rows_of_one_cpu_thread():
    split = Split(images(3, 1, 2, 2), torch.zeros(3).long())
    data = Data("made", split, None, split, 2, "none")
    measured = measure(nn.Sequential(nn.Flatten(), nn.Linear(4, 2)), None, data, CPU, 0.05)
    rows = {(row.runtime, row.batch): row for row in measured.latencies}
    figures = measured.figures
    dense, runtime = rows["dense", 1], figures["csr_runtime"]
    assert [figures[f"latency_{name}ms"] for name in ("", "p10_", "p90_", "1024_")] == [
        dense.median_ms, dense.p10_ms, dense.p90_ms, rows["dense", 1024].median_ms,
    ]  # fmt: skip
    assert figures["csr_latency_ms"] == min(rows["csr scipy", 1].median_ms, rows["csr torch", 1].median_ms)
    assert figures["csr_latency_ms"] == rows[runtime, 1].median_ms
    assert figures["csr_latency_1024_ms"] == rows[runtime, 1024].median_ms


def test_the_layout_that_a_gpu_trains_with_is_not_that_of_the_measurement(monkeypatch: pytest.MonkeyPatch):
    """What a CPU is timed with must not depend on where the network was trained."""
    seen: list[tuple[bool, bool]] = []
    original = nn.Conv2d.forward

    def forward(self: nn.Conv2d, input: Tensor) -> Tensor:
        seen.append((self.weight.is_contiguous(), input.is_contiguous()))
        return original(self, input)

    model = pruned(Residual()).to(memory_format=torch.channels_last)
    expected = model(images(2, 3, 6, 6))
    monkeypatch.setattr(nn.Conv2d, "forward", forward)
    assert latency.latencies(model, images(2, 3, 6, 6), CPU, seconds=0.01)
    assert set(seen) == {(True, True)}
    assert not model.stem.weight.is_contiguous()
    with torch.inference_mode():
        torch.testing.assert_close(csr_network(model, ScipyProduct)(images(2, 3, 6, 6)), expected.detach())
