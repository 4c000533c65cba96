"""Source files: found, verified, downloaded from a server on this machine. No test leaves it."""

import gzip
import io
import logging
import tarfile
import threading
from collections.abc import Callable, Sequence
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from helpers.official import md5, no_mirrors, write

from kdx.data import download
from kdx.data.download import SourceFile, SourceSet, fetch_files
from kdx.errors import UserError
from kdx.storage.paths import download_cache

UNPACKED = {"first": bytes(range(256)) * 8, "second": b"second"}
PACKED = {f"{name}.gz": gzip.compress(content, mtime=0) for name, content in UNPACKED.items()}
FIRST = "first.gz"
WHOLE = PACKED[FIRST]


FILES = tuple(
    SourceFile(name, len(content), md5(content), {(raw := name.removesuffix(".gz")): md5(UNPACKED[raw])})
    for name, content in PACKED.items()
)


def get(root: Path | None, download: bool = True, mirrors: Callable[[], Sequence[str]] = no_mirrors) -> None:
    """Obtain the set and check every byte of it."""
    found = fetch_files(SourceSet("set", FILES, ("raw", "."), mirrors), root and str(root), download)
    assert {name: dict(file.unpacked()) for name, file in found.items()} == {
        f"{name}.gz": {name: content} for name, content in UNPACKED.items()
    }


@pytest.fixture(autouse=True)
def surroundings(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.delenv("KDX_DATA", raising=False)


@pytest.fixture
def root(tmp_path) -> Path:
    return write(tmp_path / "data" / "raw", PACKED).parent


@pytest.fixture
def address(tmp_path):
    """A mirror that has the intact files, and below `bad/` whatever a test puts into served/bad."""
    served = write(tmp_path / "served", PACKED)

    class Quiet(SimpleHTTPRequestHandler):
        def __init__(self, *arguments):
            super().__init__(*arguments, directory=str(served))

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Quiet) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()
        thread.join()


def test_a_root_that_is_a_file_is_refused(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"^dataset\.root: '.*file' is not a folder"):
        get(tmp_path / "file")


def test_a_root_that_cannot_be_read_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"^dataset\.root: '.*' cannot be read: File name too long"):
        get(tmp_path / ("x" * 300))


@pytest.mark.parametrize("damage", ["flipped", "truncated", "empty", "longer"])
@pytest.mark.parametrize("download", [True, False])
def test_a_damaged_file_of_the_user_is_named(root, damage, download):
    path = root / "raw" / FIRST
    flipped = WHOLE[:50] + bytes([WHOLE[50] ^ 1]) + WHOLE[51:]
    path.write_bytes({"flipped": flipped, "truncated": WHOLE[:-9], "empty": b"", "longer": WHOLE + b"!"}[damage])
    with pytest.raises(UserError) as caught:
        get(root, download)
    assert f"{path} is damaged" in str(caught.value)
    assert ("is downloaded again" if download else "put an intact copy") in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_intact_copy_beside_a_damaged_one_is_used(root, caplog):
    (root / "raw" / FIRST).write_bytes(b"damaged")
    write(root, UNPACKED)
    get(root)
    assert f"{FIRST} is damaged" in caplog.text


def test_a_file_that_cannot_be_read_is_named(root):
    (root / "raw" / FIRST).unlink()
    (root / "raw" / FIRST).mkdir()
    with pytest.raises(UserError, match=rf"{FIRST} cannot be read"):
        get(root)


def test_missing_files_are_downloaded_once_into_the_root(tmp_path, address, capsys):
    get(tmp_path / "new", mirrors=lambda: [address])
    assert sorted(path.name for path in (tmp_path / "new" / "raw").iterdir()) == sorted(PACKED)
    total = sum(map(len, PACKED.values()))
    captured = capsys.readouterr()
    assert f"download set (bytes): {total}/{total}" in captured.err
    assert captured.out == ""
    get(tmp_path / "new")


def test_only_what_is_missing_is_downloaded(root, address, capsys):
    (root / "raw" / FIRST).unlink()
    get(root, mirrors=lambda: [address])
    assert f"{len(WHOLE)}/{len(WHOLE)}" in capsys.readouterr().err


def test_downloads_go_to_the_cache_where_the_root_cannot_be_written(tmp_path, address, caplog):
    (tmp_path / "file").touch()
    unwritable = tmp_path / "file" / "below"  # not even the root user can make a folder below a file
    get(unwritable, mirrors=lambda: [address])
    assert f"{unwritable}/raw/{FIRST} cannot be written" in caplog.text
    with caplog.at_level(logging.INFO, "kdx.data"):
        get(unwritable)
    assert f"read from {download_cache()}" in caplog.text


