"""Which runs are one experiment, and what is said of it."""

import csv
import json
from pathlib import Path

import pytest
import yaml

from kdx.analysis.summary import groups_of, write_failures, write_summary
from kdx.cli.summary import print_summary
from kdx.cli.train import runs_of
from kdx.config.compose import compose_config
from kdx.runs.folder import run_folder
from kdx.runs.reader import read_settings
from kdx.sweep.job_records import JobRecord


def run(
    folder: Path,
    error: float,
    *,
    T: float = 4,
    seed: int = 0,
    teacher_seed: int = 0,
    taught_by: Path | None = None,
    **figures: object,
) -> Path:
    path = folder / f"{T}-{seed}-{teacher_seed}{'-taught' if taught_by else ''}"
    path.mkdir()
    checkpoint = taught_by and str(taught_by / "student.safetensors")
    config = {
        "dataset": {"name": "digits"}, "student": {"name": "lenet-300-100"}, "trainer": {"lr": 0.1, "epochs": 3},
        "method": {"name": "kd", "T": T}, "seed": seed,
        "teacher": {"name": "nin", "seed": teacher_seed, "checkpoint": checkpoint},
        "device": {"threads": seed}, "sweep": {"name": str(seed), "fail_fast": False},
    }  # fmt: skip
    (path / "config.yaml").write_text(yaml.safe_dump(config))
    content = {
        "run_id": path.name, "dataset": "digits", "method": "kd", "student": "lenet-300-100", "teacher": "nin",
        "seed": seed, "epochs": 3, "test_error_percent": error, "val_error_percent": 2 * error, "R_s": 5.0,
    } | figures  # fmt: skip
    (path / "metrics.json").write_text(json.dumps(content))
    return path


