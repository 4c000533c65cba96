"""Whole runs on a GPU, by the command line."""

import json
from pathlib import Path

import pytest
import torch
from helpers.short_runs import metrics
from helpers.typed import typed

from kdx.cli.main import main

SHORT = (
    "dataset=digits",
    "trainer.epochs=3",
    "teacher.trainer.epochs=2",
    "student.hidden=[30,20]",
    "teacher.hidden=[40]",
    "device.latency_seconds=0.1",
    "device=cuda",
)


@pytest.mark.parametrize(
    ("words", "execution"),
    [
        (("method=st-vbd",), "captured"),
        (("method=kd", "device.precision=bf16"), "captured"),
        (("method=kd", "device.precision=tf32", "device.graph=false"), "eager"),
    ],
)
def test_metrics_say_what_was_used(
    tmp_path: Path, words: tuple[str, ...], execution: str, capsys, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    assert main(["train", *SHORT, *words]) == 0
    figures = metrics(Path(capsys.readouterr().out.strip().splitlines()[-1]))
    assert figures["device"] == torch.cuda.get_device_name()
    assert figures["execution"] == execution
    assert figures["gemm"] == "cublas"
    assert figures["precision"] == next(
        (word.partition("=")[2] for word in words if word.startswith("device.precision")), "fp32"
    )


@pytest.mark.parametrize("method", ["sgld", "bdk", "kddp", "ip", "prune", "bc"])
def test_procedures_of_several_fits_run(tmp_path: Path, method: str, capsys, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    own = {
        "sgld": ["method.samples=2"],
        "ip": ["method.iterations=2", "method.retrain_epochs=1"],
        "prune": ["method.steps=2", "method.retrain_epochs=1", "method.sparsity=0.5", "method.tolerance=null"],
        "kddp": ["method.L1=1e-6"],
    }.get(method, [])
    assert main(["train", *SHORT, f"method={method}", *own]) == 0, capsys.readouterr().err
    assert metrics(Path(capsys.readouterr().out.strip().splitlines()[-1]))["execution"] == "captured"


def test_a_sweep_is_fused(tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    words = ["method=kd", "method.T=2,4", "seed=0,1", "hydra/launcher=fused"]
    assert main(["train", "-m", *SHORT, *words]) == 0, capsys.readouterr().err
    found = [json.loads(path.read_text()) for path in Path("outputs/runs").rglob("metrics.json")]
    assert [each["fused_models"] for each in found] == [4] * 4
    assert {each["execution"] for each in found} == {"captured"}


def test_a_run_that_a_cpu_began_is_finished_by_a_gpu_only_from_its_own_noise(
    tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch
):
    """The generators of both are different, so such a checkpoint is refused, and the run begins anew."""
    monkeypatch.chdir(tmp_path)
    import signal

    from kdx.training.noise import NoiseSource

    original, count = NoiseSource.draw, iter(range(1, 10**6))

    def draw(self: NoiseSource) -> dict:
        # The teacher draws 18 times, the student 27 times.
        if next(count) == 30:
            signal.raise_signal(signal.SIGINT)
        return original(self)

    with monkeypatch.context() as patched:
        patched.setattr(NoiseSource, "draw", draw)
        assert main(["train", *SHORT[:-1], "method=st-vbd", "device=cpu", "device.compile=false"]) == 130
    assert main(["train", *SHORT, "method=st-vbd"]) == 0
    assert metrics(Path(capsys.readouterr().out.strip().splitlines()[-1]))["device"] == torch.cuda.get_device_name()


def test_too_little_memory_is_one_line(tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    torch.cuda.empty_cache()
    # On 80 to 140 GB that is room for the teacher and the workspaces of cuBLAS, a hundred megabytes on Hopper, but not
    # for the student, whose weights and moments are 800 MB.
    torch.cuda.set_per_process_memory_fraction(4e-3)
    try:
        assert main(typed(["train", *SHORT, "method=vanilla", "student.hidden=[8000,8000]"])) == 1
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    said = capsys.readouterr().err
    assert "Traceback" not in said
    (line,) = [text for text in said.splitlines() if "memory" in text]
    assert line.startswith("kdx: the GPU's memory is full (tried to allocate")
    assert "trainer.batch_size" in line
    assert "device=cpu" in line
