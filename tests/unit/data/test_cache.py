"""The IDX parser, and the decoded cache that is validated before it is trusted."""

import struct

import numpy as np
import pytest
import torch

from kdx.data.cache import cached
from kdx.data.mnist import parse_idx
from kdx.errors import UserError
from kdx.storage.paths import user_cache

ARRAY = np.random.default_rng(0).integers(0, 256, (5, 4, 3), dtype=np.uint8)
TENSORS = {"images": torch.from_numpy(ARRAY), "labels": torch.arange(5, dtype=torch.uint8)}


def idx(*sizes: int, kind: int = 8, dimensions: int = 3) -> bytes:
    """ARRAY's bytes behind a header that may lie."""
    return struct.pack(f">4B{len(sizes)}I", 0, 0, kind, dimensions, *sizes) + ARRAY.tobytes()


@pytest.fixture(autouse=True)
def own_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def cache():
    """The path of an intact cache of TENSORS."""
    load()
    (path,) = (user_cache() / "decoded").iterdir()
    return path


def load(decode=lambda: TENSORS, key="key"):
    return cached("set", key, decode)


def assert_whole(tensors) -> None:
    assert tensors.keys() == TENSORS.keys()
    assert all(torch.equal(tensors[name], TENSORS[name]) for name in TENSORS)


def test_idx_gives_the_array():
    assert np.array_equal(parse_idx(idx(5, 4, 3), 3, "some.file").numpy(), ARRAY)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        idx(5, 4, 3)[:10],
        b"\x01" + idx(5, 4, 3)[1:],
        idx(60, dimensions=1),
        idx(5, 4, 3)[:-1],
        idx(5, 4, 3) + b"\0",
        idx(5, 4, 2),
        idx(0, 4, 3),
        idx(2**32 - 1, 2**32 - 1, 2**32 - 1),
        idx(5, 4, 3, kind=13),
    ],
)
def test_an_idx_header_that_lies_is_refused(content):
    with pytest.raises(UserError, match=r"^some\.file: "):
        parse_idx(content, 3, "some.file")


def test_an_intact_cache_is_used(cache):
    assert_whole(load(lambda: pytest.fail("decoded although the cache is intact")))


def test_another_key_is_another_cache(cache):
    other = {"images": torch.zeros(2)}
    assert load(lambda: other, key="other") is other


def test_a_cache_under_another_key_is_not_trusted(cache, caplog):
    cache.rename(cache.with_name("set-other.safetensors"))
    assert_whole(load(key="other"))
    assert "made from other files" in caplog.text


@pytest.mark.parametrize("content", [b"", b"x" * 5000], ids=["empty", "another file"])
def test_a_file_that_is_no_cache_is_replaced(cache, content, caplog):
    intact = cache.read_bytes()
    cache.write_bytes(content)
    assert_whole(load())
    assert f"{cache} is damaged" in caplog.text
    assert cache.read_bytes() == intact


def test_without_a_writable_cache_it_goes_on(monkeypatch, tmp_path, caplog):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert_whole(load())
    assert "decoded again in each run" in caplog.text
