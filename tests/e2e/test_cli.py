"""The real command line: help, version, and one line with exit code 2 for every kind of wrong input."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.short_runs import SHORT

from kdx import __version__


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("train trainer.epoch=3", "trainer.epoch=3: unknown key; did you mean 'trainer.epochs'? allowed: trainer."),
        ("train method=st-vdb", "method: 'st-vdb' is not known; did you mean 'st-vbd'? allowed: bc, bdk, dropout, "),
        ("train metod=kd", "metod=kd: unknown key; did you mean 'method'? allowed: teacher, student, dataset,"),
        ("train foo", "'foo' is not understood; allowed: KEY=VALUE"),
        ("train seed=0,1", "seed=0,1: one value is allowed; several values are a sweep, which needs -m"),
        ("train --cfg job", "option: '--cfg' is not known; allowed: --help, --multirun, -h, -m"),
        ("train teacher.checkpoint=nowhere", "teacher.checkpoint: 'nowhere' is not a file; allowed: "),
        ("train method=kd method.T=0", "method.T: 0 is not allowed; "),
        ("train method=ikd student=lenet-300-100", "student: 'lenet-300-100' is not allowed with method=ikd, whose "),
        ("train method=ikd method.refine=blocks", "method.refine: 'blocks' is not allowed with mlp-1200-1200, of "),
        ("train method=ikd method.generations=11", "method.generations: 11 is not allowed with method.refine=filters"),
        ("train -m method=ikd method.refine=filters,blocks", "method.refine: 'blocks' is not allowed with mlp-1200-"),
        ("trian", "command: 'trian' is not known; did you mean 'train'? allowed: train, table"),
        ("method=kd", "command: 'method=kd' is not known; did you mean 'kdx train ...'? allowed: train, table"),
        ("table nothing", ""),
        ("table", "table: no run is given; allowed: "),
        ("", "no command is given; allowed: train, table"),
    ],
)
def test_wrong_input_is_told_in_one_line(kdx, words: str, message: str):
    result = kdx(*words.split())
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith(f"kdx: {message}")
    assert result.stderr.count("\n") == 1


def test_help(kdx):
    result = kdx("--help")
    assert (result.returncode, result.stderr) == (0, "")
    assert "train" in result.stdout
    assert kdx("--version").stdout == f"kdx {__version__}\n"
    assert "RUN" in kdx("table", "--help").stdout


def test_train_help_lists_choices_and_keys(kdx):
    result = kdx("train", "method=kd", "--help")
    assert (result.returncode, result.stderr) == (0, "")
    for text in ("st-vbd", "digits   scikit-learn", "(default)", "trainer.epochs", "method.T ", "device.threads"):
        assert text in result.stdout
    assert "method.lambda_V" not in result.stdout


@pytest.mark.parametrize(
    ("words", "absent"),
    [
        (["--help"], ["torch", "hydra", "omegaconf", "pydantic", "rich", "yaml", "numpy"]),
        (["train", "--help"], ["torch", "numpy"]),
        (["train", "trainer.epoch=3"], ["torch", "numpy"]),
        (["train", *SHORT, "device.compile=false"], ["torch._dynamo", "torch._inductor"]),
    ],
)
def test_what_is_not_needed_is_not_imported(words: list[str], absent: list[str], tmp_path: Path):
    # The time follows from the imports; a timed test would depend on the machine.
    program = f"import sys; from kdx.cli.main import main; main({words!r}); print(*sys.modules, file=sys.stderr)"
    result = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"KDX_OUTPUTS": str(tmp_path)},
    )
    assert not set(absent) & set(result.stderr.splitlines()[-1].split())
