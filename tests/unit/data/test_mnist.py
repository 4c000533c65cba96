"""MNIST from its files: found, damaged, downloaded, decoded. No test leaves this machine."""

import gzip
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.official import REAL, idx, md5, no_mirrors, write

from kdx.config.datasets import MnistSettings
from kdx.data import load_data, mnist
from kdx.data.download import SourceFile
from kdx.errors import UserError
from kdx.storage.paths import data_root, user_cache

PIXELS = np.random.default_rng(0).integers(0, 256, (60, 28, 28), dtype=np.uint8)
LABELS = np.arange(60, dtype=np.uint8) % 10
TRAIN_IMAGES = "train-images-idx3-ubyte.gz"


UNPACKED = {
    "train-images-idx3-ubyte": idx(PIXELS[:40]),
    "train-labels-idx1-ubyte": idx(LABELS[:40]),
    "t10k-images-idx3-ubyte": idx(PIXELS[40:]),
    "t10k-labels-idx1-ubyte": idx(LABELS[40:]),
}
PACKED = {f"{name}.gz": gzip.compress(content, mtime=0) for name, content in UNPACKED.items()}


@pytest.fixture(autouse=True)
def small_mnist(monkeypatch, tmp_path):
    """An MNIST of 40 + 20 samples, no network, and a cache of its own."""
    files = tuple(
        SourceFile(name, len(content), md5(content), {(raw := name.removesuffix(".gz")): md5(UNPACKED[raw])})
        for name, content in PACKED.items()
    )
    official = mnist.SOURCES
    monkeypatch.setattr(mnist, "SOURCES", replace(official, files=files, mirrors=no_mirrors))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("KDX_DATA", raising=False)
    return official


@pytest.fixture
def root(tmp_path) -> Path:
    return write(tmp_path / "data" / "MNIST" / "raw", PACKED).parents[1]


def load(root: Path | None, download: bool = False, validation: int = 0, **more):
    text = None if root is None else str(root)
    settings = {"root": text, "validation": validation, "split_seed": 0, "train_size": None, "download": download}
    return load_data(MnistSettings(name="mnist", **({"preprocessing": "scale", "mirror": "none"} | settings | more)))


def shown(split) -> np.ndarray:
    """What networks see of a split: (N, H, W)."""
    return torch.cat([images for images, _ in split.batches()]).squeeze(1).numpy()


def assert_whole(data) -> None:
    assert np.array_equal(shown(data.train), PIXELS[:40] / np.float32(255))
    assert np.array_equal(shown(data.test), PIXELS[40:] / np.float32(255))
    assert np.array_equal(data.train.labels.numpy(), LABELS[:40])
    assert np.array_equal(data.test.labels.numpy(), LABELS[40:])


def cache_files() -> list[Path]:
    return sorted((user_cache() / "decoded").glob("*"))


@pytest.mark.parametrize("place", ["", "MNIST/raw", "mnist"])
@pytest.mark.parametrize("files", [PACKED, UNPACKED], ids=["packed", "unpacked"])
def test_files_are_found_in_each_place(tmp_path, place, files):
    write(tmp_path / "here" / place, files)
    data = load(tmp_path / "here", validation=10)
    assert (data.image_shape, data.classes, data.train.images.dtype) == ((1, 28, 28), 10, torch.uint8)
    assert_whole(load(tmp_path / "here"))


def test_packed_and_unpacked_files_share_one_cache(tmp_path):
    first = load(write(tmp_path / "packed", PACKED))
    second = load(write(tmp_path / "unpacked", UNPACKED))
    assert first.fingerprint == second.fingerprint
    assert len(cache_files()) == 1


def test_the_environment_names_the_root(root, monkeypatch):
    monkeypatch.setenv("KDX_DATA", str(root))
    assert_whole(load(None))


def test_the_default_root_lies_in_the_users_cache(monkeypatch, tmp_path):
    assert data_root(None) == tmp_path / "cache" / "kdx" / "data"
    monkeypatch.setenv("XDG_CACHE_HOME", "not/absolute")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert data_root(None) == tmp_path / ".cache" / "kdx" / "data"


def test_nothing_is_written_below_the_root(root):
    raw = root / "MNIST" / "raw"
    for path in raw.iterdir():
        path.chmod(0o444)
    raw.chmod(0o555)
    try:
        assert_whole(load(root, download=True))
        assert sorted(path.name for path in root.rglob("*") if path.is_file()) == sorted(PACKED)
    finally:
        raw.chmod(0o755)


