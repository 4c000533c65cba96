"""Output folders that are full, read-only or not ours: one clear line, and everything goes on once that is mended."""

import hashlib
import os
import random
import resource
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

from tortures.child import Ended, kdx
from tortures.kill import export, phase
from tortures.work import command, outcome, told

METHOD = "st-vbd"
NAMES = ("train", "export", "reproduce", "report")
PAGE = 4096
AMPLE = 256 * 2**20
NOBODY = 65534

Outcome = dict[str, Any]


@cache
def _commands() -> list[list[str]]:
    table = ["reproduce", "noisy/table1", "budget=smoke", "seeds=1", "rows=sigma 0.2", "device.threads=1"]
    return [command(METHOD), export(METHOD), table, ["report"]]


def torture(base: Path, count: int, seed: int) -> dict[str, Any]:
    """Let so many commands meet each refusal that this machine can make; what they were at, and where they failed."""
    chance = random.Random(seed)
    # Whoever is nobody there must get as far as the folder.
    base.chmod(0o755)
    expected, grown = _undisturbed(base / "whole")
    refusals: dict[str, Callable[[Path, random.Random, list[int]], tuple[str, str]]] = {"a limit on files": _limited}
    skipped = {}
    if _mounts(base / "try"):
        refusals |= {"a full disk": _full, "a read-only disk": _read_only}
    else:
        skipped |= dict.fromkeys(("a full disk", "a read-only disk"), "mounting is not allowed")
    if os.getuid() == 0:
        refusals["no permission"] = _forbidden
    else:
        skipped["no permission"] = "only root can drop to another user"
    met, failures = dict[str, int](), list[str]()
    for number in told("disk", range(count)):
        name = list(refusals)[number % len(refusals)]
        folder = base / "refused"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        with _disk(folder / "outputs", mounted=name in ("a full disk", "a read-only disk")):
            where, why = refusals[name](folder, chance, grown)
            met[f"{name}: {where}"] = met.get(f"{name}: {where}", 0) + 1
            why = why or _resumed(folder, expected)
        if why:
            failures.append(f"{name}, {where}: {why}")
    refused = sum(many for what, many in met.items() if not what.endswith("nothing"))
    return {"refusals": refused, "met": dict(sorted(met.items())), "skipped": skipped, "failures": failures}


def _undisturbed(folder: Path) -> tuple[Outcome, list[int]]:
    """What comes out where nothing is refused, and by how many bytes each command lets the folder grow."""
    folder.mkdir()
    grown = [0]
    for words in _commands():
        ended = kdx([words], folder, folder / "printed")
        if ended.code:
            raise SystemExit(f"torture: {' '.join(words)} ended with {ended.code}: {ended.err}")
        grown.append(_used(folder / "outputs"))
    return _results(folder), [after - before for before, after in pairwise(grown)]


def _resumed(folder: Path, expected: Outcome) -> str:
    """What is wrong after the same commands ran once more, with space and permission."""
    ended = kdx(_commands(), folder, folder / "printed")
    if ended.code:
        return f"it does not go on: {ended.err[-300:]}"
    found = _results(folder)
    differing = sorted(key for key in found.keys() | expected.keys() if found.get(key) != expected.get(key))
    left = [path.name for path in folder.rglob("*.tmp")]
    return f"another result: {', '.join(differing)}" if differing else f"left behind: {', '.join(left)}" if left else ""


def _results(folder: Path) -> Outcome:
    tables = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.rglob("paper/**/table.csv")}
    return outcome(folder / "outputs") | tables | {"report": (folder / "outputs/report.html").exists()}


def _full(folder: Path, chance: random.Random, grown: list[int]) -> tuple[str, str]:
    """A disk that has room for a part of what one of the commands writes."""
    done = _begun(chance)
    why = _first(done, folder, chance)
    if why:
        return "setup", why
    # A training needs more on its way than it leaves: its checkpoint, twice while the next one is written.
    most = (4 if not done else 0.8) * grown[done]
    room = _used(folder / "outputs") + chance.randint(1, max(1, int(most) // PAGE)) * PAGE
    _remount(folder / "outputs", f"size={room}")
    ended = kdx(_commands()[done:], folder, folder / "printed")
    where = _at(ended, done, folder)
    _remount(folder / "outputs", f"size={AMPLE}")
    return where, _unfit(ended, "No space left on device")


def _limited(folder: Path, chance: random.Random, grown: list[int]) -> tuple[str, str]:
    """Files that may not grow beyond so many bytes, like a quota."""
    done = _begun(chance)
    why = _first(done, folder, chance)
    if why:
        return "setup", why
    # Never so few that what the command prints does not fit.
    most = chance.choice((5_000, 20_000, 100_000, 300_000, 400_000, 440_000))

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))

    ended = kdx(_commands()[done:], folder, folder / "printed", limit)
    return _at(ended, done, folder), _unfit(ended, "File too large")


def _read_only(folder: Path, chance: random.Random, grown: list[int]) -> tuple[str, str]:
    done = _begun(chance)
    why = _first(done, folder, chance)
    if why:
        return "setup", why
    _remount(folder / "outputs", "ro")
    ended = kdx(_commands()[done:], folder, folder / "printed")
    where = _at(ended, done, folder)
    _remount(folder / "outputs", "rw")
    return where, _unfit(ended, "Read-only file system")


def _forbidden(folder: Path, chance: random.Random, grown: list[int]) -> tuple[str, str]:
    """Another user, who may read the folders but write none of them."""
    done = _begun(chance)
    why = _first(done, folder, chance)
    if why:
        return "setup", why

    def drop() -> None:
        os.setgroups([])
        os.setgid(NOBODY)
        os.setuid(NOBODY)

    ended = kdx(_commands()[done:], folder, folder / "printed", drop)
    return _at(ended, done, folder), _unfit(ended, "Permission denied")


def _begun(chance: random.Random) -> int:
    """How many commands are done before anything is refused; mostly none, since training has most parts."""
    return chance.choice((0, 0, 0, 0, 0, 0, 1, 2, 3))


def _first(done: int, folder: Path, chance: random.Random) -> str:
    """Run the commands that nothing refuses; where there are none, half of the time leave a teacher without a store."""
    teacher = not done and chance.random() < 0.5
    ended = kdx([["--version"], *_commands()[: 1 if teacher else done]], folder, folder / "printed")
    if teacher:
        shutil.rmtree(folder / "outputs" / "runs")
        shutil.rmtree(folder / "outputs" / "logits")
    return f"it does not begin: {ended.err[-300:]}" if ended.code else ""


def _at(ended: Ended, done: int, folder: Path) -> str:
    """What was refused: the command, and of a training the part."""
    if not ended.code:
        return "nothing"
    name = NAMES[done + ended.ran]
    return f"{name} ({phase(folder)})" if name == "train" else name


def _unfit(ended: Ended, reason: str) -> str:
    """What is wrong with how a command ended that was refused something."""
    if ended.hung:
        return "it hung"
    if ended.traceback:
        return f"a traceback: {ended.err[-600:]}"
    if not ended.code:
        return ""
    last = ended.err.strip().splitlines()[-1:]
    if ended.code not in (1, 2) or not last or not last[0].startswith("kdx: "):
        return f"exit code {ended.code}: {ended.err[-300:]}"
    return "" if reason in last[0] else f"it does not say '{reason}': {last[0]}"


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
