"""Folders of runs: finished or not, locked, cleared, logged."""

import fcntl
import hashlib
import json
import logging
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from kdx.config.compose import compose_config
from kdx.errors import UserError
from kdx.runs.folder import RunFolder, run_folder, teacher_folder
from kdx.runs.identity import run_id
from kdx.storage.checksums import METRICS, WrittenLater

HOLD = """
import sys, time
from pathlib import Path
from kdx.runs.folder import RunFolder
with RunFolder(Path(sys.argv[1])).lock():
    print("held", flush=True)
    time.sleep(float(sys.argv[2]))
"""


def test_where_folders_lie(tmp_path: Path):
    config = compose_config(["method=kd", "dataset=digits", f"outputs={tmp_path}"])
    assert run_folder(config).path == tmp_path / "runs" / "digits" / "lenet-300-100" / "kd" / run_id(config)
    assert teacher_folder(config).path.parent == tmp_path / "teachers"


def test_finished_means_valid_metrics(tmp_path: Path):
    folder = RunFolder(tmp_path / "run")
    assert not folder.finished
    folder.clear()
    assert not folder.finished
    metrics = folder.path / "metrics.json"
    for damage in ("", "{", "[]", "{}", "\0"):
        metrics.write_text(damage)
        assert not folder.finished
        with pytest.raises(
            UserError, match=r"metrics\.json is damaged: it is not a JSON object; repeat the run with force=true"
        ):
            folder.metrics()
    metrics.write_text(json.dumps({"R_s": 25}))
    assert folder.finished
    assert folder.metrics() == {"R_s": 25}


def sealed(path: Path) -> RunFolder:
    folder = RunFolder(path)
    folder.clear()
    (path / "layers.csv").write_text("layer,weights\nfc1,10\n")
    (path / "checkpoint.safetensors").write_bytes(b"of no interest")
    folder.write_metrics({"format": 2, "R_s": 25})
    return folder


def test_results_are_sealed(tmp_path: Path):
    folder = sealed(tmp_path / "run")
    lines = (folder.path / "checksums.sha256").read_text().splitlines()
    # The format of sha256sum.
    expected = {name: hashlib.sha256((folder.path / name).read_bytes()).hexdigest() for name in ("layers.csv", METRICS)}
    assert lines == [f"{digest}  {name}" for name, digest in sorted(expected.items())]
    assert (folder.finished, folder.damage()) == (True, None)
    # What comes later is nobody's result.
    (folder.path / "bench.csv").write_text("1")
    (folder.path / "checkpoint.safetensors").unlink()
    assert folder.finished


@pytest.mark.parametrize(
    ("file", "content", "reason"),
    [
        ("metrics.json", '{"format": 2, "R_s": 26}', "its content is not what was written"),
        ("metrics.json", '{"R_s": 25}', "its content is not what was written"),
        ("layers.csv", "layer,weights\nfc1,11\n", "its content is not what was written"),
        ("layers.csv", None, "it is not there any more"),
        ("checksums.sha256", None, "checksums.sha256 is not there any more"),
        ("checksums.sha256", f"{'0' * 64}  metrics.json\n", "its content is not what was written"),
        ("checksums.sha256", "0  metrics.json\n", "it is no list of checksums"),
        ("checksums.sha256", "", "it is no list of checksums"),
        ("checksums.sha256", "\0" * 200, "it is no list of checksums"),
        ("checksums.sha256", f"{'0' * 64}  ../metrics.json\n", "it is no list of checksums"),
        ("checksums.sha256", f"{'0' * 64}  metrics", "it is no list of checksums"),
    ],
)
def test_changed_results_are_no_results(tmp_path: Path, caplog, file: str, content: str | None, reason: str):
    folder = sealed(tmp_path / "run")
    path = folder.path / file
    path.unlink() if content is None else path.write_text(content)
    assert not folder.finished
    assert reason in (folder.damage() or "")
    assert not folder.clear_unless_finished()
    assert list(folder.path.iterdir()) == []
    (line,) = caplog.messages
    assert line.endswith(f"{reason}; this is repeated")
    assert not folder.clear_unless_finished()
    assert folder.damage() is None


def test_intact_results_are_kept_unless_they_are_to_be_repeated(tmp_path: Path, caplog):
    folder = sealed(tmp_path / "run")
    assert folder.clear_unless_finished()
    assert folder.finished
    assert not folder.clear_unless_finished(repeat=True)
    assert list(folder.path.iterdir()) == []
    assert caplog.messages == []


def test_a_format_of_the_past_and_one_of_the_future(tmp_path: Path):
    folder = RunFolder(tmp_path / "run")
    folder.clear()
    (folder.path / METRICS).write_text('{"R_s": 25}')
    assert folder.finished
    (folder.path / METRICS).write_text('{"format": 3, "R_s": 25}')
    for look in (folder.metrics, folder.damage, folder.clear_unless_finished, lambda: folder.finished):
        with pytest.raises(
            WrittenLater, match=r"later version of kdx \(format 3, this one reads up to 2\); update kdx"
        ):
            look()
    assert (folder.path / METRICS).exists()


