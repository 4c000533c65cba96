"""The teacher-logit store: right rows, computed once, and no damage that goes unnoticed."""

import hashlib
import json
import logging
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from miniature import CLASSES, dataset, generator, perceptron, split
from torch import Tensor, nn

from kdx.data.dataset import Data, Split
from kdx.logits import teacher_logits
from kdx.tensors import tensors_sha256

ROWS = 23


class Teacher(nn.Module):
    """A network that counts the images it is shown, and may take its time."""

    def __init__(self, seed: int = 0, seconds: float = 0.0) -> None:
        super().__init__()
        self.network = perceptron(seed=seed)
        self.seen, self.seconds = 0, seconds

    def forward(self, images: Tensor) -> Tensor:
        self.seen += len(images)
        time.sleep(self.seconds)
        return self.network(images)


def data(fingerprint: str = "pixels") -> Data:
    """Labels as the teacher of seed 0 gives them, so that its error through the store is 0 %."""
    images = split(ROWS, seed=5).images
    return dataset(Split(images, perceptron()(images).argmax(dim=1)), fingerprint)


def expected(seed: int = 0) -> Tensor:
    return perceptron(seed=seed)(data().train.images).detach()


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
    torch.testing.assert_close(logits, expected(), rtol=0, atol=0)


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
    return lambda store: (store / "logits.f32").write_bytes(change((store / "logits.f32").read_bytes()))


def flip_one_bit(content: bytes) -> bytes:
    return content[:100] + bytes([content[100] ^ 1]) + content[101:]


def swap_rows_consistently(store: Path) -> None:
    """Rows in another order under a manifest that has their hash, as a change of the data's order would make them."""
    path = store / "logits.f32"
    rows = np.frombuffer(path.read_bytes(), "<f4").reshape(ROWS, CLASSES)
    path.write_bytes(rows[::-1].tobytes())
    edited(sha256=hashlib.sha256(path.read_bytes()).hexdigest())(store)


DAMAGES = {
    "flipped bit": with_bytes(flip_one_bit),
    "last byte missing": with_bytes(lambda content: content[:-1]),
    "last row missing": with_bytes(lambda content: content[: -4 * CLASSES]),
    "longer": with_bytes(lambda content: content + bytes(4 * CLASSES)),
    "empty": with_bytes(lambda content: b""),
    "two rows swapped": with_bytes(lambda content: content[16:32] + content[:16] + content[32:]),
    "rows in another order": swap_rows_consistently,
    "no rows": lambda store: (store / "logits.f32").unlink(),
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


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_noticed_mended_and_logged(tmp_path: Path, damage: str, caplog):
    stored(tmp_path)
    DAMAGES[damage](folder(tmp_path))
    logits, seen = stored(tmp_path)
    assert seen == ROWS
    assert torch.equal(logits, expected())
    (line,) = warnings(caplog)
    assert str(folder(tmp_path)) in line
    assert "computed again" in line
    assert "\n" not in line
    again, seen = stored(tmp_path)
    assert seen == 0
    assert torch.equal(again, expected())


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


def test_a_build_that_is_cut_off_leaves_nothing_to_trust(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog):
    """Killed between the rows and the manifest, while mending a store: the next run computes again."""
    stored(tmp_path)
    DAMAGES["flipped bit"](folder(tmp_path))
    with monkeypatch.context() as patch:
        patch.setattr("kdx.logits.write_json", lambda path, content: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            stored(tmp_path)
    assert not (folder(tmp_path) / "manifest.json").exists()
    logits, seen = stored(tmp_path)
    assert seen == ROWS
    assert torch.equal(logits, expected())
    assert "computed again" in warnings(caplog)[0]
