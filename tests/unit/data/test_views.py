"""Mirrored and shifted views: what an epoch shows; labels and hints belong to the image that was shown."""

import signal
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.miniature import CLASSES, SIDE, backend, convolutional, dataset, generator, method, no_figures, perceptron
from torch import Tensor, nn

from kdx.config.schema import TrainerSettings
from kdx.data.dataset import Split
from kdx.data.preprocessing import PER_BATCH
from kdx.errors import Interrupted
from kdx.logits import teacher_logits
from kdx.measure.accuracy import error_percent, logits_of
from kdx.methods.fit import TrainingInputs, fit
from kdx.rng import make_generator
from kdx.training.checkpoint import Progress
from kdx.training.learner import TrainSpec
from kdx.training.objective import LossInputs, Objective, Term
from kdx.training.trainer import train

SAMPLES = 10
MIRRORS = ("none", "copies", "random")
SHIFTS = (0, 1, 2)


def split(mirror: str, preprocessing: str = "scale", shift: int = 0) -> Split:
    """Bytes (10, 1, 6, 6): pixel (0, 0) is the number of the sample, pixel (0, 5) 100 more; labels 0..9."""
    pixels = torch.randint(50, (SAMPLES, 1, SIDE, SIDE), generator=generator(0), dtype=torch.uint8)
    pixels[:, 0, 0, 0] = torch.arange(SAMPLES)
    pixels[:, 0, 0, -1] = torch.arange(SAMPLES) + 100
    fitted = PER_BATCH[preprocessing].fitted(pixels)
    return Split(pixels, torch.arange(SAMPLES), fitted, mirror, shift)  # type: ignore[arg-type]


def order(mirror: str, seed: int = 0, epoch: int = 0, shift: int = 0) -> Tensor:
    return split(mirror, shift=shift).order(
        *(make_generator(seed, name, epoch) for name in ("order", "mirror", "shift"))
    )


def padded_and_cropped(images: np.ndarray, mirrored: bool, shift: int) -> list[np.ndarray]:
    """All views of every sample's preprocessed image (N, C, H, W) in their order: (N, C, H, W) each, by NumPy."""
    height, width = images.shape[2:]
    padded = [
        np.pad(one, ((0, 0), (0, 0), (shift, shift), (shift, shift)), mode="edge")
        for one in (images, images[..., ::-1])[: 1 + mirrored]
    ]
    offsets = [*range(shift + 1), *range(-shift, 0)]
    return [
        image[:, :, shift + down : shift + down + height, shift + right : shift + right + width]
        for image in padded
        for down in offsets
        for right in offsets
    ]


def read_back(images: Tensor) -> list[tuple[int, bool]]:
    """Which sample an image of `split` is, and whether it is mirrored."""
    left, right = ((255 * images[:, 0, 0, column]).round().int() for column in (0, -1))
    return [(min(pair), pair[0] > pair[1]) for pair in zip(left.tolist(), right.tolist(), strict=True)]


@pytest.mark.parametrize("shift", SHIFTS)
@pytest.mark.parametrize("mirror", MIRRORS)
@pytest.mark.parametrize("preprocessing", ["scale", "symmetric", "per-pixel-mean", "local-contrast"])
def test_a_view_is_a_crop_of_the_image_with_its_edge_repeated(preprocessing: str, mirror: str, shift: int):
    """Higher than wide and of three colours, so that no dimension passes for another; bit for bit."""
    pixels = torch.randint(256, (4, 3, 7, 5), generator=generator(0), dtype=torch.uint8)
    fitted = PER_BATCH[preprocessing].fitted(pixels)
    examples = Split(pixels, torch.arange(4), fitted, mirror, shift)  # type: ignore[arg-type]
    assert examples.views == (1 if mirror == "none" else 2) * (2 * shift + 1) ** 2
    chosen = torch.randperm(4 * examples.views, generator=generator(1))
    samples = chosen // examples.views
    images, labels = examples.take(chosen)
    assert torch.equal(labels, samples)
    assert images.is_contiguous()
    expected = padded_and_cropped(fitted(pixels[samples]).numpy(), mirror != "none", shift)
    assert len(expected) == examples.views
    for position, number in enumerate(chosen.tolist()):
        image = expected[number % examples.views][position]
        assert torch.equal(images[position], torch.from_numpy(image.copy()))


def test_the_first_view_is_the_sample_as_it_is():
    for mirror in MIRRORS:
        examples = split(mirror, shift=2)
        images, _ = examples.take(torch.arange(SAMPLES) * examples.views)
        assert torch.equal(images, next(examples.batches())[0])


