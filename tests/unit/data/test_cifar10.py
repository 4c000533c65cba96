"""CIFAR-10 from its batches: the official format and nothing else. No test leaves this machine."""

import io
import pickle
import tarfile
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.official import REAL, batch, md5, no_mirrors, python2
from torch import nn

from kdx.config.datasets import Cifar10Settings
from kdx.data import cifar10, load_data
from kdx.data.cifar10 import parse_batch
from kdx.data.dataset import Data
from kdx.data.download import SourceFile
from kdx.errors import UserError
from kdx.logits import teacher_logits
from kdx.measure.accuracy import logits_of
from kdx.storage.paths import user_cache

FOLDER, ARCHIVE = "cifar-10-batches-py", "cifar-10-python.tar.gz"
BATCH = 20
NUMBERS = np.random.default_rng(0)
PIXELS = {name: NUMBERS.integers(0, 256, (BATCH, 3, 32, 32), dtype=np.uint8) for name in chain(*cifar10.PARTS.values())}
LABELS = {name: NUMBERS.permutation(np.arange(BATCH) % 10) for name in PIXELS}


def packed(files: dict[str, bytes]) -> bytes:
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w:gz") as archive:
        for name, data in files.items():
            entry = tarfile.TarInfo(f"{FOLDER}/{name}")
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    return content.getvalue()


BATCHES = {name: batch(PIXELS[name], LABELS[name]) for name in PIXELS}
PACKED = packed({"readme.html": b"<html>", "batches.meta": b"no pickle", **BATCHES})


@pytest.fixture(autouse=True)
def small_cifar10(monkeypatch, tmp_path):
    """A CIFAR-10 of 100 + 20 samples, no network, and a cache of its own."""
    official = cifar10.SOURCES
    members = {f"{FOLDER}/{name}": md5(content) for name, content in BATCHES.items()}
    small = SourceFile(ARCHIVE, len(PACKED), md5(PACKED), members)
    monkeypatch.setattr(cifar10, "SOURCES", replace(official, files=(small,), mirrors=no_mirrors))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("KDX_DATA", raising=False)
    return official


@pytest.fixture
def root(tmp_path) -> Path:
    folder = tmp_path / "data" / FOLDER
    folder.mkdir(parents=True)
    for name, content in BATCHES.items():
        (folder / name).write_bytes(content)
    return folder.parent


def settings(root: Path, **changes) -> Cifar10Settings:
    values = {"root": str(root), "validation": 0, "split_seed": 0, "train_size": None, "download": False}
    return Cifar10Settings(name="cifar10", **(values | {"preprocessing": "scale", "mirror": "none"} | changes))


def assert_whole(data: Data) -> None:
    training = [f"data_batch_{number}" for number in range(1, 6)]
    assert np.array_equal(data.train.images.numpy(), np.concatenate([PIXELS[name] for name in training]))
    assert np.array_equal(data.train.labels.numpy(), np.concatenate([LABELS[name] for name in training]))
    assert np.array_equal(data.test.images.numpy(), PIXELS["test_batch"])
    assert np.array_equal(data.test.labels.numpy(), LABELS["test_batch"])


def test_batches_are_read_from_the_folder_and_from_the_archive(root, tmp_path):
    folder = load_data(settings(root))
    assert_whole(folder)
    assert (folder.image_shape, folder.classes, folder.train.images.dtype) == ((3, 32, 32), 10, torch.uint8)
    (tmp_path / ARCHIVE).write_bytes(PACKED)
    (cache,) = (user_cache() / "decoded").iterdir()
    assert load_data(settings(tmp_path)).fingerprint == folder.fingerprint
    assert list((user_cache() / "decoded").iterdir()) == [cache]
    cache.unlink()
    assert_whole(load_data(settings(tmp_path)))


def test_a_missing_batch_is_told_with_what_to_do(root):
    (root / FOLDER / "data_batch_5").unlink()
    with pytest.raises(UserError) as caught:
        load_data(settings(root))
    absent = f"{ARCHIVE} (of what it unpacks to, data_batch_5 is not there)"
    for part in (absent, f"not found below '{root}'", "dataset.download is false", "dataset=digits"):
        assert part in str(caught.value)
    assert "\n" not in str(caught.value)


def test_fifty_views_less_the_mean_image_are_what_the_teacher_answered_for(root, tmp_path):
    """The mean is taken away where the pixel was: what is moved is what a network sees."""
    data = load_data(settings(root, preprocessing="per-pixel-mean", mirror="random", shift=2, validation=80))
    assert data.validation is not None
    assert (data.train.views, data.validation.views, data.test.views) == (50, 1, 1)
    pixels = data.train.images.numpy()
    mean = pixels.astype(np.float64).mean(axis=0) / 255
    # Mirrored, then from 2 pixels further down and 1 to the left: number 25 + 5 * 2 + 4.
    expected = np.pad((pixels / 255 - mean)[..., ::-1], ((0, 0), (0, 0), (2, 2), (2, 2)), mode="edge")
    images, labels = data.train.take(50 * torch.arange(20) + 39)
    np.testing.assert_allclose(images.numpy(), expected[:, :, 4:36, 1:33], rtol=0, atol=1e-6)
    assert torch.equal(labels, data.train.labels)
    torch.manual_seed(0)
    teacher = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(3600, 10))
    stored = teacher_logits(teacher, data, tmp_path)
    answered = logits_of(teacher, data.train).flatten(0, 1)
    assert (stored.shape, stored.dtype) == ((1000, 10), torch.float16)
    assert ((stored.float() - answered).abs() <= 2.0**-11 * answered.abs() + 2.0**-25).all()
    np.testing.assert_allclose(teacher(images).detach().half(), stored.view(20, 50, 10)[:, 39], rtol=2e-3, atol=1e-3)


