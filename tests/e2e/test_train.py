"""Whole runs through the real command line, on scikit-learn's digits."""

import signal
from pathlib import Path

import pytest
from helpers.short_runs import SHORT, folder_of, history, metrics, outcome, started


def test_two_teachers_have_a_folder_and_a_store_each(kdx, tmp_path: Path) -> None:
    short = (*SHORT, "method=noisy", "trainer.epochs=1", "device.latency_seconds=0")
    second = ("teacher2=mlp-1200-1200", "teacher2.hidden=[20]", "teacher2.trainer.epochs=1")
    figures = metrics(folder_of(kdx("train", *short, *second), tmp_path))
    assert figures["teacher"] == "mlp-1200-1200+mlp-1200-1200"
    assert len(list(tmp_path.glob("outputs/teachers/*/teacher.safetensors"))) == 2
    assert len(list(tmp_path.glob("outputs/logits/*/manifest.json"))) == 2
    alone = metrics(folder_of(kdx("train", *short), tmp_path))
    # The first teacher was there already, and it is the one whose size counts.
    assert len(list(tmp_path.glob("outputs/teachers/*/teacher.safetensors"))) == 2
    assert alone["R_c"] == figures["R_c"]
    assert alone["teacher_test_error_percent"] != figures["teacher_test_error_percent"]
    # A sweep spells the word for Hydra and finds the same run again.
    swept = kdx("train", "-m", *short, *second)
    assert swept.returncode == 0, swept.stderr
    assert f"{figures['run_id']}: finished before" in swept.stderr


def test_what_makes_the_figures_worthless_is_said_in_them_too(kdx, tmp_path: Path) -> None:
    short = (*SHORT, "method=kd", "trainer.epochs=1", "device.latency_seconds=0")
    result = kdx("train", *short, "trainer.lr=1e-9", "teacher.trainer.lr=1e-9", "teacher.trainer.epochs=1")
    run = folder_of(result, tmp_path)
    warnings = metrics(run)["warnings"]
    for who in ("student", "teacher"):
        assert f"the {who} is no better than chance: test error" in warnings
        assert f"the {who} is no better than chance: test error" in result.stdout
    (teacher,) = tmp_path.glob("outputs/teachers/*/metrics.json")
    assert "no better than chance" in metrics(teacher.parent)["warnings"]
    assert "warnings" not in metrics(folder_of(kdx("train", *SHORT, "method=vanilla", "trainer.epochs=20"), tmp_path))


def test_another_seed_is_another_run(kdx, tmp_path: Path) -> None:
    short = (*SHORT, "method=kd", "trainer.epochs=1")
    first = folder_of(kdx("train", *short), tmp_path)
    second = folder_of(kdx("train", *short, "seed=1"), tmp_path)
    assert first != second
    assert (first / "student.safetensors").read_bytes() != (second / "student.safetensors").read_bytes()
    both = kdx("table", str(first), str(second))
    assert both.returncode == 0
    assert first.name[:8] in both.stdout
    assert second.name[:8] in both.stdout


def test_finished_runs_are_skipped_and_forced_ones_repeated(kdx, tmp_path: Path) -> None:
    words = ("train", *SHORT, "method=vanilla", "trainer.epochs=1")
    folder = folder_of(kdx(*words), tmp_path)
    before, written = outcome(folder), (folder / "metrics.json").stat().st_mtime_ns
    again = kdx(*words)
    assert folder_of(again, tmp_path) == folder
    assert "skipped" in again.stderr
    assert (folder / "metrics.json").stat().st_mtime_ns == written
    assert folder_of(kdx(*words, "force=true"), tmp_path) == folder
    assert (folder / "metrics.json").stat().st_mtime_ns > written
    assert outcome(folder) == before


def stopped(base: Path, words: tuple[str, ...], number: signal.Signals, checkpoint: str) -> None:
    """Start a run with its outputs in `stopped`, and send it a signal as soon as it has written that checkpoint."""
    written = f"stopped/runs/*/*/*/*/{checkpoint}.safetensors"
    often = ("outputs=stopped", "trainer.checkpoint_seconds=0.05")
    process = started(base, "train", *words, *often, until=lambda: list(base.glob(written)))
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130, said
    assert not list(base.glob("stopped/runs/*/*/*/*/metrics.json"))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_run_goes_on_as_if_nothing_had_happened(kdx, tmp_path: Path, number: signal.Signals) -> None:
    words = (*SHORT, "method=st-vbd", "method.warmup_end=6", "trainer.epochs=60")
    whole = folder_of(kdx("train", *words, "outputs=whole"), tmp_path)
    stopped(tmp_path, words, number, "checkpoint")
    continued = folder_of(kdx("train", *words, "outputs=stopped"), tmp_path)
    assert "continued at step" in (continued / "kdx.log").read_text()
    assert outcome(continued) == outcome(whole)
    assert not (continued / "checkpoint.safetensors").exists()