def test_damage_is_noticed_even_when_the_cache_is_intact(root):
    load(root)
    (root / "MNIST" / "raw" / TRAIN_IMAGES).write_bytes(b"")
    with pytest.raises(UserError, match="is damaged"):
        load(root)


@pytest.mark.parametrize(
    ("labels", "reason"),
    [
        (LABELS[:39], "do not fit the 39 labels"),
        (LABELS[:40] + 1, "^train-labels-idx1-ubyte: there are labels above 9"),
    ],
    ids=["too few", "out of range"],
)
def test_labels_that_do_not_fit_the_images_are_refused(root, monkeypatch, labels, reason):
    content = idx(labels)
    write(root, {"train-labels-idx1-ubyte": content})
    (root / "MNIST" / "raw" / "train-labels-idx1-ubyte.gz").unlink()
    first, second, *rest = mnist.SOURCES.files
    lying = replace(second, members={"train-labels-idx1-ubyte": md5(content)})
    monkeypatch.setattr(mnist, "SOURCES", replace(mnist.SOURCES, files=(first, lying, *rest)))
    with pytest.raises(UserError, match=reason):
        load(root)
    assert cache_files() == []


@pytest.mark.parametrize("content", [b"", PACKED[TRAIN_IMAGES][:-9], b"no gzip"], ids=["empty", "cut off", "another"])
def test_a_file_that_changes_after_its_check_is_refused(root, monkeypatch, content):
    first, *rest = mnist.SOURCES.files
    write(root / "MNIST" / "raw", {TRAIN_IMAGES: content})
    monkeypatch.setattr(mnist, "SOURCES", replace(mnist.SOURCES, files=(replace(first, md5=md5(content)), *rest)))
    with pytest.raises(UserError, match=r"train-images-idx3-ubyte(\.gz cannot be unpacked|: is not an IDX)"):
        load(root)
    assert cache_files() == []


def test_the_cache_is_used_when_intact_and_rebuilt_when_damaged(root, monkeypatch, caplog):
    first = load(root)
    (path,) = cache_files()
    with monkeypatch.context() as patched:
        patched.setattr(mnist, "_decode", lambda _: pytest.fail("decoded although the cache is intact"))
        assert load(root).fingerprint == first.fingerprint
    path.write_bytes(path.read_bytes()[:-1])
    assert_whole(load(root))
    assert f"{path} is damaged" in caplog.text


def test_md5s_and_mirrors_are_those_of_torchvision(small_mnist):
    from torchvision.datasets import MNIST

    assert [(file.name, file.md5) for file in small_mnist.files] == MNIST.resources
    assert small_mnist.mirrors() == MNIST.mirrors


@pytest.mark.skipif(not REAL, reason="KDX_DATA names no folder with MNIST")
def test_real_mnist(monkeypatch, small_mnist):
    monkeypatch.setattr(mnist, "SOURCES", small_mnist)
    for _ in range(2):  # decoded, then from the cache
        data = load(Path(REAL), validation=5000)
        assert data.validation is not None
        assert (len(data.train), len(data.validation), len(data.test)) == (55000, 5000, 10000)
        labels = torch.cat([data.train.labels, data.validation.labels])
        assert torch.bincount(labels).tolist() == [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
        assert torch.bincount(data.test.labels).tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
        # The published mean of the 60,000 training images.
        pixels = torch.cat([data.train.images, data.validation.images])
        assert pixels.double().mean().item() / 255 == pytest.approx(0.1306604762738429)


@pytest.mark.parametrize(("preprocessing", "scale", "less"), [("scale", 255, 0), ("symmetric", 127.5, 1)])
def test_a_shifted_digit_goes_on_at_its_edge(root, preprocessing: str, scale: float, less: float):
    """Background beside background, also where it is -1."""
    data = load(root, preprocessing=preprocessing, shift=1, validation=10)
    assert data.validation is not None
    assert (data.train.views, data.validation.views, data.test.views) == (9, 1, 1)
    up_left = 9 * 3 + 8
    images, _ = data.train.take(torch.tensor([up_left]))
    bytes_ = np.pad(data.train.images[3, 0].numpy(), ((1, 0), (1, 0)), mode="edge")[:-1, :-1]
    np.testing.assert_allclose(images[0, 0].numpy(), bytes_ / np.float32(scale) - less, rtol=0, atol=1e-6)
