"""Runs that earlier versions of kdx left: each version of metrics.json has a sample, and stays readable.

Format 1 says nothing of its version and has no checksums; format 2 has both.
"""

import shutil
from pathlib import Path

import pytest
from helpers import ROOT
from helpers.short_runs import metrics

from kdx.runs.folder import RunFolder
from kdx.runs.reader import read_figures
from kdx.storage.checksums import FORMAT

SAMPLES = sorted((ROOT / "tests" / "samples").glob("format-*"))


def placed(sample: Path, base: Path) -> Path:
    """The sample as the run that it was."""
    figures = metrics(sample)
    names = (figures["dataset"], figures["student"], figures["method"], figures["run_id"])
    return Path(shutil.copytree(sample, base.joinpath("outputs", "runs", *names)))


def test_every_format_has_its_sample() -> None:
    assert [int(sample.name.removeprefix("format-")) for sample in SAMPLES] == list(range(1, FORMAT + 1))
    assert [metrics(sample).get("format", 1) for sample in SAMPLES] == list(range(1, FORMAT + 1))


@pytest.mark.parametrize("sample", SAMPLES, ids=lambda sample: sample.name)
def test_it_is_shown(kdx, tmp_path: Path, sample: Path) -> None:
    run = placed(sample, tmp_path)
    assert RunFolder(run).finished
    shown = kdx("table", read_figures(run)["run_id"])
    assert shown.returncode == 0, shown.stderr
    assert f"{metrics(sample)['test_error_percent']:.2f}" in shown.stdout
    for words in (("plot", "digits", "dataset.train_size=*"), ("report",)):
        result = kdx(*words)
        assert (result.returncode, result.stderr) == (0, ""), result.stderr


def test_a_student_with_its_weights_is_exported(kdx, tmp_path: Path) -> None:
    run = placed(SAMPLES[-1], tmp_path)
    result = kdx("export", str(run), "format=csr")
    assert result.returncode == 0, result.stderr
    assert f"{metrics(run)['test_error_percent']:.2f}" in result.stdout