def test_a_run_stopped_in_its_second_fit_does_not_repeat_the_first(kdx, tmp_path: Path) -> None:
    words = (*SHORT, "method=kddp", "trainer.epochs=40")
    whole = folder_of(kdx("train", *words, "outputs=whole"), tmp_path)
    stopped(tmp_path, words, signal.SIGINT, "checkpoint-fine-tuned-1")
    continued = folder_of(kdx("train", *words, "outputs=stopped"), tmp_path)
    log = (continued / "kdx.log").read_text()
    # 1,237 examples are nine batches of 128.
    assert "penalised-1: continued at step 360\n" in log
    assert "fine-tuned-1: continued at step" in log
    assert outcome(continued) == outcome(whole)
    assert not list(continued.glob("checkpoint*"))
    figures = metrics(whole)
    assert figures["removed_neurons"] > 0
    assert figures["fc1_size"] + figures["removed_neurons"] == 30
    # A neuron of 784-30-20-10: its weights, its bias, and its weights in fc2.
    assert 24_380 - figures["parameters"] == (784 + 1 + 20) * figures["removed_neurons"]
    assert [row["stage"] for row in history(whole)] == ["1"] * 40 + ["2"] * 40


def test_a_penalty_that_leaves_no_neuron_is_the_users_mistake(kdx, tmp_path: Path) -> None:
    result = kdx("train", *SHORT, "method=kddp", "method.L1=1")
    assert (result.returncode, result.stdout) == (2, "")
    last = result.stderr.strip().splitlines()[-1]
    assert last.startswith("kdx: method.L1: too high, all 30 neurons of fc1 have a mean activation below")
    assert "Traceback" not in result.stderr


def test_a_layer_that_is_not_there_is_told_before_the_teacher_is_trained(kdx, tmp_path: Path) -> None:
    result = kdx("train", *SHORT, "method=kddp", "method.layer=fc3")
    assert result.returncode == 2
    assert len(result.stderr.strip().splitlines()) == 1
    assert "method.layer: 'fc3' is not known; did you mean 'fc2'? allowed: fc1, fc2" in result.stderr
    assert not (tmp_path / "outputs" / "teachers").exists()


def test_validation_zero_trains_on_everything(kdx, tmp_path: Path) -> None:
    folder = folder_of(kdx("train", *SHORT, "method=vanilla", "trainer.epochs=1", "dataset.validation=0"), tmp_path)
    assert metrics(folder)["val_error_percent"] is None


def test_a_teacher_from_elsewhere(kdx, tmp_path: Path) -> None:
    folder_of(kdx("train", *SHORT, "method=kd", "trainer.epochs=1", "outputs=there"), tmp_path)
    (weights,) = tmp_path.glob("there/teachers/*/teacher.safetensors")
    words = ("train", *SHORT, "method=kd", "trainer.epochs=1", "outputs=here", f"teacher.checkpoint={weights}")
    folder = folder_of(kdx(*words), tmp_path)
    assert metrics(folder)["teacher_test_error_percent"] is not None
    assert not (tmp_path / "here" / "teachers").exists()
    wrong = kdx(*words, "teacher.hidden=[41]")
    assert wrong.returncode == 2
    assert len(wrong.stderr.strip().splitlines()) == 1
    assert "made for another network" in wrong.stderr


def test_a_student_that_starts_from_a_file(kdx, tmp_path: Path) -> None:
    first = folder_of(kdx("train", *SHORT, "method=vanilla"), tmp_path)
    weights = first / "student.safetensors"
    words = ("train", *SHORT, "method=prune", "method.steps=2", "method.retrain_epochs=2")
    folder = folder_of(kdx(*words, f"student.checkpoint={weights}"), tmp_path)
    assert metrics(folder)["epochs"] == 1 + 2
    assert metrics(folder)["sparsity_percent"] == pytest.approx(90)
    moved = tmp_path / "elsewhere.safetensors"
    moved.write_bytes(weights.read_bytes())
    again = kdx(*words, f"student.checkpoint={moved}")
    assert folder_of(again, tmp_path) == folder
    assert "skipped" in again.stderr
    moved.write_bytes(b"no weights")
    for wrong, message in (
        ((f"student.checkpoint={weights}", "student.hidden=[31,20]"), "made for another network"),
        ((f"student.checkpoint={moved}",), "is damaged"),
    ):
        refused = kdx(*words, *wrong)
        assert refused.returncode == 2
        assert len(refused.stderr.strip().splitlines()) == 1
        assert "student.checkpoint: " in refused.stderr
        assert message in refused.stderr


def test_bayesian_dark_knowledge_trains_no_teacher_beforehand(kdx, tmp_path: Path) -> None:
    folder = folder_of(kdx("train", *SHORT, "method=bdk", "method.eta=1e-3", "trainer.epochs=2"), tmp_path)
    assert not (tmp_path / "outputs" / "teachers").exists()
    figures = metrics(folder)
    # The sampler's parameters, 784-40-10, beside the student's, 784-30-20-10.
    assert figures["R_c"] == (784 * 40 + 40 + 400 + 10) / (784 * 30 + 30 + 620 + 210)
    assert 0 < figures["teacher_test_error_percent"] < 88