def test_nothing_can_be_written_anywhere(tmp_path, address, monkeypatch, caplog):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    get(tmp_path / "file" / "below", mirrors=lambda: [address])
    assert "is downloaded again in each run" in caplog.text


def test_kdx_replaces_its_own_damaged_download(address, caplog):
    get(None, mirrors=lambda: [address])
    path = download_cache() / "raw" / FIRST
    path.write_bytes(WHOLE[:20])
    with pytest.raises(UserError, match="put an intact copy there"):
        get(None, download=False)
    get(None, mirrors=lambda: [address])
    assert path.read_bytes() == WHOLE
    assert "is damaged" in caplog.text


@pytest.mark.parametrize("wrong", [b"not the file", WHOLE + b"more", WHOLE[:-1]], ids=["other", "longer", "shorter"])
def test_a_mirror_with_a_wrong_file_is_passed_over(tmp_path, address, wrong):
    write(tmp_path / "served" / "bad", {FIRST: wrong})
    with pytest.raises(UserError, match="what came is damaged"):
        get(tmp_path / "new", mirrors=lambda: [f"{address}bad/"])
    assert not (tmp_path / "new").exists()
    get(tmp_path / "new", mirrors=lambda: [f"{address}absent/", f"{address}bad/", address])


def test_offline_without_files_the_error_says_what_to_do(tmp_path, monkeypatch):
    def offline(*_, **__):
        raise OSError("no route to host")

    monkeypatch.setattr(download.urllib.request, "urlopen", offline)
    with pytest.raises(UserError) as caught:
        get(tmp_path / "data", mirrors=lambda: ["http://mirror.invalid/"])
    message = str(caught.value)
    assert "\n" not in message
    for part in ("dataset.root", *PACKED, str(tmp_path / "data" / "raw"), "no route to host"):
        assert part in message
    assert "dataset=digits, which needs no files" in message
    assert not (tmp_path / "data").exists()


def test_without_download_the_error_says_so(root):
    (root / "raw" / FIRST).unlink()
    with pytest.raises(UserError, match=rf"{FIRST} not found .* dataset\.download is false; put them into"):
        get(root, download=False)


MEMBERS = {"batches/one": b"1" * 300, "batches/two": b"22"}


def archive() -> bytes:
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w:gz") as packed:
        for name, data in {**MEMBERS, "batches/readme": b"not needed"}.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            packed.addfile(entry, io.BytesIO(data))
    return content.getvalue()


TAR, PLAIN = archive(), b"plain"
SEVERAL = (
    SourceFile("all.tar.gz", len(TAR), md5(TAR), {name: md5(content) for name, content in MEMBERS.items()}),
    SourceFile("plain.mat", len(PLAIN), md5(PLAIN)),
)


def unpacked(root: Path, mirrors: Callable[[], Sequence[str]] = no_mirrors) -> dict[str, bytes]:
    found = fetch_files(SourceSet("set", SEVERAL, (".",), mirrors), str(root), mirrors is not no_mirrors)
    with found["plain.mat"].open() as file:
        assert file.read() == PLAIN
    return {name: content for file in found.values() for name, content in file.unpacked()}


WANTED = {"one": MEMBERS["batches/one"], "two": MEMBERS["batches/two"], "plain.mat": PLAIN}


def test_an_archive_is_accepted_packed_and_unpacked(tmp_path):
    write(tmp_path, {"plain.mat": PLAIN, "all.tar.gz": TAR})
    assert unpacked(tmp_path) == WANTED | {"readme": b"not needed"}
    (tmp_path / "all.tar.gz").unlink()
    write(tmp_path / "batches", {name.removeprefix("batches/"): content for name, content in MEMBERS.items()})
    assert unpacked(tmp_path) == WANTED


def test_an_archive_is_downloaded_where_one_of_its_files_is_missing(tmp_path, address):
    write(tmp_path / "served", {"all.tar.gz": TAR})
    write(tmp_path / "here", {"plain.mat": PLAIN})
    write(tmp_path / "here" / "batches", {"one": MEMBERS["batches/one"]})
    with pytest.raises(UserError, match=r"all\.tar\.gz \(of what it unpacks to, two is not there\) not found"):
        unpacked(tmp_path / "here")
    assert unpacked(tmp_path / "here", lambda: [address]).keys() == {*WANTED, "readme"}
    assert (tmp_path / "here" / "all.tar.gz").read_bytes() == TAR


def test_a_damaged_file_of_an_archive_is_named(tmp_path):
    write(tmp_path, {"plain.mat": PLAIN})
    write(tmp_path / "batches", {"one": b"another", "two": MEMBERS["batches/two"]})
    with pytest.raises(UserError, match=r"batches/one is damaged"):
        unpacked(tmp_path)
