"""Files that are whole or absent: what is left, and what is said, where the file system refuses."""

import errno
import logging
import resource
from pathlib import Path

import pytest
import torch

from kdx.errors import RunFailed, describe, is_expected, log_failures
from kdx.storage.files import write_atomically, write_text
from kdx.storage.lock import file_lock
from kdx.storage.tensors import load_tensors, save_tensors


def refuse(_temporary: Path) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_refusal_names_the_file_and_leaves_the_one_before(tmp_path: Path):
    path = tmp_path / "figures.txt"
    write_text(path, "before")
    with pytest.raises(OSError, match="No space left on device") as failure:
        write_atomically(path, refuse)
    assert (failure.value.errno, failure.value.filename) == (errno.ENOSPC, str(path))
    assert path.read_text() == "before"
    assert [each.name for each in tmp_path.iterdir()] == ["figures.txt"]


@pytest.mark.parametrize(
    ("folder", "reason"),
    [
        ("/proc/x", "a folder cannot be made here"),
        ("/dev/null", "Not a directory"),
        ("x" * 300, "File name too long"),
        ("loop", "Too many levels of symbolic links"),
    ],
)
def test_a_folder_that_cannot_be_is_told_in_one_line(
    folder: str, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    Path("loop").symlink_to("loop")
    with pytest.raises(OSError, match=reason) as failure, file_lock(Path(folder, "runs", "run")):
        pass
    assert is_expected(failure.value)
    assert describe(failure.value) == f"{folder}/runs: {reason}"
    with pytest.raises(OSError, match=reason) as failure:
        write_text(Path(folder, "runs", "table.md"), "")
    assert is_expected(failure.value)


def test_an_error_of_the_content_stays_what_it_is(tmp_path: Path):
    def wrong(_temporary: Path) -> None:
        raise ValueError("not finite")

    with pytest.raises(ValueError, match="not finite"):
        write_atomically(tmp_path / "figures.txt", wrong)
    assert not list(tmp_path.iterdir())


def test_tensors_that_do_not_fit_are_refused_by_the_system_and_those_before_stay(tmp_path: Path):
    path = tmp_path / "weights.safetensors"
    save_tensors(path, {"weight": torch.ones(3)})
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    try:
        with pytest.raises(OSError, match="File too large") as failure:
            save_tensors(path, {"weight": torch.ones(10_000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert failure.value.filename == str(path)
    assert load_tensors(path)[0]["weight"].tolist() == [1, 1, 1]


def test_a_log_that_cannot_be_written_prints_no_traceback(capsys, tmp_path: Path):
    handler = logging.FileHandler("/dev/full")
    logger = logging.getLogger("kdx.full")
    logger.addHandler(handler)

    def log_and_write() -> None:
        logger.error("a line")
        write_atomically(tmp_path / "figures.txt", refuse)

    try:
        with (
            pytest.raises(RunFailed, match=r"figures\.txt: No space left on device"),
            log_failures(tmp_path / "kdx.log"),
        ):
            log_and_write()
    finally:
        logger.removeHandler(handler)
        with pytest.raises(OSError, match="No space left"):
            handler.close()
    assert "Traceback" not in capsys.readouterr().err
    assert logging.raiseExceptions
