"""What is told of the machine and the program that figures belong to."""

import shutil
import subprocess
from pathlib import Path

import pytest

from kdx import machine


@pytest.mark.skipif(shutil.which("git") is None, reason="there is no git")
def test_results_do_not_make_a_commit_dirty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def git(*words: str) -> str:
        who = ["-c", "user.name=somebody", "-c", "user.email=somebody@example.org"]
        return subprocess.run(["git", "-C", str(tmp_path), *who, *words], capture_output=True, text=True).stdout

    for name in ("kdx/machine.py", "outputs/paper/table.csv"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_text("before")
    monkeypatch.setattr(machine, "__file__", str(tmp_path / "kdx" / "machine.py"))
    git("init", "--quiet")
    git("add", "--all")
    git("commit", "--quiet", "--message=all")
    commit = git("rev-parse", "--short", "HEAD").strip()
    assert machine.commit() == commit
    (tmp_path / "outputs/paper/table.csv").write_text("after")
    assert machine.commit() == commit
    (tmp_path / "kdx/machine.py").write_text("after")
    assert machine.commit() == f"{commit}-dirty"