def test_an_unfinished_run_has_no_metrics(tmp_path: Path):
    with pytest.raises(UserError, match="not a finished run"):
        RunFolder(tmp_path).metrics()


def test_clear_leaves_an_empty_folder_and_the_lock(tmp_path: Path):
    folder = RunFolder(tmp_path / "run")
    with folder.lock():
        folder.clear()
        (folder.path / "deep").mkdir()
        folder.clear()
        assert not any(folder.path.iterdir())
    with folder.lock():
        pass


def test_a_second_process_waits(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    folder = RunFolder(tmp_path / "run")
    with hold(folder, 1.0):
        begin = time.monotonic()
        with folder.lock():
            assert time.monotonic() - begin > 0.3
    assert "waiting for another process" in caplog.text


NO_FLOCK = """
import errno, fcntl
def flock(*arguments):
    raise OSError(errno.ENOSYS, "a disk without locks")
fcntl.flock = flock
"""


@pytest.mark.parametrize("disk", ["", NO_FLOCK], ids=["a disk with locks", "a disk without"])
def test_the_lock_of_a_killed_process_is_free(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, disk: str):
    folder = RunFolder(tmp_path / "run")
    monkeypatch.setattr("fcntl.flock", fcntl.flock)
    # Also here, until the end of the test.
    exec(disk, {})
    with hold(folder, 600, disk) as owner:
        with folder.lock(wait=False) as held:
            assert not held
        owner.kill()
        owner.wait()
        with folder.lock(wait=False) as held:
            assert held


def test_log_file_and_screen(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    folder, other = RunFolder(tmp_path / "run"), RunFolder(tmp_path / "teacher")
    logger = logging.getLogger("kdx.anything")
    with folder.logged():
        logger.info("quiet")
        with other.logged():
            logger.warning("loud")
    logger.info("after")
    text = folder.log_file.read_text()
    assert "INFO quiet" in text
    assert "WARNING loud" in text
    assert "after" not in text
    assert "loud" in other.log_file.read_text()
    assert capsys.readouterr().err == "kdx: loud\n"


def test_the_configuration_is_written(tmp_path: Path):
    config = compose_config(["method=kd"])
    RunFolder(tmp_path).write_config(config)
    assert yaml.safe_load((tmp_path / "config.yaml").read_text()) == config.model_dump()


def hold(folder: RunFolder, seconds: float, before: str = "") -> subprocess.Popen[str]:
    """Another process that holds the lock; returns once it does."""
    words = [sys.executable, "-c", before + HOLD, str(folder.path), str(seconds)]
    owner = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
    assert owner.stdout is not None
    assert owner.stdout.readline() == "held\n"
    return owner


def finished(path: Path, latency_seconds: float, **metrics: object) -> RunFolder:
    folder = RunFolder(path)
    folder.clear()
    folder.write_config(compose_config(["dataset=digits", f"device.latency_seconds={latency_seconds}"]))
    folder.write_metrics({"format": 2, **metrics})
    return folder


def test_a_finished_run_says_that_it_lacks_the_latency_that_is_asked_for(tmp_path: Path):
    told = finished(tmp_path / "untimed", 0, latency_ms=None)
    assert told.reservations(latency_seconds=0) == []
    (line,) = told.reservations(latency_seconds=2)
    assert line.startswith("it was made with device.latency_seconds=0")
    assert finished(tmp_path / "timed", 2, latency_ms=0.1).reservations(latency_seconds=2) == []
    # Asked for, and left out because a batch took too long.
    assert finished(tmp_path / "slow", 2, latency_ms=None).reservations(latency_seconds=2) == []


@pytest.mark.parametrize(
    ("by", "now", "told"),
    [
        (("abc", "v1"), ("abc", "v1-dirty"), False),
        (("abc", "v1"), ("def", "v1-dirty"), True),
        (("abc", "v1-dirty"), ("def", "v2"), True),
        (("abc", "v1"), ("def", "v2"), False),
        ((None, None), ("def", "v2-dirty"), False),
    ],
)
def test_results_of_a_changed_checkout_are_not_taken_silently(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, by: tuple, now: tuple, told: bool
):
    """What is committed says by FORMAT when it makes another experiment; uncommitted changes say nothing."""
    folder = finished(tmp_path / "run", 0, kdx_source=by[0], commit=by[1])
    monkeypatch.setattr("kdx.runs.folder.kdx_source", lambda: now[0])
    monkeypatch.setattr("kdx.runs.folder.commit", lambda: now[1])
    assert bool(folder.reservations()) is told
