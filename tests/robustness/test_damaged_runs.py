"""Damaged results: named and rebuilt, or refused; never a traceback, a hang or a wrong number."""

import hashlib
import random
import shutil
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers.damage import damage
from helpers.hurt import Outcome, command, finish, outcome, run, start

import kdx.deploy

METHOD = "st-vbd"
# Read by nobody but people.
SPARED = {".lock", ".log", ".md", ".tex", ".svg", ".png"}


def test_damaged_files_are_refused_or_rebuilt(
    tmp_path: Path,
    chance: random.Random,
    blows: Callable[[int], int],
    figures: Callable[..., None],
    tree: Path,
) -> None:
    expected, said = outcome(tree / "outputs"), {name: run([words], tree).out for name, words in _looks(tree).items()}
    damages, answers, failures = blows(8), Counter[str](), list[str]()
    work = tmp_path / "damaged"
    for _ in range(damages):
        shutil.rmtree(work, ignore_errors=True)
        shutil.copytree(tree, work, symlinks=True)
        files = [path for path in sorted(work.rglob("*")) if path.is_file() and path.suffix not in SPARED]
        how, victim = damage(chance, files)
        answer, why = _answer(work, expected, said)
        answers[answer] += 1
        if why:
            failures.append(f"{how} {victim.relative_to(work)}: {why}")
    figures("rot", damages=damages, answers=answers, failures=failures)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A finished run with its teacher, its store and an export; a run that was killed on its way."""
    folder = tmp_path / "whole"
    finish([command(METHOD), command("kddp")], folder)
    (finished,) = folder.glob(f"outputs/runs/*/*/{METHOD}/*/metrics.json")
    finish([["export", str(finished.parent.relative_to(folder)), "format=csr"]], folder)
    # Killed as soon as it has a checkpoint, so that there is one to damage.
    (other,) = (path.parent for path in folder.glob("outputs/runs/*/*/kddp/*/metrics.json"))
    shutil.rmtree(other)
    child = start([command("kddp")], folder)
    end = time.monotonic() + 60
    while not any(other.glob("checkpoint*.safetensors")) and time.monotonic() < end:
        time.sleep(0.01)
    child.kill()
    child.wait()
    return folder


def _answer(work: Path, expected: Outcome, said: dict[str, str]) -> tuple[str, str]:
    """How kdx answers to a damage, and what is wrong with the answer."""
    refused = _export_is_refused(work, expected)
    if refused is None:
        return "failed", "a damaged export is read"
    for name, words in _looks(work).items():
        ended = run([words], work)
        if why := ended.wrong():
            return "failed", f"{name}: {why}"
        refused |= ended.code != 0
        if not ended.code and ended.out != said[name]:
            return "failed", f"{name} shows other numbers"
    for words in (command(METHOD), command("kddp")):
        ended = run([words], work)
        if why := ended.wrong():
            return "failed", f"train: {why}"
        if ended.code:
            return "failed", f"train does not go on: {ended.err[-200:]}"
    found = outcome(work / "outputs")
    # An export goes with the run that it was made from.
    other = sorted(key for key in expected if found.get(key) != expected[key] and "exports/" not in key)
    if other:
        return "failed", f"another result: {', '.join(other)}"
    return "refused, rebuilt by train" if refused else "without effect on what is shown", ""


def _export_is_refused(work: Path, expected: Outcome) -> bool | None:
    """Whether the export is refused, by the runner that knows no torch; None where it is read although it changed."""
    for path in work.glob("outputs/runs/**/exports/*.safetensors"):
        try:
            kdx.deploy.load(path)
        except ValueError:
            return True
        return False if hashlib.sha256(path.read_bytes()).hexdigest() in expected.values() else None
    return False


def _looks(folder: Path) -> dict[str, list[str]]:
    """Commands that show results without making any; of a folder that may have lost files."""
    (finished,) = (path for path in folder.glob(f"outputs/runs/*/*/{METHOD}/[!.]*") if path.is_dir())
    return {"table": ["table", str(finished.relative_to(folder))], "plot": ["plot", "digits", "out=../plotted"]}
