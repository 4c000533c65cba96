"""Damaged files: named and rebuilt, or refused; never a traceback, a hang or a wrong number."""

import hashlib
import os
import random
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import kdx.deploy
from tortures.child import Ended, start, wait
from tortures.child import kdx as command_line
from tortures.work import command, outcome, told

METHOD = "st-vbd"
# Read by nobody but people.
SPARED = {".lock", ".log", ".md", ".tex", ".svg", ".png"}


def torture(base: Path, count: int, seed: int) -> dict[str, Any]:
    """Damage so many files, one at a time; what kdx said to each, and where it failed."""
    chance = random.Random(seed)
    tree = _tree(base / "whole")
    expected, said = outcome(tree / "outputs"), _shown(tree)
    said_of, failures = dict[str, int](), []
    for _ in told("rot", range(count)):
        work = base / "damaged"
        shutil.rmtree(work, ignore_errors=True)
        shutil.copytree(tree, work, symlinks=True)
        what = _harmed(chance, work)
        answer, why = _answer(work, expected, said)
        said_of[answer] = said_of.get(answer, 0) + 1
        if why:
            failures.append(f"{what}: {why}")
    return {"damages": sum(said_of.values()), "answers": said_of, "failures": failures}


def _harmed(chance: random.Random, work: Path) -> str:
    """Damage one file below `work`; how, and which."""
    files = [path for path in sorted(work.rglob("*")) if path.is_file() and path.suffix not in SPARED]
    while True:
        victim, kind = chance.choice(files), chance.choice(list(DAMAGES))
        # An empty file cannot be cut, and so on.
        if DAMAGES[kind](chance, victim, files):
            return f"{kind} {victim.relative_to(work)}"


def _answer(work: Path, expected: dict[str, Any], said: dict[str, str]) -> tuple[str, str]:
    """How kdx answers to a damage, and what is wrong with the answer."""
    refused = _export_is_refused(work, expected)
    if refused is None:
        return "failed", "a damaged export is read"
    for name, text in said.items():
        ended = command_line([_looks(work)[name]], work, work / "printed")
        if why := unfit(ended):
            return "failed", f"{name}: {why}"
        refused |= ended.code != 0
        if not ended.code and ended.out != text:
            return "failed", f"{name} shows other numbers"
    for words in (command(METHOD), command("kddp")):
        ended = command_line([words], work, work / "printed")
        if why := unfit(ended):
            return "failed", f"train: {why}"
        if ended.code:
            return "failed", f"train does not go on: {ended.err[-200:]}"
    found = outcome(work / "outputs")
    # An export goes with the run that it was made from.
    differing = sorted(key for key in expected if found.get(key) != expected[key] and "exports/" not in key)
    if differing:
        return "failed", f"another result: {', '.join(differing)}"
    return "refused, rebuilt by train" if refused else "without effect on what is shown", ""


def _export_is_refused(work: Path, expected: dict[str, Any]) -> bool | None:
    """Whether the export is refused, by the runner that knows no torch; None where it is read although it changed."""
    for path in work.glob("outputs/runs/**/exports/*.safetensors"):
        try:
            kdx.deploy.load(path)
        except ValueError:
            return True
        return False if hashlib.sha256(path.read_bytes()).hexdigest() in expected.values() else None
    return False


def unfit(ended: Ended) -> str:
    """What no command may do, whatever is damaged; empty where it did not."""
    if ended.hung:
        return "it hung"
    if ended.traceback:
        return f"a traceback: {ended.err[-400:]}"
    return "" if ended.code in (0, 1, 2) else f"exit code {ended.code}: {ended.err[-300:]}"


def _tree(folder: Path) -> Path:
    """A finished run with its teacher, its store and an export; a run that was killed on its way."""
    folder.mkdir(parents=True)
    for words in (command(METHOD), command("kddp")):
        ended = command_line([words], folder, folder / "printed")
        if ended.code:
            raise SystemExit(f"torture: {' '.join(words)} ended with {ended.code}: {ended.err}")
    run = _run(folder)
    ended = command_line([["export", str(run.relative_to(folder)), "format=csr"]], folder, folder / "printed")
    if ended.code:
        raise SystemExit(f"torture: the export ended with {ended.code}: {ended.err}")
    _half(folder)
    return folder


def _half(folder: Path) -> None:
    """Kill a repeated run as soon as it has a checkpoint, so that there is one to damage."""
    (other,) = folder.glob("outputs/runs/*/*/kddp/*/metrics.json")
    shutil.rmtree(other.parent)
    child = start([command("kddp")], folder, folder / "printed")
    end = time.monotonic() + 60
    while not any(other.parent.glob("checkpoint*.safetensors")) and time.monotonic() < end:
        time.sleep(0.01)
    os.kill(child, signal.SIGKILL)
    wait(child, folder / "printed")


def _run(folder: Path) -> Path:
    (run,) = (path.parent for path in folder.glob(f"outputs/runs/*/*/{METHOD}/*/metrics.json"))
    return run


def _looks(folder: Path) -> dict[str, list[str]]:
    """Commands that show results without making any; of a folder that may have lost files."""
    (run,) = (path for path in folder.glob(f"outputs/runs/*/*/{METHOD}/[!.]*") if path.is_dir())
    return {"table": ["table", str(run.relative_to(folder))], "plot": ["plot", "digits", "out=../plotted"]}


def _shown(tree: Path) -> dict[str, str]:
    return {name: command_line([words], tree, tree / "printed").out for name, words in _looks(tree).items()}


def _flip(chance: random.Random, victim: Path, files: list[Path]) -> bool:
    content = bytearray(victim.read_bytes())
    if not content:
        return False
    content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
    victim.write_bytes(content)
    return True


def _digit(chance: random.Random, victim: Path, files: list[Path]) -> bool:
    """Another digit in a file of text: still JSON, still CSV, still YAML, but not what was measured."""
    content = bytearray(victim.read_bytes())
    places = [place for place, byte in enumerate(content) if 48 <= byte <= 57]
    if not places or victim.suffix not in (".json", ".csv", ".yaml"):
        return False
    place = chance.choice(places)
    content[place] = 48 + (content[place] - 48 + chance.randint(1, 9)) % 10
    victim.write_bytes(content)
    return True


def _truncate(chance: random.Random, victim: Path, files: list[Path]) -> bool:
    size = victim.stat().st_size
    if not size:
        return False
    os.truncate(victim, chance.randrange(size))
    return True


def _zeros(chance: random.Random, victim: Path, files: list[Path]) -> bool:
    content = bytearray(victim.read_bytes())
    start = chance.randrange(len(content) or 1)
    length = min(len(content) - start, 512)
    if not any(content[start : start + length]):
        return False
    content[start : start + length] = bytes(length)
    victim.write_bytes(content)
    return True


def _delete(chance: random.Random, victim: Path, files: list[Path]) -> bool:
    victim.unlink()
    return True


def _swap(chance: random.Random, victim: Path, files: list[Path]) -> bool:
    alike = [path for path in files if path.suffix == victim.suffix and path.read_bytes() != victim.read_bytes()]
    if not alike:
        return False
    other = chance.choice(alike)
    one, two = victim.read_bytes(), other.read_bytes()
    victim.write_bytes(two)
    other.write_bytes(one)
    return True


DAMAGES: dict[str, Callable[[random.Random, Path, list[Path]], bool]] = {
    "flip a bit of": _flip,
    "another digit in": _digit,
    "truncate": _truncate,
    "zeros in": _zeros,
    "delete": _delete,
    "swap": _swap,
}
