"""The teacher-logit store: right rows, computed once, and no damage that goes unnoticed."""

import hashlib
import json
import logging
import re
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.miniature import CLASSES, dataset, generator, perceptron, split
from torch import Tensor, nn

from kdx import console
from kdx.data.dataset import Data, Split
from kdx.errors import Interrupted, UserError
from kdx.logits import teacher_logits
from kdx.measure.accuracy import logits_of
from kdx.storage.tensors import load_tensors, save_tensors, tensors_sha256

ROWS = 23
SHIFTS = (0, 1)
VIEWS = 9


class Teacher(nn.Module):
    """A network that counts the images it is shown, may take its time, and may fail when it has seen so many."""

    def __init__(self, seed: int = 0, seconds: float = 0.0) -> None:
        super().__init__()
        self.network = perceptron(seed=seed)
        self.seen, self.seconds = 0, seconds
        self.fails_after: int | None = None
        self.failure: BaseException = KeyboardInterrupt()

    def forward(self, images: Tensor) -> Tensor:
        if self.seen == self.fails_after:
            raise self.failure
        self.seen += len(images)
        time.sleep(self.seconds)
        return self.network(images)


def data(fingerprint: str = "pixels", shift: int = 0) -> Data:
    """Labels as the teacher of seed 0 gives them, so that its error through the store is 0 % without shifts."""
    images = split(ROWS, seed=5).images
    return dataset(Split(images, perceptron()(images).argmax(dim=1), shift=shift), fingerprint)


def expected(seed: int = 0, shift: int = 0) -> Tensor:
    logits = logits_of(perceptron(seed=seed), data(shift=shift).train).flatten(0, 1)
    return logits.half() if shift else logits


def stored(outputs: Path, given: Data | None = None, seed: int = 0) -> tuple[Tensor, int]:
    """The logits, and how many images the teacher had to look at."""
    teacher = Teacher(seed)
    return teacher_logits(teacher, given or data(), outputs), teacher.seen


def folder(outputs: Path) -> Path:
    (found,) = [path for path in (outputs / "logits").iterdir() if path.is_dir()]
    return found


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [
        record.getMessage()
        for record in caplog.records
        if record.name == "kdx.logits" and record.levelno >= logging.WARNING
    ]


def test_rows_are_the_teachers_answers_in_the_order_of_the_samples(tmp_path: Path):
    logits, seen = stored(tmp_path)
    assert seen == ROWS
    assert logits.dtype == torch.float32
    # One matrix product in one batch of all rows.
    assert torch.equal(logits, perceptron()(data().train.images).detach())


def test_rows_stay_with_their_samples_under_shuffling(tmp_path: Path):
    logits, _ = stored(tmp_path)
    for seed in range(3):
        chosen = torch.randperm(ROWS, generator=generator(seed))[:10]
        images = data().train.images.index_select(0, chosen)
        # Batches of another size may round otherwise.
        torch.testing.assert_close(logits.index_select(0, chosen), perceptron()(images).detach())


def test_a_hit_does_not_ask_the_teacher(tmp_path: Path, caplog):
    first, _ = stored(tmp_path)
    second, seen = stored(tmp_path)
    assert seen == 0
    assert torch.equal(first, second)
    assert not warnings(caplog)


def test_the_manifest_says_what_the_rows_are(tmp_path: Path):
    stored(tmp_path)
    manifest = json.loads((folder(tmp_path) / "manifest.json").read_text())
    assert manifest["teacher_sha256"] == tensors_sha256(Teacher().state_dict())
    assert (manifest["data_fingerprint"], manifest["rows"], manifest["classes"]) == ("pixels", ROWS, CLASSES)
    assert manifest["teacher_train_error_percent"] == 0
    assert manifest["sha256"] == hashlib.sha256((folder(tmp_path) / "logits.f32").read_bytes()).hexdigest()


def edited(**changes) -> Callable[[Path], object]:
    def edit(store: Path) -> object:
        path = store / "manifest.json"
        return path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return edit


def with_bytes(change: Callable[[bytes], bytes]) -> Callable[[Path], object]:
    return lambda store: rows_of(store).write_bytes(change(rows_of(store).read_bytes()))


