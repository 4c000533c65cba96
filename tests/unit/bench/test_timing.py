"""What `kdx bench` makes of runtimes whose time a fake clock tells; real ones are timed in tests/e2e/test_export.py."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from kdx.bench.results import read_inference
from kdx.bench.timing import CSR, DENSE, DEPLOY, MASKED, ONNX, TEACHERS, TORCH, Bench, Variant, timings_of, write_bench
from kdx.cli.bench_tables import print_bench
from kdx.reproduce.speedups import speedups

SECONDS = {TEACHERS[TORCH]: 0.008, DENSE[TORCH]: 0.002, MASKED: 0.004, CSR: 0.001, DENSE[DEPLOY]: 0.002}
IMAGE = torch.zeros(1, 1, 2, 2)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """It runs on while a network is called, and `slower` says how many times as long as usual."""
    clock = SimpleNamespace(now=0.0, slower=lambda kind: 1.0)
    monkeypatch.setattr("kdx.deploy.rounds.perf_counter", lambda: clock.now)
    return clock


def bench_of(run: Path, clock: SimpleNamespace, crowded: dict[tuple[int, int], float]) -> Bench:
    def network(kind: Variant) -> Callable[[object], None]:
        def call(_: object) -> None:
            clock.now += SECONDS[kind] * clock.slower(kind)

        return call

    left_out: dict[str, None] = {}
    timings = timings_of({kind: network(kind) for kind in SECONDS}, IMAGE, 1, 0.5, left_out)
    return Bench(run, "a run", timings, {}, {}, list(left_out), crowded, {"cpu": "some", "cores": 2})


def disturbed(kind: Variant, now: float) -> float:
    """While the masked student is timed something else wants its core, half of the time."""
    return 130.0 if kind == MASKED and now > 0.3 else 1.0


def test_each_is_compared_with_dense_and_teacher_of_its_runtime(clock: SimpleNamespace, tmp_path: Path):
    ratios = {
        each.kind: [ratio and pytest.approx(ratio.median) for ratio in (each.dense, each.teacher)]
        for each in bench_of(tmp_path, clock, {}).timings
    }
    assert ratios == {
        TEACHERS[TORCH]: [None, None],
        DENSE[TORCH]: [None, 4],
        MASKED: [0.5, 2],
        # There the teacher is torch's.
        CSR: [2, 8],
        DENSE[DEPLOY]: [None, 4],
    }
    assert not any(kind.runtime == ONNX for kind in ratios)


def test_noise_is_said_and_is_no_result(clock: SimpleNamespace, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    clock.slower = lambda kind: disturbed(kind, clock.now)
    measured = bench_of(tmp_path, clock, {})
    print_bench(measured)
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    (masked,) = (number for number, line in enumerate(lines) if line.startswith("masked"))
    assert lines[masked].endswith("too noisy: too noisy:")
    assert lines[masked + 1] == "0.0038 - 0.50x 0.015 - 2.00x"
    # What it did not hit is told as ever.
    (dense,) = (number for number, line in enumerate(lines) if line.startswith("dense torch"))
    assert (lines[dense].endswith("4.00x faster"), lines[dense + 1]) == (True, "[4.00, 4.00]")

    write_bench(measured)
    written = read_inference(tmp_path)
    assert written is not None
    rows = {(row.name, row.runtime): row for row in written.timings}
    noise, told = rows["masked", TORCH], rows["dense", TORCH]
    assert (noise.against_dense, noise.against_teacher) == (None, None)
    assert (noise.against_teacher_low, noise.against_teacher_high) == pytest.approx((2 / 130, 2))
    assert (told.against_dense_low, told.against_teacher) == (None, pytest.approx(4))
    # The medians would say that it is much slower.
    assert speedups(tmp_path, time=False, budget="paper") == pytest.approx({"speedup.dense": 4, "speedup.csr": 8})


def test_nothing_is_told_where_others_take_the_cores(
    clock: SimpleNamespace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    """Threads that wait for each other are slow in every round, which no spread shows."""
    quiet = bench_of(tmp_path, clock, {})
    write_bench(quiet)
    before = (tmp_path / "bench.csv").read_bytes()
    clock.slower = lambda kind: 500.0 if kind == TEACHERS[TORCH] else 1.0
    crowded = bench_of(tmp_path, clock, {(1, 1): 1.75})
    assert crowded.timings[1].teacher is not None
    assert not crowded.timings[1].teacher.is_noise
    print_bench(crowded)
    out = capsys.readouterr().out
    assert not any(word in out for word in ("x faster", "SLOWER"))
    assert out.count("too noisy") == 6 + 2
    assert "WARNING: too noisy, not written: other programs took 1.8 of 2 cores" in out
    assert "everything is too noisy, so that nothing is written" in out
    write_bench(crowded)
    assert (tmp_path / "bench.csv").read_bytes() == before
    # What they took while another batch was timed does not matter.
    write_bench(replace(crowded, crowded={(1, 32): 1.75}))
    assert speedups(tmp_path, time=False, budget="paper")["speedup.dense"] == pytest.approx(2000)