def test_without_shifts_orders_are_what_they_always_were():
    """Runs without mirroring or shifts must not change because others have them."""
    shuffle, flip = make_generator(3, "order", 5), make_generator(3, "mirror", 5)
    samples = torch.randperm(SAMPLES, generator=shuffle)
    assert torch.equal(order("none", 3, 5), samples)
    assert torch.equal(order("random", 3, 5), 2 * samples + torch.randint(2, (SAMPLES,), generator=flip))
    assert torch.equal(order("copies", 3, 5), torch.randperm(2 * SAMPLES, generator=make_generator(3, "order", 5)))


@pytest.mark.parametrize("mirror", MIRRORS)
def test_shifts_leave_the_order_of_images_alone_and_all_offsets_are_as_likely(mirror: str):
    epochs, offsets = 400, []
    for epoch in range(epochs):
        shown = order(mirror, epoch=epoch, shift=1)
        assert torch.equal(shown // 9, order(mirror, epoch=epoch))
        offsets.append((shown % 9)[(shown // 9 // (mirror == "random" or 1)).argsort()])
    drawn = torch.stack(offsets)
    counts = torch.stack([(drawn == offset).sum(dim=0) for offset in range(9)]).double()
    # Of every image in all epochs, and of all together.
    deviation = (epochs * 8 / 81) ** 0.5
    assert (counts - epochs / 9).abs().max() < 5 * deviation
    images = drawn.shape[1]
    assert (counts.sum(dim=1) - images * epochs / 9).abs().max() < 5 * images**0.5 * deviation
    assert len({tuple(row.tolist()) for row in drawn}) == epochs
    assert torch.equal(order(mirror, 4, 2, shift=1), order(mirror, 4, 2, shift=1))
    assert not torch.equal(order(mirror, 4, 2, shift=1) % 9, order(mirror, 5, 2, shift=1) % 9)


def test_shifts_do_not_change_how_many_examples_an_epoch_has():
    for mirror in MIRRORS:
        assert split(mirror, shift=2).per_epoch == split(mirror).per_epoch
        assert len(split(mirror, shift=2)) == SAMPLES


def test_copies_show_every_sample_both_ways_in_every_epoch():
    for epoch in range(3):
        assert sorted(order("copies", epoch=epoch).tolist()) == list(range(2 * SAMPLES))
    assert (split("copies").per_epoch, split("random").per_epoch, split("none").per_epoch) == (20, 10, 10)
    assert [len(split(mirror)) for mirror in MIRRORS] == [SAMPLES] * 3


def test_random_mirroring_shows_every_sample_once_and_leaves_the_order_of_samples_alone():
    flips = []
    for epoch in range(200):
        shown = order("random", epoch=epoch)
        assert torch.equal(shown // 2, order("none", epoch=epoch))
        flips.append(shown[(shown // 2).argsort()] % 2)
    rate = torch.stack(flips).double().mean(dim=0)
    assert (rate - 0.5).abs().max() < 5 * 0.5 / 200**0.5
    assert len({tuple(flip.tolist()) for flip in flips}) > 150
    assert torch.equal(order("random", 4, 2), order("random", 4, 2))
    assert not torch.equal(order("random", 4, 2), order("random", 5, 2))


def test_batches_have_every_sample_once_in_order_and_as_it_is():
    for mirror in MIRRORS:
        batches = list(split(mirror, shift=1).batches(4))
        assert [len(labels) for _, labels in batches] == [4, 4, 2]
        assert read_back(torch.cat([images for images, _ in batches])) == [(i, False) for i in range(SAMPLES)]
        assert torch.cat([labels for _, labels in batches]).tolist() == list(range(SAMPLES))


def test_a_split_moves_as_a_whole():
    moved = split("random", "per-pixel-mean", shift=2).to("meta")
    assert (moved.images.device.type, moved.labels.device.type) == ("meta", "meta")
    assert (moved.mirror, moved.shift) == ("random", 2)
    assert moved.preprocessing is not None
    assert moved.preprocessing.constants[0].device.type == "meta"


class Left(nn.Module):
    """Logits (pixel (0, 0), pixel (0, 5), 0, 0): a mirrored image has them exchanged."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1 = nn.Linear(SIDE * SIDE, CLASSES, bias=False)
        with torch.no_grad():
            self.fc1.weight.zero_()
            self.fc1.weight[0, 0] = self.fc1.weight[1, SIDE - 1] = 255.0

    def forward(self, images: Tensor) -> Tensor:
        return self.fc1(images.flatten(1))


def shown_logits(chosen: list[tuple[int, bool]]) -> Tensor:
    return torch.tensor([(s + 100.0, s, 0, 0) if mirrored else (s, s + 100.0, 0, 0) for s, mirrored in chosen])


@pytest.mark.parametrize("mirror", MIRRORS)
def test_the_store_has_a_row_for_every_view(tmp_path: Path, mirror: str):
    examples = split(mirror)
    chosen = torch.arange(examples.views * SAMPLES)
    for _ in range(2):  # computed, then from the store
        stored = teacher_logits(Left(), dataset(examples), tmp_path)
        assert stored.shape == (len(chosen), CLASSES)
        torch.testing.assert_close(stored, shown_logits(read_back(examples.take(chosen)[0])))
    (rows,) = tmp_path.glob("logits/*/logits.f32")
    assert rows.stat().st_size == 4 * SAMPLES * examples.views * CLASSES
    assert logits_of(Left(), examples).shape == (SAMPLES, examples.views, CLASSES)


@pytest.mark.parametrize("shift", SHIFTS[1:])
@pytest.mark.parametrize("mirror", MIRRORS)
def test_of_many_views_the_rows_are_the_teachers_answers_in_half_precision(tmp_path: Path, mirror: str, shift: int):
    """Pixels are whole numbers, which float16 has exactly, so every row is that of its view and of no other."""
    examples = split(mirror, shift=shift)
    chosen = torch.arange(examples.views * SAMPLES)
    images, _ = examples.take(chosen)
    corners = (255 * images[:, 0, 0, [0, -1]]).round()
    for _ in range(2):  # computed, then from the store
        stored = teacher_logits(Left(), dataset(examples), tmp_path)
        assert (stored.shape, stored.dtype) == ((len(chosen), CLASSES), torch.float16)
        assert torch.equal(stored[:, :2].float(), corners)
    (rows,) = tmp_path.glob("logits/*/logits.f16")
    assert rows.stat().st_size == 2 * SAMPLES * examples.views * CLASSES
    assert sorted(path.name for path in rows.parent.iterdir()) == ["logits.f16", "manifest.json"]


def test_logits_of_images_and_mirror_images_are_bit_for_bit_what_they_were():
    """Before there were shifts, both views of a batch were computed one after the other, in these batches."""
    pixels = torch.randint(256, (23, 2, SIDE, SIDE), generator=generator(0), dtype=torch.uint8)
    fitted = PER_BATCH["per-pixel-mean"].fitted(pixels)
    teacher = convolutional()
    expected = [torch.stack([teacher(images), teacher(images.flip(3))], dim=1) for images in fitted(pixels).split(10)]
    found = logits_of(teacher, Split(pixels, torch.zeros(23), fitted, "copies"), batch_size=10)
    assert torch.equal(found, torch.cat(expected))


def test_what_shows_the_same_views_shares_a_store_and_nothing_else_does(tmp_path: Path):
    for shift in SHIFTS:
        for mirror in MIRRORS:
            teacher_logits(Left(), dataset(split(mirror, shift=shift)), tmp_path)
    # Mirrored copies and random mirroring have the same views.
    assert len(list(tmp_path.glob("logits/*/manifest.json"))) == 2 * len(SHIFTS)


def test_the_error_is_that_of_the_images_as_they_are():
    examples = split("copies")
    answers = Split(examples.images, torch.ones(SAMPLES, dtype=torch.int64), examples.preprocessing, "copies", 2)
    assert error_percent(Left(), answers) == 0


def training(folder: Path, mirror: str, logits: Tensor | None, shift: int = 0) -> partial[TrainSpec]:
    settings = TrainerSettings(epochs=4, batch_size=4, lr=1e-30, hold=1.0, patience=None, checkpoint_seconds=1e9)
    return partial(
        TrainSpec,
        title="miniature",
        identity=mirror,
        examples=split(mirror, shift=shift),
        teacher_logits=logits,
        trainer=settings,
        seed=0,
        checkpoint=folder / "checkpoint",
    )


def witnessed(given: partial[TrainSpec], stop_after: int | None = None) -> tuple[list[LossInputs], Progress | None]:
    """The steps of a training of `Left`, which answers what its teacher of the same weights answered."""
    steps: list[LossInputs] = []

    def seen(step: LossInputs) -> Tensor:
        steps.append(step)
        if len(steps) == stop_after:
            signal.raise_signal(signal.SIGINT)
        return step.logits.square().mean()

    try:
        return steps, train(given(Left(), Objective({"seen": Term(seen)}), no_figures), backend())
    except Interrupted:
        return steps, None


@pytest.mark.parametrize("shift", SHIFTS[:2])
@pytest.mark.parametrize("mirror", MIRRORS)
def test_the_hint_is_that_of_the_view_that_was_shown(tmp_path: Path, mirror: str, shift: int):
    logits = teacher_logits(Left(), dataset(split(mirror, shift=shift)), tmp_path)
    steps, progress = witnessed(training(tmp_path, mirror, logits, shift=shift))
    assert progress is not None
    assert progress.steps == len(steps) == 4 * (split(mirror).per_epoch // 4)
    shown: list[tuple[int, float, float]] = []
    for step in steps:
        assert step.teacher_logits is not None
        assert step.teacher_logits.dtype == torch.float32
        torch.testing.assert_close(step.logits, step.teacher_logits)
        shown += zip(
            step.labels.tolist(),
            step.required_teacher_logits[:, 0].tolist(),
            step.required_teacher_logits[:, 1].tolist(),
            strict=True,
        )
    if shift:
        # Corners of a sample that moves are not always those of its image.
        assert len(set(shown)) > 2 * SAMPLES
    else:
        assert all(round(min(left, right)) == label for label, left, right in shown)
        # Of 4 * 20 views the half; of 4 * 8 samples about the half.
        mirrored = sum(left > right for _, left, right in shown)
        assert mirrored in {"none": [0], "copies": [40], "random": range(6, 27)}[mirror]


def test_random_views_go_on_where_they_were_stopped(tmp_path: Path):
    logits = teacher_logits(Left(), dataset(split("random", shift=1)), tmp_path)
    whole, _ = witnessed(training(tmp_path / "whole", "random", logits, shift=1))
    before, _ = witnessed(training(tmp_path / "stopped", "random", logits, shift=1), stop_after=3)
    after, progress = witnessed(training(tmp_path / "stopped", "random", logits, shift=1))
    assert progress is not None
    both = [step.logits for step in (*before, *after)]
    assert len(both) == len(whole)
    assert all(torch.equal(one, other.logits) for one, other in zip(both, whole, strict=True))


def test_a_float_split_is_only_indexed():
    """MNIST's speed: no arithmetic between the memory and the network."""
    images = torch.rand(5, 1, 2, 2)
    chosen = torch.tensor([3, 1])
    taken, labels = Split(images, torch.arange(5)).take(chosen)
    assert torch.equal(taken, images[chosen])
    assert labels.tolist() == [3, 1]
    ((whole, _),) = Split(images, torch.arange(5)).batches()
    assert whole.data_ptr() == images.data_ptr()


def test_an_objective_of_mirrored_copies_counts_them_as_examples(tmp_path: Path):
    """The KL is divided by the number of examples, so mirrored copies halve its weight, as any other samples would."""
    counted = []

    class Counting:
        def prepare(self, network: nn.Module) -> nn.Module:
            return network

        def objective(self, student: nn.Module, teacher: nn.Module | None, examples: int) -> Objective:
            counted.append(examples)
            raise InterruptedError

    for mirror in MIRRORS:
        inputs = TrainingInputs(dataset(split(mirror)))
        with pytest.raises(InterruptedError):
            fit(perceptron(), Counting(), inputs, None, backend())  # type: ignore[arg-type]
    assert counted == [10, 20, 10]


@pytest.mark.parametrize(("name", "settings"), [("kd", {"T": 4.0}), ("noisy", {"sigma": 0.0})])
def test_half_precision_does_not_change_the_loss(tmp_path: Path, name: str, settings: dict[str, float]):
    """Trained for four epochs on rounded and on exact logits of all views."""
    examples, teacher, how = split("random", shift=2), perceptron(hidden=9, seed=3), method(name, **settings)
    examples = replace(examples, labels=examples.labels % CLASSES)
    rounded = teacher_logits(teacher, dataset(examples), tmp_path)
    exact = logits_of(teacher, examples).flatten(0, 1)
    assert not torch.equal(rounded.float(), exact)
    histories = []
    for number, logits in enumerate((rounded, exact)):
        student = how.prepare(perceptron(seed=1))
        given = training(tmp_path / str(number), "random", logits)
        objective = how.objective(student, teacher, examples.per_epoch)
        whole = given(student, objective, no_figures)
        trainer = whole.trainer.model_copy(update={"lr": 1e-2})
        histories.append(train(replace(whole, examples=examples, trainer=trainer), backend()).history)
    losses, expected = ([row["loss"] for row in history] for history in histories)
    assert expected[-1] < expected[0]
    # Half a unit in float16's last place is 2^-11; a loss has squares.
    assert losses == pytest.approx(expected, rel=2**-10)
    assert losses != expected
