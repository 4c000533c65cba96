"""SVHN from MATLAB files that the tests write in the official format. No test leaves this machine."""

import io
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.official import mat, md5, no_mirrors, write
from scipy.io import savemat

from kdx.config.datasets import SvhnSettings
from kdx.data import load_data, svhn
from kdx.data.dataset import Data
from kdx.data.download import SourceFile
from kdx.errors import UserError

SAMPLE = Path(os.environ.get("KDX_DATA", ""), "svhn-sample", "train_first1083.npz")  # before a test clears it
NUMBERS = np.random.default_rng(0)
SIZES = {"train": 90, "test": 30, "extra": 150}
PIXELS = {part: NUMBERS.integers(0, 256, (size, 32, 32, 3), dtype=np.uint8) for part, size in SIZES.items()}
# The classes are not equally frequent; label 10 is the digit 0.
WRITTEN = {
    part: (NUMBERS.permutation(np.arange(size) ** 2 // 7 % 10) + 1).astype(np.uint8) for part, size in SIZES.items()
}


def source(part: str, content: bytes) -> SourceFile:
    return SourceFile(f"{part}_32x32.mat", len(content), md5(content))


FILES = {f"{part}_32x32.mat": mat(PIXELS[part], WRITTEN[part]) for part in SIZES}


@pytest.fixture(autouse=True)
def small_svhn(monkeypatch, tmp_path):
    """An SVHN of 90 + 150 + 30 samples, no network, and a cache of its own."""
    official = svhn.SOURCES
    files = tuple(source(part, FILES[f"{part}_32x32.mat"]) for part in SIZES)
    monkeypatch.setattr(svhn, "SOURCES", replace(official, files=files, mirrors=no_mirrors))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("KDX_DATA", raising=False)
    return official


@pytest.fixture
def root(tmp_path) -> Path:
    return write(tmp_path / "data", FILES)


def settings(root: Path, **changes) -> SvhnSettings:
    values = {"root": str(root), "validation": 0, "split_seed": 0, "train_size": None, "download": False}
    extra = {"extra": True, "preprocessing": "scale", "mirror": "none"}
    return SvhnSettings(name="svhn", **(values | extra | changes))


def expected(*parts: str) -> tuple[np.ndarray, list[int]]:
    pixels = np.concatenate([PIXELS[part] for part in parts]).transpose(0, 3, 1, 2)
    return pixels, [int(label) % 10 for part in parts for label in WRITTEN[part]]


def assert_whole(data: Data, *parts: str) -> None:
    pixels, labels = expected(*parts)
    assert np.array_equal(data.train.images.numpy(), pixels)
    assert data.train.labels.tolist() == labels
    test_pixels, test_labels = expected("test")
    assert np.array_equal(data.test.images.numpy(), test_pixels)
    assert data.test.labels.tolist() == test_labels
    assert set(labels) == set(test_labels) == set(range(10))


@pytest.mark.parametrize("place", ["", "svhn", "SVHN"])
def test_images_and_labels_are_those_of_the_files(tmp_path, place):
    write(tmp_path / "here" / place, FILES)
    for _ in range(2):  # decoded, then from the cache
        data = load_data(settings(tmp_path / "here"))
        assert_whole(data, "train", "extra")
        assert (data.image_shape, data.classes, data.train.images.dtype) == ((3, 32, 32), 10, torch.uint8)


def test_without_extra_its_file_is_not_needed(root):
    (root / "extra_32x32.mat").unlink()
    assert_whole(load_data(settings(root, extra=False)), "train")
    with pytest.raises(UserError, match=r"extra_32x32\.mat not found .* dataset\.download is false; put them into"):
        load_data(settings(root))


def test_validation_is_balanced_two_thirds_of_train_and_one_third_of_extra(root):
    data = load_data(settings(root, validation=60))
    assert data.validation is not None
    pixels, labels = expected("train", "extra")
    place = {image.tobytes(): index for index, image in enumerate(pixels)}
    held_out = [place[image.numpy().tobytes()] for image in data.validation.images]
    kept = [place[image.numpy().tobytes()] for image in data.train.images]
    assert sorted(held_out + kept) == list(range(240))
    for part, each in ((range(90), 4), (range(90, 240), 2)):
        assert [sum(labels[i] == label for i in held_out if i in part) for label in range(10)] == [each] * 10


def test_the_published_split_has_598388_training_samples():
    """With the official sizes: 400 of every class of train and 200 of extra are held out."""
    sizes = [73257, 531131]
    labels = torch.randint(10, (sum(sizes),), generator=torch.Generator().manual_seed(0))
    held_out = svhn._held_out(settings(Path("anywhere"), validation=6000), labels, sizes)
    assert int((~held_out).sum()) == 598388
    for part, mask, each in zip(labels.split(sizes), held_out.split(sizes), (400, 200), strict=True):
        assert torch.bincount(part[mask]).tolist() == [each] * 10


def test_without_extra_validation_is_in_proportion(root):
    data = load_data(settings(root, validation=45, extra=False))
    assert data.validation is not None
    whole = np.bincount(expected("train")[1])
    assert (np.abs(torch.bincount(data.validation.labels, minlength=10).numpy() - whole / 2) <= 1).all()


@pytest.mark.parametrize("validation", [150, 240])
def test_a_validation_set_that_a_class_cannot_fill_is_refused(root, validation):
    with pytest.raises(UserError, match=rf"^dataset\.validation: {validation} is not possible; allowed: "):
        load_data(settings(root, validation=validation))


def broken(**changes: np.ndarray) -> bytes:
    content = io.BytesIO()
    whole = {"X": PIXELS["test"].transpose(1, 2, 3, 0), "y": WRITTEN["test"].reshape(-1, 1)} | changes
    savemat(content, {name: array for name, array in whole.items() if array.size})
    return content.getvalue()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"no MATLAB file" * 100,
        FILES["test_32x32.mat"][:3000],
        broken(y=np.zeros(0)),
        broken(X=np.zeros(0)),
        broken(y=WRITTEN["test"][:-1]),
        broken(y=WRITTEN["test"] - 1),
        broken(y=WRITTEN["test"] + 1),
        broken(X=PIXELS["test"]),
        broken(X=PIXELS["test"].transpose(1, 2, 3, 0).astype(np.float64)),
    ],
)
def test_what_is_no_file_of_svhn_is_refused(tmp_path, monkeypatch, content):
    root = write(tmp_path / "data", FILES | {"test_32x32.mat": content})
    first, _, last = svhn.SOURCES.files
    monkeypatch.setattr(svhn, "SOURCES", replace(svhn.SOURCES, files=(first, source("test", content), last)))
    with pytest.raises(UserError, match=r"^test_32x32\.mat: is not a file of SVHN"):
        load_data(settings(root))