def test_the_mean_image_is_that_of_the_training_split_alone(root):
    """All test images are other numbers, and so are those held out and those that `train_size` leaves out."""
    data = load_data(settings(root, preprocessing="per-pixel-mean", validation=20, train_size=30))
    assert data.validation is not None
    assert (len(data.train), len(data.validation), len(data.test)) == (30, 20, 20)
    mean = data.train.images.numpy().astype(np.float64).mean(axis=0) / 255
    for split in (data.train, data.validation, data.test):
        ((images, _),) = split.batches()
        expected = split.images.numpy() / 255 - mean
        np.testing.assert_allclose(images.numpy(), expected, atol=2e-7)
        assert images.dtype == torch.float32


def test_the_fingerprint_sees_the_preprocessing(root):
    prints = [
        load_data(settings(root, preprocessing=preprocessing, validation=validation)).fingerprint
        for preprocessing in ("scale", "per-pixel-mean")
        for validation in (0, 10)
    ]
    assert len(set(prints)) == 4


def asking_for(module: str, name: str, *arguments: Any) -> bytes:
    """A batch that makes whoever unpickles it call a function."""
    call = f"c{module}\n{name}\n".encode() + python2(arguments) + b"R"
    return b"\x80\x02}(" + python2(b"data") + call + python2(b"labels") + python2([]) + b"u."


@pytest.mark.parametrize(
    ("module", "name", "arguments"),
    [
        ("os", "system", (b"touch touched",)),
        ("posix", "system", (b"touch touched",)),
        ("builtins", "eval", (b"open('touched', 'w')",)),
        ("builtins", "getattr", (b"", b"upper")),
        ("numpy", "fromfile", (b"/etc/passwd",)),
        ("numpy.core.multiarray", "scalar", ()),
        ("copyreg", "_reconstructor", ()),
        ("_codecs", "encode", (b"a", b"latin1")),
    ],
)
def test_a_batch_that_asks_for_anything_else_is_refused_by_name(tmp_path, monkeypatch, module, name, arguments):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=rf"^some_batch: .*'{module}\.{name}' is not admitted; admitted: numpy"):
        parse_batch(asking_for(module, name, *arguments), 10, "some_batch")
    assert not (tmp_path / "touched").exists()


GOOD = {b"data": PIXELS["test_batch"].reshape(BATCH, -1), b"labels": LABELS["test_batch"].tolist()}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"no pickle",
        pickle.dumps([1, 2], protocol=2),
        BATCHES["test_batch"][:-40],
        b"\x80\x02" + python2({b"data": GOOD[b"data"]}) + b".",
        b"\x80\x02" + python2(GOOD | {b"labels": [0] * (BATCH - 1)}) + b".",
        b"\x80\x02" + python2(GOOD | {b"labels": [10] * BATCH}) + b".",
        b"\x80\x02" + python2(GOOD | {b"labels": [-1] * BATCH}) + b".",
        b"\x80\x02" + python2(GOOD | {b"labels": [b"cat"] * BATCH}) + b".",
        b"\x80\x02" + python2(GOOD | {b"labels": 3}) + b".",
        b"\x80\x02" + python2(GOOD | {b"data": PIXELS["test_batch"]}) + b".",
        b"\x80\x02" + python2(GOOD | {b"data": [1]}) + b".",
    ],
)
def test_what_is_no_batch_is_refused(content):
    with pytest.raises(UserError, match=r"^some_batch: is not a batch of CIFAR-10"):
        parse_batch(content, 10, "some_batch")


def test_md5s_and_address_are_those_of_torchvision(small_cifar10):
    from torchvision.datasets import CIFAR10

    (file,) = small_cifar10.files
    assert (file.name, file.md5) == (CIFAR10.filename, CIFAR10.tgz_md5)
    batches = [*CIFAR10.train_list, *CIFAR10.test_list]
    assert file.members == {f"{CIFAR10.base_folder}/{name}": digest for name, digest in batches}
    assert [mirror + file.name for mirror in small_cifar10.mirrors()] == [CIFAR10.url]


@pytest.mark.skipif(not (Path(REAL) / FOLDER).is_dir(), reason="KDX_DATA names no folder with CIFAR-10")
def test_real_cifar10(monkeypatch, small_cifar10):
    monkeypatch.setattr(cifar10, "SOURCES", small_cifar10)
    data = load_data(settings(Path(REAL), validation=10000))
    assert data.validation is not None
    assert torch.bincount(data.train.labels).tolist() == [4000] * 10
    assert torch.bincount(data.validation.labels).tolist() == torch.bincount(data.test.labels).tolist() == [1000] * 10
    # The published channel means of the 50,000 training images.
    total = data.train.images.sum(dim=(0, 2, 3)) + data.validation.images.sum(dim=(0, 2, 3))
    assert (total / (255 * 50000 * 1024)).tolist() == pytest.approx([0.4914, 0.4822, 0.4465], abs=5e-5)
