"""Folders of runs: finished or not, locked, cleared, logged."""

import json
import logging
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from kdx.compose import single
from kdx.config import run_id
from kdx.errors import UserError
from kdx.runs import RunFolder, run_folder, teacher_folder

HOLD = """
import sys, time
from pathlib import Path
from kdx.runs import RunFolder
with RunFolder(Path(sys.argv[1])).lock():
    print("held", flush=True)
    time.sleep(float(sys.argv[2]))
"""


def test_where_folders_lie(tmp_path: Path):
    config = single(["method=kd", "dataset=digits", f"outputs={tmp_path}"])
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
        with pytest.raises(UserError, match=r"metrics\.json: damaged; repeat the run with force=true"):
            folder.metrics()
    metrics.write_text(json.dumps({"R_s": 25}))
    assert folder.finished
    assert folder.metrics() == {"R_s": 25}


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


def test_the_lock_of_a_killed_process_is_free(tmp_path: Path):
    folder = RunFolder(tmp_path / "run")
    with hold(folder, 600) as owner:
        owner.kill()
        owner.wait()
        with folder.lock():
            pass


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
    config = single(["method=kd"])
    RunFolder(tmp_path).write_config(config)
    assert yaml.safe_load((tmp_path / "config.yaml").read_text()) == config.model_dump()


def hold(folder: RunFolder, seconds: float) -> subprocess.Popen[str]:
    """Another process that holds the lock; returns once it does."""
    words = [sys.executable, "-c", HOLD, str(folder.path), str(seconds)]
    owner = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
    assert owner.stdout is not None
    assert owner.stdout.readline() == "held\n"
    return owner