def test_seeds_are_pooled_and_settings_are_not(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    runs = [run(tmp_path, T + seed, T=T, seed=seed) for T in (2, 8) for seed in (0, 1, 2)]
    groups = groups_of(runs)
    assert [(group.settings["method.T"], len(group.figures)) for group in groups] == [(2, 3), (8, 3)]
    write_summary(tmp_path / "summary.csv", groups)
    with (tmp_path / "summary.csv").open(newline="") as file:
        first, second = csv.DictReader(file)
    assert (first["method.T"], first["n"], first["seeds"]) == ("2", "3", "0 1 2")
    assert "trainer.lr" not in first
    assert float(first["test_error_percent_mean"]) == 3
    assert float(first["test_error_percent_sd"]) == 1
    assert float(second["test_error_percent_ci95_low"]) == pytest.approx(9 - 2.484138, abs=1e-6)
    assert float(second["val_error_percent_mean"]) == 18
    assert float(second["R_s_ci95_high"]) == 5
    # These runs have no latency.
    assert second["latency_ms_mean"] == ""
    print_summary(groups)
    out = capsys.readouterr().out
    assert "9.00 ± 1.00" in out
    assert "[6.52, 11.48]" in out


def test_one_seed_has_no_interval(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    groups = groups_of([run(tmp_path, 1, T=2), run(tmp_path, 2, T=8)])
    print_summary(groups)
    assert capsys.readouterr().out == ""
    write_summary(tmp_path / "summary.csv", groups)
    with (tmp_path / "summary.csv").open(newline="") as file:
        first, _ = csv.DictReader(file)
    assert (first["n"], first["test_error_percent_mean"]) == ("1", "1.0")
    assert (first["test_error_percent_sd"], first["test_error_percent_ci95_low"]) == ("", "")


def test_a_figure_that_one_run_lacks_is_not_told_of_the_others(tmp_path: Path):
    (group,) = groups_of([run(tmp_path, 1), run(tmp_path, 2, seed=1, R_s=None)])
    assert group.estimate("R_s") is None
    assert group.estimate("test_error_percent") is not None


def test_a_job_that_says_the_same_as_another_is_no_further_run():
    def job(number: int, seed: int, run: Path | None) -> JobRecord:
        words = ["dataset=digits", "method=kd", f"seed={seed}", "sweep.name=twice"]
        return JobRecord(number, words, run and str(run), None if run else "it broke")

    folder = run_folder(compose_config(["dataset=digits", "method=kd", "seed=1"])).path
    first, second, *others = runs_of([job(0, 0, None), job(1, 1, None), job(2, 0, None), job(3, 1, folder)])
    assert (second, others) == (folder, [])
    assert isinstance(first, dict)
    assert (first["seed"], first["method.name"]) == (0, "kd")


def test_seeds_that_failed_are_counted_and_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    runs = [run(tmp_path, T + seed, T=T, seed=seed) for T in (2, 8) for seed in (0, 1, 2)]
    groups = groups_of([path if path in (runs[0], runs[2]) else read_settings(path) for path in runs])
    assert [(len(group.figures), group.asked, group.lacking) for group in groups] == [(2, 3, (1,)), (0, 3, (0, 1, 2))]
    print_summary(groups)
    lines = capsys.readouterr().out.splitlines()
    assert [" ".join(line.split()) for line in lines[3:7]] == [
        "kd 2 2 of 3 3.00 ± 1.41 6.00 ± 2.83 5.00 ± 0.00",
        "lost 1 [-9.71, 15.71] [-19.41, 31.41] [5.00, 5.00]",
        "kd 8 0 of 3 - - -",
        "lost 0, 1, 2",
    ]
    write_summary(tmp_path / "summary.csv", groups)
    with (tmp_path / "summary.csv").open(newline="") as file:
        first, second = csv.DictReader(file)
    assert [first[key] for key in ("n", "seeds", "lacking", "test_error_percent_mean")] == ["2", "0 2", "1", "3.0"]
    assert [second[key] for key in ("method", "n", "seeds", "lacking")] == ["kd", "0", "", "0 1 2"]
    # One of two is a group of two, although it is alone.
    print_summary(groups_of([runs[0], read_settings(runs[1])]))
    assert "1 of 2" in capsys.readouterr().out


def test_a_seed_that_comes_twice_is_no_further_measurement(tmp_path: Path):
    """Both runs have the same settings, but what the file of their first weights held was another."""
    (tmp_path / "later").mkdir()
    runs = [run(tmp_path, 1), run(tmp_path / "later", 3), run(tmp_path, 2, T=8), run(tmp_path, 4, T=8, seed=1)]
    assert [len(group.figures) for group in groups_of(runs)] == [1, 1, 2]


def test_the_teachers_seed_may_go_along_but_is_no_seed_of_the_student(tmp_path: Path):
    along = [run(tmp_path, seed, seed=seed, teacher_seed=seed) for seed in (0, 1, 2)]
    assert [len(group.figures) for group in groups_of(along)] == [3]
    crossed = [*along[:2], run(tmp_path, 3, seed=0, teacher_seed=1), run(tmp_path, 3, seed=1, teacher_seed=0)]
    groups = groups_of(crossed)
    assert [(group.settings["teacher.seed"], len(group.figures)) for group in groups] == [(0, 2), (1, 2)]


def test_the_weights_of_a_finished_run_are_what_its_settings_are(tmp_path: Path):
    """A later generation of a chain is taught by another file for each seed, by runs of one experiment."""
    first = {(T, seed): run(tmp_path, 1, T=T, seed=seed) for T in (2, 8) for seed in (0, 1)}
    second = [run(tmp_path, 2, seed=seed, taught_by=first[2, seed]) for seed in (0, 1)]
    assert [len(group.figures) for group in groups_of(second)] == [2]
    third = [run(tmp_path, 3, T=3, seed=seed, taught_by=second[seed]) for seed in (0, 1)]
    assert [len(group.figures) for group in groups_of(third)] == [2]
    # Runs of two experiments.
    mixed = [run(tmp_path, 2, T=5, seed=seed, taught_by=first[T, seed]) for T, seed in ((2, 0), (8, 1))]
    assert [len(group.figures) for group in groups_of(mixed)] == [1, 1]
    # What is not there any more cannot be compared.
    for path in first.values():
        (path / "metrics.json").unlink()
    assert [len(group.figures) for group in groups_of(second)] == [1, 1]


def test_a_run_from_before_a_setting_counts_as_one_with_its_value_of_old(tmp_path: Path):
    """They have the same id; a run with another value is another experiment."""
    before, after, other = (run(tmp_path, 1, seed=seed) for seed in (0, 1, 2))
    for path, schedule, beta in ((after, "hold", 8), (other, "one-cycle", 8)):
        config = yaml.safe_load((path / "config.yaml").read_text())
        config["trainer"] |= {"schedule": schedule, "peak": 0.3}
        config["method"] |= {"parts": ["labels", "hint"], "beta": beta}
        (path / "config.yaml").write_text(yaml.safe_dump(config))
    old = yaml.safe_load((before / "config.yaml").read_text())
    old["method"]["parts"] = ["labels", "hint"]
    (before / "config.yaml").write_text(yaml.safe_dump(old))
    assert [len(group.figures) for group in groups_of([before, after, other])] == [2, 1]


def test_failures_have_a_file_as_long_as_there_are_any(tmp_path: Path):
    path = tmp_path / "failed.csv"
    write_failures(path, [{"job": 3, "overrides": "seed=1", "reason": "no, broken"}])
    assert path.read_text() == 'job,overrides,reason\n3,seed=1,"no, broken"\n'
    write_failures(path, [])
    assert not path.exists()


def test_seeds_crossed_with_weights_are_an_experiment_for_each(tmp_path: Path):
    """Although the weights are those of one experiment's seeds; where each seed goes on from its own, it is one."""
    weights = [run(tmp_path, 1, T=20, seed=seed) for seed in (0, 1)]
    crossed = []
    for which, taught_by in enumerate(weights):
        (tmp_path / str(which)).mkdir()
        crossed += [run(tmp_path / str(which), 2, seed=seed, taught_by=taught_by) for seed in (0, 1, 2)]
    assert [len(group.figures) for group in groups_of(crossed)] == [3, 3]
    along = [crossed[0], crossed[4]]
    assert [len(group.figures) for group in groups_of(along)] == [2]


def test_a_sweep_without_any_run_has_an_empty_summary(tmp_path: Path):
    write_summary(tmp_path / "summary.csv", groups_of([]))
    assert len((tmp_path / "summary.csv").read_text().splitlines()) == 1
