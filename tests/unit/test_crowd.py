"""Threads sleep while they wait where other programs need the cores."""

import os
from pathlib import Path

import pytest

from kdx import crowd


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    # Set first, so that what is set in a test is taken back.
    monkeypatch.setenv(crowd.POLICY, "")
    monkeypatch.delenv(crowd.POLICY)
    monkeypatch.setattr(crowd, "GAP", 0.0)
    monkeypatch.setattr(os, "cpu_count", lambda: 4)


def machine(folder: Path, monkeypatch: pytest.MonkeyPatch, running: str, own: int) -> None:
    """A machine of four cores, `own` of them for this process, and that text of threads that can run."""
    monkeypatch.setattr(crowd, "LOADAVG", folder / "loadavg")
    (folder / "loadavg").write_text(f"0.00 0.00 0.00 {running}/120 4711\n")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(own)), raising=False)


@pytest.mark.parametrize(
    ("running", "own", "policy"),
    [
        ("1", 4, None),
        ("2", 4, "passive"),
        # Two others and two threads of this one fit; a third takes a core of theirs.
        ("3", 2, None),
        ("4", 2, "passive"),
        # One thread waits for nobody.
        ("9", 1, None),
        # Gone between the look and the reading.
        ("0", 4, None),
        ("x", 4, None),
    ],
)
def test_by_who_is_running(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, running: str, own: int, policy: str | None
) -> None:
    machine(tmp_path, monkeypatch, running, own)
    crowd.wait_for_cores()
    assert os.environ.get(crowd.POLICY) == policy


def test_the_users_choice_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    machine(tmp_path, monkeypatch, "9", 4)
    monkeypatch.setenv(crowd.POLICY, "active")
    crowd.wait_for_cores()
    assert os.environ[crowd.POLICY] == "active"


def test_a_system_that_does_not_say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crowd, "LOADAVG", tmp_path / "absent")
    assert crowd.running_elsewhere() == 0


def test_what_runs_now_and_then_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = iter([3, 2, 0, 1, 2])
    monkeypatch.setattr(crowd, "_running", lambda: next(seen))
    assert crowd.running_elsewhere() == 0