def test_md5s_and_addresses_are_those_of_torchvision(small_svhn):
    from torchvision.datasets import SVHN

    (mirror,) = small_svhn.mirrors()
    offered = {(mirror + file.name, file.name, file.md5) for file in small_svhn.files}
    assert offered == {tuple(SVHN.split_list[part]) for part in SIZES}


@pytest.mark.skipif(not SAMPLE.is_file(), reason="KDX_DATA names no folder with the sample of SVHN")
def test_real_sample_is_normalised(tmp_path, monkeypatch):
    with np.load(SAMPLE) as sample:
        content = mat(sample["X"], sample["y"])
        labels = sample["y"].reshape(-1) % 10
    files = (source("train", content), svhn.SOURCES.files[1])
    monkeypatch.setattr(svhn, "SOURCES", replace(svhn.SOURCES, files=files))
    root = write(tmp_path / "data", FILES | {"train_32x32.mat": content})
    data = load_data(settings(root, extra=False, preprocessing="local-contrast"))
    assert data.train.labels.tolist() == labels.tolist()
    images = torch.cat([images for images, _ in data.train.batches(100)])
    assert images.shape == (1083, 3, 32, 32)
    assert images.isfinite().all()
    # Every image is nearly centred and has about the same contrast, whatever the light it was taken in.
    assert images.mean(dim=(1, 2, 3)).abs().max() < 0.2
    raw = data.train.images.float().std(dim=(1, 2, 3))
    contrast = images.std(dim=(1, 2, 3))
    assert contrast.max() / contrast.min() < 2 < 5 < raw.max() / raw.min()
