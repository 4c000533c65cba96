"""Threads that wait for each other spin for a moment and then sleep, so that other work may come at any time."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from kdx.cli.main import main
from kdx.config.compose import compose_config, compose_sweep
from kdx.device import machine
from kdx.device.backend import prepare_device
from kdx.errors import UserError
from kdx.sweep.resources import check_here

RUNTIMES = """
from pathlib import Path
from kdx.device.machine import set_omp_wait_policy
set_omp_wait_policy()
import torch
print(any("libgomp" in line for line in Path("/proc/self/maps").open()) if Path("/proc/self/maps").exists() else False)
"""


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    # Set first, so that what is set in a test is taken back.
    for name in (machine.POLICY, machine.SPIN):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)


def test_a_moment_is_the_choice_where_nobody_has_made_one() -> None:
    machine.set_omp_wait_policy()
    assert (os.environ.get(machine.POLICY), os.environ.get(machine.SPIN)) == (None, "1000")
    assert machine.waiting() == "GOMP_SPINCOUNT=1000"


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("GOMP_SPINCOUNT", "300000", "GOMP_SPINCOUNT=300000"),
        ("OMP_WAIT_POLICY", "active", "OMP_WAIT_POLICY=active"),
        ("OMP_WAIT_POLICY", "passive", "OMP_WAIT_POLICY=passive"),
    ],
)
def test_the_users_choice_is_kept(monkeypatch: pytest.MonkeyPatch, name: str, value: str, told: str) -> None:
    monkeypatch.setenv(name, value)
    machine.set_omp_wait_policy()
    assert os.environ[name] == value
    assert machine.waiting() == told


def test_without_any_choice_the_runtime_does_what_it_likes() -> None:
    assert machine.waiting() == "they like"


def test_torchs_runtime_takes_it() -> None:
    """As libgomp itself says when it is loaded; another runtime has no such variable."""
    environment = {**os.environ, "OMP_DISPLAY_ENV": "verbose", "PYTHONPATH": os.pathsep.join(sys.path)}
    shown = subprocess.run(
        [sys.executable, "-c", RUNTIMES], env=environment, capture_output=True, text=True, timeout=120, check=True
    )
    if shown.stdout.strip() != "True":
        pytest.skip("torch is built with another OpenMP runtime than libgomp")
    assert "GOMP_SPINCOUNT = '1000'" in shown.stderr


REFUSED = "device.threads: 3 is not allowed where this process may use 2 cores; allowed: 1 to 2, null"


@pytest.fixture
def _two_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "usable_cores", lambda: 2)


@pytest.mark.parametrize(
    "words",
    [
        "train dataset=digits device.threads=3",
        "train -m dataset=digits device.threads=1,3",
        "train -m dataset=digits device.threads=3 hydra/launcher=joblib seed=0,1",
        "reproduce vs/table1 budget=smoke device.threads=3",
    ],
)
@pytest.mark.usefixtures("_two_cores")
def test_more_threads_than_cores_are_refused_before_anything_runs(
    words: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(words.split()) == 2
    assert capsys.readouterr().err == f"kdx: {REFUSED}\n"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("_two_cores")
def test_where_a_run_starts_it_is_asked_again_and_a_configuration_of_a_larger_machine_is_read() -> None:
    settings = compose_config(["device=cpu", "device.threads=3"]).device
    assert settings.threads == 3
    with pytest.raises(UserError, match=f"^{REFUSED}$"):
        prepare_device(settings)
    for threads in (None, 1, 2):
        machine.check_threads(threads)


def test_of_one_core_one_thread_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "usable_cores", lambda: 1)
    machine.check_threads(1)
    with pytest.raises(UserError, match=r"^device\.threads: 2 .* may use 1 core; allowed: 1, null$"):
        machine.check_threads(2)


@pytest.mark.parametrize("launcher", ["ray", "submitit_slurm"])
@pytest.mark.usefixtures("_two_cores")
def test_a_launcher_whose_jobs_run_elsewhere_may_have_more(launcher: str) -> None:
    words = ["dataset=digits", "device.threads=3", f"hydra/launcher={launcher}"]
    check_here(words, [job.config for job in compose_sweep(words)])


def test_torch_is_not_imported_to_say_so() -> None:
    program = (
        "import sys; from kdx.cli.main import main; code = main(sys.argv[1:]); print(code, 'torch' in sys.modules)"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    for words in (["train"], ["train", "-m", "seed=0,1"]):
        typed = [*words, "dataset=digits", "device.threads=99999"]
        ended = subprocess.run(
            [sys.executable, "-c", program, *typed], env=environment, capture_output=True, text=True, timeout=120
        )
        assert ended.stdout == "2 False\n", ended.stderr


def test_how_many_cores_others_take(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In four seconds cores 0 and 1 were busy for seven, three of them with this process."""
    clock = SimpleNamespace(now=10.0, own=5.0)
    fake = SimpleNamespace(perf_counter=lambda: clock.now, process_time=lambda: clock.own)
    monkeypatch.setattr(machine, "time", fake)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1}, raising=False)
    monkeypatch.setattr(os, "sysconf", lambda _: 100)
    monkeypatch.setattr(machine, "STAT", tmp_path / "stat")

    def busy(first: str, second: str) -> None:
        # Idle and waiting are no work, and cpu2 is another program's alone.
        (tmp_path / "stat").write_text(
            f"cpu 9 9 9 9\ncpu0 {first} 0 0\ncpu1 {second} 0 0\ncpu2 900 0 0 0 0 0 0 0\nintr 5\n"
        )

    busy("100 0 50 7000 900 0 0 0", "200 0 0 7000 900 0 0 0")
    elsewhere = machine.cores_taken_by_others()
    clock.now += 0.4
    assert elsewhere() is None
    clock.now, clock.own = 14.0, 8.0
    busy("300 50 50 7100 999 25 25 50", "450 0 50 7200 999 0 0 0")
    assert elsewhere() == pytest.approx((3.5 + 3.0 - 3.0) / 4)
    (tmp_path / "stat").unlink()
    assert elsewhere() is None


@pytest.mark.skipif(shutil.which("git") is None, reason="there is no git")
def test_results_do_not_make_a_commit_dirty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def git(*words: str) -> str:
        who = ["-c", "user.name=somebody", "-c", "user.email=somebody@example.org"]
        return subprocess.run(["git", "-C", str(tmp_path), *who, *words], capture_output=True, text=True).stdout

    for name in ("kdx/device/machine.py", "outputs/paper/table.csv"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_text("before")
    monkeypatch.setattr(machine, "__file__", str(tmp_path / "kdx/device/machine.py"))
    git("init", "--quiet")
    git("add", "--all")
    git("commit", "--quiet", "--message=all")
    commit = git("rev-parse", "--short", "HEAD").strip()
    assert machine.commit() == commit
    (tmp_path / "outputs/paper/table.csv").write_text("after")
    assert machine.commit() == commit
    (tmp_path / "kdx/device/machine.py").write_text("after")
    assert machine.commit() == f"{commit}-dirty"
