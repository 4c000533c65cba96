"""The short forms of `scripts/torture`: the same code, fewer blows."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import ROOT


def torture(tmp_path: Path, *words: str) -> dict:
    file = tmp_path / "torture.json"
    result = subprocess.run(
        [sys.executable, "-P", "-m", "tortures", *words, "--file", str(file)],
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT / "scripts"), str(ROOT / "tests"), str(ROOT)])},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return json.loads(file.read_text())


def test_killed_runs_end_as_if_nothing_had_happened(tmp_path: Path) -> None:
    found = torture(tmp_path, "kill", "--count", "6", "--seed", "1")["kill"]
    assert (found["kills"], found["failures"]) == (6, [])


def test_damaged_files_are_refused_or_rebuilt(tmp_path: Path) -> None:
    found = torture(tmp_path, "rot", "--count", "8", "--seed", "1")["rot"]
    assert found["failures"] == []
    assert found["damages"] == 8


def test_damaged_files_of_data_sets_are_refused(tmp_path: Path) -> None:
    found = torture(tmp_path, "files", "--count", "12", "--seed", "1")["files"]
    assert found["failures"] == []
    assert found["answers"]["refused"] > 4


def test_wrong_command_lines_are_refused_in_one_line(tmp_path: Path) -> None:
    found = torture(tmp_path, "words", "--count", "30", "--seed", "1")["words"]
    assert (found["command_lines"], found["refused"], found["failures"]) == (30, 30, [])


def test_a_refused_folder_is_told_in_one_line_and_the_run_goes_on(tmp_path: Path) -> None:
    found = torture(tmp_path, "disk", "--count", "4", "--seed", "1")["disk"]
    assert found["failures"] == []
    # Where mounting is not allowed, or nobody can become another user, the figures say what was left out.
    assert found["refusals"] > 0
    kinds = {what.partition(":")[0] for what in found["met"]} | found["skipped"].keys()
    assert kinds == {"a full disk", "a limit on files", "a read-only disk", "no permission"}


def test_of_several_processes_one_computes_and_all_end_alike(tmp_path: Path) -> None:
    found = torture(tmp_path, "several", "--count", "4", "--seed", "1")["several"]
    assert (found["processes"], found["failures"]) == (16, [])
    assert found["waited"] > 0
    assert found["skipped"] > 0


@pytest.mark.parametrize("words", [("burn",), ("--count", "x")])
def test_wrong_words(tmp_path: Path, words: tuple[str, ...]) -> None:
    with pytest.raises(AssertionError, match="usage: scripts/torture"):
        torture(tmp_path, *words)