def rows_of(store: Path) -> Path:
    (file,) = store.glob("logits.f*")
    return file


def flip_one_bit(content: bytes) -> bytes:
    return content[:100] + bytes([content[100] ^ 1]) + content[101:]


def swap_rows_consistently(store: Path) -> None:
    """Rows in another order under a manifest that has their hash, as a change of the data's order would make them."""
    path = rows_of(store)
    kind = {".f32": "<f4", ".f16": "<f2"}[path.suffix]
    rows = np.frombuffer(path.read_bytes(), kind).reshape(-1, CLASSES)
    path.write_bytes(rows[::-1].tobytes())
    edited(sha256=hashlib.sha256(path.read_bytes()).hexdigest())(store)


DAMAGES = {
    "flipped bit": with_bytes(flip_one_bit),
    "last byte missing": with_bytes(lambda content: content[:-1]),
    "last row missing": with_bytes(lambda content: content[: -4 * CLASSES]),
    "the first half": with_bytes(lambda content: content[: len(content) // 2]),
    "longer": with_bytes(lambda content: content + bytes(4 * CLASSES)),
    "empty": with_bytes(lambda content: b""),
    "two rows swapped": with_bytes(lambda content: content[16:32] + content[:16] + content[32:]),
    "rows in another order": swap_rows_consistently,
    "no rows": lambda store: rows_of(store).unlink(),
    "no manifest": lambda store: (store / "manifest.json").unlink(),
    "empty manifest": lambda store: (store / "manifest.json").write_text(""),
    "cut manifest": lambda store: (store / "manifest.json").write_text('{"teacher_sha256": "'),
    "binary manifest": lambda store: (store / "manifest.json").write_bytes(b"\xff\xfe\x00"),
    "a manifest that is a list": lambda store: (store / "manifest.json").write_text("[]"),
    "a manifest without hash": edited(sha256=None),
    "another teacher": edited(teacher_sha256="0" * 64),
    "other data": edited(data_fingerprint="others"),
    "another order": edited(order="mirrored"),
    "another type": edited(dtype="float16"),
    "another format": edited(format=999),
    "another shape": edited(rows=CLASSES, classes=ROWS),
    "another accuracy": edited(teacher_train_error_percent=1.5),
}


@pytest.mark.parametrize("shift", SHIFTS)
@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_noticed_mended_and_logged(tmp_path: Path, damage: str, shift: int, caplog):
    given = data(shift=shift)
    stored(tmp_path, given)
    DAMAGES[damage](folder(tmp_path))
    logits, seen = stored(tmp_path, given)
    assert seen == ROWS * given.train.views
    assert torch.equal(logits, expected(shift=shift))
    (line,) = warnings(caplog)
    assert str(folder(tmp_path)) in line
    assert "computed again" in line
    assert "\n" not in line
    again, seen = stored(tmp_path, given)
    assert seen == 0
    assert torch.equal(again, expected(shift=shift))


def test_another_teacher_or_other_data_never_share_rows(tmp_path: Path):
    assert stored(tmp_path)[1] == ROWS
    logits, seen = stored(tmp_path, seed=1)
    assert seen == ROWS
    assert torch.equal(logits, expected(seed=1))
    assert stored(tmp_path, data("other pixels"))[1] == ROWS
    assert stored(tmp_path)[1] == stored(tmp_path, seed=1)[1] == stored(tmp_path, data("other pixels"))[1] == 0
    assert len(list((tmp_path / "logits").glob("*/manifest.json"))) == 3


def test_one_more_sample_is_other_data(tmp_path: Path):
    stored(tmp_path)
    train = data().train
    fewer = replace(data(), train=Split(train.images[1:], train.labels[1:]))
    assert stored(tmp_path, fewer)[1] == ROWS - 1


def test_the_hash_of_a_network_sees_names_shapes_types_and_bytes():
    def network(**state: Tensor) -> nn.Module:
        module = nn.Module()
        for name, value in state.items():
            module.register_buffer(name, value)
        return module

    networks = [
        network(a=torch.zeros(4)),
        network(b=torch.zeros(4)),
        network(a=torch.zeros(2, 2)),
        network(a=torch.zeros(4, dtype=torch.int32)),
        network(a=torch.tensor([0.0, 0.0, 0.0, 1e-30])),
        network(a=torch.zeros(4), b=torch.zeros(0)),
    ]
    assert len({tensors_sha256(one.state_dict()) for one in networks}) == len(networks)
    assert tensors_sha256(perceptron().state_dict()) == tensors_sha256(perceptron().state_dict())


def test_two_at_once_compute_once(tmp_path: Path):
    """Two threads, each with its own handle of the lock file, as two processes have."""
    teachers = [Teacher(seconds=0.3) for _ in range(2)]
    results: dict[int, Tensor] = {}

    def ask(number: int) -> None:
        results[number] = teacher_logits(teachers[number], data(), tmp_path)

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(teacher.seen for teacher in teachers) == [0, ROWS]
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], expected())


