"""Damaged files of data sets: named and refused; without a checksum that tells, read or refused in one line."""

import gzip
import random
import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
from helpers.damage import damage
from helpers.forked import Ended
from helpers.hurt import SMALL, outcome, run, take_for_official
from helpers.official import batch, idx, mat, md5, write
from helpers.typed import typed

from kdx.data import cifar10, mnist, svhn
from kdx.data.download import SourceFile, SourceSet

SAMPLES = 60
OFFICIAL = {"mnist": mnist.SOURCES, "cifar10": cifar10.SOURCES, "svhn": svhn.SOURCES}
WORDS = (
    *(word for word in SMALL if not word.startswith(("dataset", "student."))),
    *("dataset.root=data", "dataset.download=false", "dataset.validation=0", "method=vanilla"),
    *("teacher=mlp-1200-1200", "student=mlp-500-50", "student.hidden=[8]"),
    *("trainer.epochs=1", "teacher.trainer.epochs=1", "trainer.batch_size=20"),
)


def test_damaged_files_of_data_sets_are_refused(
    tmp_path: Path, chance: random.Random, blows: Callable[[int], int], figures: Callable[..., None]
) -> None:
    """Half of the damages come with a checksum that fits, so that the readers themselves are hurt."""
    trees = [Tree(tmp_path / place, content()) for place, content in CONTENTS.items()]
    damages, answers, failures = blows(12), Counter[str](), list[str]()
    work = tmp_path / "damaged"
    for _ in range(damages):
        tree = chance.choice(trees)
        shutil.rmtree(work, ignore_errors=True)
        shutil.copytree(tree.folder, work)
        files = [path for path in sorted(work.glob("data/**/*")) if path.is_file()]
        unseen = chance.random() < 0.5
        if not unseen:
            files += sorted(work.glob("cache/**/*.safetensors"))
        how, victim = damage(chance, files, without=["delete"] if unseen else [])
        if unseen:
            shutil.rmtree(work / "cache")
        answer, why = tree.answer(work, unseen=unseen)
        answers[answer] += 1
        if why:
            failures.append(f"{how} {tree.folder.name} {victim.name}{', unseen' * unseen}: {why}")
    figures("files", damages=damages, answers=answers, failures=failures)
    assert answers["refused"] > 4


class Tree:
    """A folder with a data set and its cache, and what a run on it comes to."""

    def __init__(self, folder: Path, files: dict[str, bytes]) -> None:
        self.folder, self.dataset = folder, folder.name.partition("-")[0]
        for path, content in files.items():
            write((folder / "data" / path).parent, {Path(path).name: content})
        ended = self.train(folder, folder)
        assert not ended.code, ended.err
        self.expected = outcome(folder / "outputs")
        shutil.rmtree(folder / "outputs")

    def train(self, work: Path, official: Path) -> Ended:
        """Train on the files in `work`, taking those in `official` for the official ones."""
        taken = partial(take_for_official, self.dataset, _sources(OFFICIAL[self.dataset], official / "data"))
        words = typed(["train", *WORDS, f"dataset={self.dataset}"])
        return run([words], work, taken, XDG_CACHE_HOME=str(work / "cache"))

    def answer(self, work: Path, *, unseen: bool) -> tuple[str, str]:
        """How kdx answers to damaged files, and what is wrong with the answer."""
        ended = self.train(work, work if unseen else self.folder)
        if why := ended.wrong():
            return "failed", why
        if ended.code:
            *_, line = ended.err.strip().splitlines()
            named = any(name.removesuffix(".gz") in line for name in self.changed(work))
            wrong = "" if ended.code == 2 and named else f"exit code {ended.code}: {ended.err[-300:]}"
            return ("failed" if wrong else "refused"), wrong
        if unseen:
            return "read, as no checksum tells", ""
        same = outcome(work / "outputs") == self.expected
        return ("decoded again", "") if same else ("failed", "another result")

    def changed(self, work: Path) -> list[str]:
        """The names of the files that are not what they were."""
        whole = [path for path in self.folder.glob("data/**/*") if path.is_file()]
        others = {path: work / path.relative_to(self.folder) for path in whole}
        return [
            path.name for path, other in others.items() if not other.exists() or other.read_bytes() != path.read_bytes()
        ]


def _sources(official: SourceSet, data: Path) -> SourceSet:
    """The data set's sources with the sizes and md5s of the files in `data`."""

    def content(name: str) -> bytes | None:
        found = (path for place in (".", "MNIST/raw", "svhn") if (path := data / place / name).is_file())
        return next((path.read_bytes() for path in found), None)

    def checksum(name: str) -> str:
        return md5(content(name) or name.encode())

    def source(file: SourceFile) -> SourceFile:
        members = {name: checksum(name) for name in file.members}
        return SourceFile(file.name, len(content(file.name) or b""), checksum(file.name), members)

    return replace(official, files=tuple(map(source, official.files)))


def _mnist() -> dict[str, bytes]:
    pixels, labels = _pixels(28, 28), _labels()
    names = {"train": "train", "test": "t10k"}
    images = {f"MNIST/raw/{name}-images-idx3-ubyte": idx(pixels) for name in names.values()}
    return images | {f"MNIST/raw/{name}-labels-idx1-ubyte": idx(labels) for name in names.values()}


def _packed() -> dict[str, bytes]:
    return {f"{name}.gz": gzip.compress(content, mtime=0) for name, content in _mnist().items()}


def _cifar10() -> dict[str, bytes]:
    names = [name for names in cifar10.PARTS.values() for name in names]
    return {f"cifar-10-batches-py/{name}": batch(_pixels(3, 32, 32), _labels()) for name in names}


def _svhn() -> dict[str, bytes]:
    return {f"svhn/{part}_32x32.mat": mat(_pixels(32, 32, 3), _labels() + 1) for part in ("train", "test", "extra")}


def _pixels(*shape: int) -> np.ndarray:
    # Few values, so that zlib has something to do and damages of its tables matter.
    return np.random.default_rng(sum(shape)).integers(0, 16, (SAMPLES, *shape), dtype=np.uint8)


def _labels() -> np.ndarray:
    return (np.arange(SAMPLES) % 10).astype(np.uint8)


CONTENTS: dict[str, Callable[[], dict[str, bytes]]] = {
    "mnist": _packed,
    "mnist-unpacked": _mnist,
    "cifar10": _cifar10,
    "svhn": _svhn,
}
