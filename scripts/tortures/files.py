"""Damaged files of data sets: named and refused; without a checksum that tells, read or refused in one line."""

import gzip
import hashlib
import os
import random
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from helpers.official import batch, idx, mat

from kdx.data import cifar10, mnist, svhn
from kdx.data.sources import SourceFile, SourceSet
from tortures import child
from tortures.rot import DAMAGES, unfit
from tortures.work import SMALL, outcome, told

SAMPLES = 60
MODULES = {"mnist": mnist, "cifar10": cifar10, "svhn": svhn}
KINDS = {"mnist": "mnist", "mnist unpacked": "mnist", "cifar10": "cifar10", "svhn": "svhn"}


def torture(base: Path, count: int, seed: int) -> dict[str, Any]:
    """Damage so many files of small data sets in the official formats, or of their caches; what kdx said to each.

    Half of the damages come with a checksum that fits, so that the readers themselves are hurt.
    """
    chance = random.Random(seed)
    trees = {kind: Tree(base / kind.replace(" ", "-"), kind) for kind in KINDS}
    said_of, failures = dict[str, int](), []
    for _ in told("files", range(count)):
        kind = chance.choice(list(KINDS))
        work = base / "damaged"
        shutil.rmtree(work, ignore_errors=True)
        shutil.copytree(trees[kind].folder, work)
        files = [path for path in sorted(work.glob("data/**/*")) if path.is_file()]
        unseen = chance.random() < 0.5
        if not unseen:
            files += sorted(work.glob("cache/**/*.safetensors"))
        possible = [how for how in DAMAGES if not (unseen and how == "delete")]
        victim, how = chance.choice(files), chance.choice(possible)
        while not DAMAGES[how](chance, victim, files):
            victim, how = chance.choice(files), chance.choice(possible)
        if unseen:
            shutil.rmtree(work / "cache")
        answer, why = trees[kind].answer(work, unseen)
        said_of[answer] = said_of.get(answer, 0) + 1
        if why:
            failures.append(f"{how} {kind} {victim.name}{', unseen' * unseen}: {why}")
    return {"damages": sum(said_of.values()), "answers": said_of, "failures": failures}


class Tree:
    """A folder with a data set and its cache, and what a run on it comes to."""

    def __init__(self, folder: Path, kind: str) -> None:
        self.folder, self.dataset = folder, KINDS[kind]
        for path, content in FILES[kind]().items():
            (folder / "data" / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / "data" / path).write_bytes(content)
        ended = self.train(folder, folder)
        assert not ended.code, ended.err
        self.expected = outcome(folder / "outputs")
        shutil.rmtree(folder / "outputs")

    def train(self, work: Path, official: Path) -> child.Ended:
        """Train on the files in `work`, taking those in `official` for the official ones."""

        def before() -> None:
            os.environ["XDG_CACHE_HOME"] = str(work / "cache")
            module = MODULES[self.dataset]
            module.SOURCES = _sources(module.SOURCES, official / "data")

        words = [word for word in SMALL if not word.startswith(("dataset", "student."))]
        small = ["teacher=mlp-1200-1200", "student=mlp-500-50", "student.hidden=[8]", "dataset.download=false"]
        few = ["trainer.epochs=1", "teacher.trainer.epochs=1", "trainer.batch_size=20", "dataset.validation=0"]
        of = [f"dataset={self.dataset}", "dataset.root=data", "method=vanilla", *small, *words, *few]
        # A key that is given twice would be refused.
        last = {word.partition("=")[0]: word for word in of}
        return child.kdx([["train", *last.values()]], work, work / "printed", before)

    def answer(self, work: Path, unseen: bool) -> tuple[str, str]:
        """How kdx answers to damaged files, and what is wrong with the answer."""
        ended = self.train(work, work if unseen else self.folder)
        if why := unfit(ended):
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

    def source(file: SourceFile) -> SourceFile:
        members = {name: _md5(data, name) for name in file.members}
        return SourceFile(file.name, _size(data, file.name), _md5(data, file.name), members)

    return replace(official, files=tuple(map(source, official.files)))


def _found(data: Path, name: str) -> Path | None:
    return next((path for place in (".", "MNIST/raw", "svhn") if (path := data / place / name).is_file()), None)


def _md5(data: Path, name: str) -> str:
    path = _found(data, name)
    return hashlib.md5(path.read_bytes() if path else name.encode(), usedforsecurity=False).hexdigest()


def _size(data: Path, name: str) -> int:
    path = _found(data, name)
    return path.stat().st_size if path else 0


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


FILES: dict[str, Callable[[], dict[str, bytes]]] = {
    "mnist": _packed,
    "mnist unpacked": _mnist,
    "cifar10": _cifar10,
    "svhn": _svhn,
}