@pytest.mark.parametrize("shift", SHIFTS)
def test_a_build_that_is_cut_off_leaves_nothing_to_trust(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shift: int, caplog
):
    """Killed between the rows and the manifest, while mending a store: the rows are put together again."""
    given = data(shift=shift)
    stored(tmp_path, given)
    DAMAGES["flipped bit"](folder(tmp_path))
    with monkeypatch.context() as patch:
        patch.setattr("kdx.logits.write_json", lambda path, content: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            stored(tmp_path, given)
    assert not (folder(tmp_path) / "manifest.json").exists()
    # What is there has a hash of its own for every view, and rows that nothing vouches for.
    DAMAGES["flipped bit"](folder(tmp_path))
    logits, seen = stored(tmp_path, given)
    assert seen == 0
    assert torch.equal(logits, expected(shift=shift))
    assert "computed again" in warnings(caplog)[0]


def cut_off(outputs: Path, images: int, failure: BaseException) -> None:
    """A pass over all views that ends when the teacher has seen so many images."""
    teacher = Teacher()
    teacher.fails_after, teacher.failure = images, failure
    with pytest.raises(type(failure)):
        teacher_logits(teacher, data(shift=1), outputs)
    assert teacher.seen == images


@pytest.mark.parametrize("failure", [KeyboardInterrupt(), MemoryError()])
@pytest.mark.parametrize("views", [0, 1, 5, 8])
def test_a_pass_over_the_views_goes_on_where_it_was_cut_off(tmp_path: Path, views: int, failure: BaseException, caplog):
    cut_off(tmp_path, ROWS * views, failure)
    assert not list(folder(tmp_path).glob("logits.f*"))
    caplog.set_level(logging.INFO)
    logits, seen = stored(tmp_path, data(shift=1))
    assert seen == ROWS * (VIEWS - views)
    assert torch.equal(logits, expected(shift=1))
    assert (f"{views} of {VIEWS} views were computed before" in caplog.text) == (views > 0)
    assert not warnings(caplog)
    assert sorted(path.name for path in folder(tmp_path).iterdir()) == ["logits.f16", "manifest.json"]
    assert stored(tmp_path, data(shift=1))[1] == 0


def test_who_interrupts_is_told_how_far_it_came(tmp_path: Path):
    teacher = Teacher()
    teacher.fails_after = 3 * ROWS
    with pytest.raises(Interrupted, match=r"^teacher's logits: stopped after 3 of 9 views; the same command goes on$"):
        teacher_logits(teacher, data(shift=1), tmp_path)


@pytest.mark.parametrize(
    "damage",
    [
        lambda file, other: file.write_bytes(flip_one_bit(file.read_bytes()[::-1])[::-1]),
        # Another view, another teacher, or numbers that nothing vouches for.
        lambda file, other: file.write_bytes(other.read_bytes()),
        lambda file, other: save_tensors(file, *with_header(file, teacher_sha256="0" * 64)),
        lambda file, other: save_tensors(file, load_tensors(file)[0]),
    ],
)
def test_a_view_that_cannot_be_trusted_is_computed_again_and_no_other(tmp_path: Path, damage, caplog):
    cut_off(tmp_path, ROWS * 5, MemoryError())
    views = folder(tmp_path) / "views"
    damage(views / "2.safetensors", views / "3.safetensors")
    # What a kill in the middle of writing leaves.
    (views / ".5.safetensors.x.tmp").write_bytes((views / "4.safetensors").read_bytes()[:100])
    logits, seen = stored(tmp_path, data(shift=1))
    assert seen == ROWS * (VIEWS - 4)
    assert torch.equal(logits, expected(shift=1))
    (line,) = warnings(caplog)
    assert "computed again" in line
    assert str(views / "2.safetensors") in line


def with_header(file: Path, **changes) -> tuple[dict[str, Tensor], dict]:
    tensors, header = load_tensors(file)
    return tensors, header | changes


def test_the_pass_shows_its_progress_within_a_view(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    """In samples of all views, of which those that were computed before count as done."""
    monkeypatch.setattr(console, "LINE_SECONDS", 0.0)
    monkeypatch.setattr("kdx.measure.accuracy.logits_of_view.__defaults__", (10, lambda samples: None))
    cut_off(tmp_path, ROWS + 10, MemoryError())
    shown = "".join(f"teacher's logits: {done}/207\n" for done in (0, 10, 20, 23, 33))
    assert without_time(capsys.readouterr().err) == shown
    stored(tmp_path, data(shift=1))
    lines = without_time(capsys.readouterr().err).splitlines()
    done = [23 * view + within for view in range(1, VIEWS) for within in (10, 20, 23)]
    assert lines == [f"teacher's logits: {each}/207" for each in (23, *done)]
    stored(tmp_path, data(shift=1))
    assert capsys.readouterr().err == ""


def without_time(lines: str) -> str:
    return re.sub(r", [\d a-z]+ left", "", lines)


def test_half_precision_is_off_by_a_part_in_2048_at_most(tmp_path: Path):
    """Over numbers of all sizes, from those next to zero to the largest that float16 has."""

    class Exponential(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            # So that it has something to be told by.
            self.base = nn.Parameter(torch.tensor(10.0))

        def forward(self, images: Tensor) -> Tensor:
            values = images.flatten(1)
            return values[:, :CLASSES].sign() * self.base ** (6 * torch.tanh(values[:, -CLASSES:]) - 1.2)

    logits = teacher_logits(Exponential(), data(shift=1), tmp_path).double()
    exact = logits_of(Exponential(), data(shift=1).train).flatten(0, 1).double()
    assert exact.abs().min() < 1e-6
    assert exact.abs().max() > 3e4
    error = (logits - exact).abs()
    assert (error <= torch.maximum(2.0**-11 * exact.abs(), torch.tensor(2.0**-25))).all()
    # Half a unit in the last place, so the bound cannot be any smaller.
    assert (error / exact.abs())[exact.abs() > 2.0**-14].max() > 2.0**-11.2


def test_logits_that_half_precision_does_not_have_are_refused(tmp_path: Path):
    class Large(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return 7e4 + images.flatten(1)[:, :CLASSES] / 100

    with pytest.raises(UserError, match=r"^dataset\.shift: 1 is not possible with .* reach 7e\+04, .*; allowed: 0$"):
        teacher_logits(Large(), data(shift=1), tmp_path)
    assert teacher_logits(Large(), data(), tmp_path).max() > 69_000


def test_the_manifest_says_how_images_are_shifted(tmp_path: Path):
    stored(tmp_path, data(shift=1))
    manifest = json.loads((folder(tmp_path) / "manifest.json").read_text())
    assert (manifest["rows"], manifest["views"], manifest["dtype"]) == (ROWS, VIEWS, "float16 little endian")
    assert "its views are the image, seen from 0, 1, -1 pixels further down" in manifest["order"]
    wrong = (expected(shift=1).view(ROWS, VIEWS, CLASSES).argmax(2) != data().train.labels.unsqueeze(1)).sum().item()
    assert manifest["teacher_train_error_percent"] == pytest.approx(100 * wrong / ROWS / VIEWS)
    assert wrong
