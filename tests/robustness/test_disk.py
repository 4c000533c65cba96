"""Output folders that are full, read-only or not ours: one clear line, and everything goes on once that is mended."""

import hashlib
import os
import random
import shutil
import subprocess
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path

import pytest
from helpers.forked import Before, Ended
from helpers.hurt import (
    Outcome,
    become_nobody,
    command,
    differing,
    export,
    finish,
    limit_files,
    outcome,
    phase,
    run,
)  # fmt: skip

METHOD = "st-vbd"
NAMES = ("train", "export", "reproduce", "report")
PAGE = 4096
AMPLE = 256 * 2**20

# What a refusal is made of, the share of what the next command writes, and what is to be done in its process.
Refusal = Callable[[Path, random.Random, float], AbstractContextManager[list[Before]]]


@contextmanager
def full(disk: Path, chance: random.Random, growth: float) -> Iterator[list[Before]]:
    """A disk that has room for a part of what the next command writes."""
    _remount(disk, f"size={_used(disk) + chance.randint(1, max(1, int(growth) // PAGE)) * PAGE}")
    yield []
    _remount(disk, f"size={AMPLE}")


@contextmanager
def read_only(disk: Path, chance: random.Random, growth: float) -> Iterator[list[Before]]:
    _remount(disk, "ro")
    yield []
    _remount(disk, "rw")


@contextmanager
def limited(disk: Path, chance: random.Random, growth: float) -> Iterator[list[Before]]:
    # Never so few bytes that what the command prints does not fit.
    yield [partial(limit_files, chance.choice((5_000, 20_000, 100_000, 300_000, 400_000, 440_000)))]


@contextmanager
def forbidden(disk: Path, chance: random.Random, growth: float) -> Iterator[list[Before]]:
    yield [become_nobody]


REFUSALS: dict[str, tuple[Refusal, str]] = {
    "a limit on files": (limited, "File too large"),
    "a full disk": (full, "No space left on device"),
    "a read-only disk": (read_only, "Read-only file system"),
    "no permission": (forbidden, "Permission denied"),
}
MOUNTED = ("a full disk", "a read-only disk")


@pytest.fixture
def base() -> Iterator[Path]:
    """A folder that nobody gets to, unlike those of pytest."""
    with tempfile.TemporaryDirectory(prefix="kdx-disk-") as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


def test_a_refused_folder_is_told_in_one_line_and_the_run_goes_on(
    base: Path, chance: random.Random, blows: Callable[[int], int], figures: Callable[..., None]
) -> None:
    commands = _commands()
    expected, growths = _undisturbed(base / "whole", commands)
    skipped: dict[str, str] = {}
    if not _mounts(base / "try"):
        skipped |= dict.fromkeys(MOUNTED, "mounting is not allowed")
    if os.getuid():
        skipped["no permission"] = "only root can drop to another user"
    possible = [name for name in REFUSALS if name not in skipped]
    met, failures = Counter[str](), list[str]()
    for number in range(blows(4)):
        name = possible[number % len(possible)]
        refusal, reason = REFUSALS[name]
        folder = base / "refused"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        # How many commands are done before anything is refused; mostly none, since training has most parts.
        done = chance.choice((0, 0, 0, 0, 0, 0, 1, 2, 3))
        # A training needs more on its way than it leaves: its checkpoint, twice while the next one is written.
        growth = (0.8 if done else 4) * growths[done]
        with _disk(folder / "outputs", mounted=name in MOUNTED):
            _begin(commands, done, folder, chance)
            with refusal(folder / "outputs", chance, growth) as before:
                ended = run(commands[done:], folder, *before)
            where = _at(ended, done, folder)
            why = _unfit(ended, reason) or _resumed(commands, folder, expected)
        met[f"{name}: {where}"] += 1
        if why:
            failures.append(f"{name}, {where}: {why}")
    refused = sum(many for what, many in met.items() if not what.endswith("nothing"))
    figures("disk", refusals=refused, met=dict(sorted(met.items())), skipped=skipped, failures=failures)
    assert refused > 0


def _commands() -> list[list[str]]:
    table = ["reproduce", "noisy/table1", "budget=smoke", "seeds=1", "rows=sigma 0.2", "device.threads=1"]
    return [command(METHOD), export(METHOD), table, ["report"]]


def _undisturbed(folder: Path, commands: list[list[str]]) -> tuple[Outcome, list[int]]:
    """What comes out where nothing is refused, and by how many bytes each command lets the folder grow."""
    growths, used = [], 0
    for words in commands:
        finish([words], folder)
        growths.append(_used(folder / "outputs") - used)
        used += growths[-1]
    return _results(folder), growths


def _begin(commands: list[list[str]], done: int, folder: Path, chance: random.Random) -> None:
    """Run the commands that nothing refuses; where there are none, half of the time leave a teacher without a store."""
    teacher = not done and chance.random() < 0.5
    finish([["--version"], *commands[: 1 if teacher else done]], folder)
    if teacher:
        shutil.rmtree(folder / "outputs" / "runs")
        shutil.rmtree(folder / "outputs" / "logits")


def _resumed(commands: list[list[str]], folder: Path, expected: Outcome) -> str:
    """What is wrong after the same commands ran once more, with space and permission."""
    ended = run(commands, folder)
    if ended.code:
        return f"it does not go on: {ended.err[-300:]}"
    left = [path.name for path in folder.rglob("*.tmp")]
    return differing(_results(folder), expected) or (f"left behind: {', '.join(left)}" if left else "")


def _results(folder: Path) -> Outcome:
    tables = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.rglob("paper/**/table.csv")}
    return outcome(folder / "outputs") | tables | {"report": (folder / "outputs/report.html").exists()}


def _at(ended: Ended, done: int, folder: Path) -> str:
    """What was refused: the command, and of a training the part."""
    if not ended.code:
        return "nothing"
    name = NAMES[done + ended.ran]
    return f"{name} ({phase(folder)})" if name == "train" else name


def _unfit(ended: Ended, reason: str) -> str:
    """What is wrong with how a command ended that was refused something."""
    if ended.wrong() or not ended.code:
        return ended.wrong()
    *_, last = ["", *ended.err.strip().splitlines()]
    if not last.startswith("kdx: "):
        return f"exit code {ended.code}: {ended.err[-300:]}"
    return "" if reason in last else f"it does not say '{reason}': {last}"


def _used(folder: Path) -> int:
    """The bytes of a folder in whole pages, as tmpfs counts them, with one for every folder."""
    return sum(PAGE if path.is_dir() else -(-path.stat().st_size // PAGE) * PAGE for path in folder.rglob("*"))


@contextmanager
def _disk(folder: Path, *, mounted: bool) -> Iterator[None]:
    folder.mkdir()
    if not mounted:
        yield
        return
    _mount("-t", "tmpfs", "-o", f"size={AMPLE}", "none", str(folder))
    try:
        yield
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def _mounts(folder: Path) -> bool:
    folder.mkdir()
    try:
        with _disk(folder / "outputs", mounted=True):
            return True
    except (OSError, subprocess.CalledProcessError):
        return False


def _remount(folder: Path, option: str) -> None:
    _mount("-o", f"remount,{option}", str(folder))


def _mount(*words: str) -> None:
    subprocess.run(["mount", *words], check=True, capture_output=True)
