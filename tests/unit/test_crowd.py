"""Threads sleep while they wait where other programs need the cores."""

import os
from pathlib import Path
from types import SimpleNamespace

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


def test_how_many_cores_others_take(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In four seconds cores 0 and 1 were busy for seven, three of them with this process."""
    clock = SimpleNamespace(now=10.0, own=5.0)
    fake = SimpleNamespace(perf_counter=lambda: clock.now, process_time=lambda: clock.own)
    monkeypatch.setattr(crowd, "time", fake)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1}, raising=False)
    monkeypatch.setattr(os, "sysconf", lambda _: 100)
    monkeypatch.setattr(crowd, "STAT", tmp_path / "stat")

    def busy(first: str, second: str) -> None:
        # Idle and waiting are no work, and cpu2 is another program's alone.
        (tmp_path / "stat").write_text(
            f"cpu 9 9 9 9\ncpu0 {first} 0 0\ncpu1 {second} 0 0\ncpu2 900 0 0 0 0 0 0 0\nintr 5\n"
        )

    busy("100 0 50 7000 900 0 0 0", "200 0 0 7000 900 0 0 0")
    elsewhere = crowd.taken_elsewhere()
    clock.now += 0.4
    assert elsewhere() is None
    clock.now, clock.own = 14.0, 8.0
    busy("300 50 50 7100 999 25 25 50", "450 0 50 7200 999 0 0 0")
    assert elsewhere() == pytest.approx((3.5 + 3.0 - 3.0) / 4)
    (tmp_path / "stat").unlink()
    assert elsewhere() is None
