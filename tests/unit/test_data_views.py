"""Mirrored views: what an epoch shows, and that labels and hints belong to the image that was shown."""

import signal
from pathlib import Path

import pytest
import torch
from miniature import CLASSES, SIDE, dataset, engine, generator, no_figures, perceptron
from torch import Tensor, nn

from kdx.checkpoint import Progress
from kdx.config import TrainerSettings
from kdx.data.dataset import Split
from kdx.data.preprocessing import PER_BATCH
from kdx.errors import Interrupted
from kdx.fit import Lesson, fit
from kdx.logits import teacher_logits
from kdx.measure.accuracy import error_percent, logits_of
from kdx.objective import Objective, Step, Term
from kdx.streams import stream
from kdx.trainer import Training, train

SAMPLES = 10
MIRRORS = ("none", "copies", "random")


def split(mirror: str, preprocessing: str = "scale") -> Split:
    """Bytes (10, 1, 6, 6): pixel (0, 0) is the number of the sample, pixel (0, 5) 100 more; labels 0..9."""
    pixels = torch.randint(50, (SAMPLES, 1, SIDE, SIDE), generator=generator(0), dtype=torch.uint8)
    pixels[:, 0, 0, 0] = torch.arange(SAMPLES)
    pixels[:, 0, 0, -1] = torch.arange(SAMPLES) + 100
    return Split(pixels, torch.arange(SAMPLES), PER_BATCH[preprocessing].fitted(pixels), mirror)  # type: ignore[arg-type]


def order(mirror: str, seed: int = 0, epoch: int = 0) -> Tensor:
    return split(mirror).order(stream(seed, "order", epoch), stream(seed, "mirror", epoch))


def read_back(images: Tensor) -> list[tuple[int, bool]]:
    """Which sample an image of `split` is, and whether it is mirrored."""
    left, right = ((255 * images[:, 0, 0, column]).round().int() for column in (0, -1))
    return [(min(pair), pair[0] > pair[1]) for pair in zip(left.tolist(), right.tolist(), strict=True)]


@pytest.mark.parametrize("mirror", MIRRORS)
def test_a_view_is_its_sample_or_the_mirror_image_of_it(mirror: str):
    examples = split(mirror)
    chosen = torch.randperm(examples.views * SAMPLES, generator=generator(1))
    images, labels = examples.take(chosen)
    assert images.dtype == torch.float32
    shown = read_back(images)
    if mirror == "none":
        assert shown == [(view, False) for view in chosen.tolist()]
    else:
        assert shown == [(view // 2, view % 2 == 1) for view in chosen.tolist()]
    assert labels.tolist() == [sample for sample, _ in shown]


def test_mirroring_comes_after_the_mean_image():
    examples = split("copies", "per-pixel-mean")
    images, _ = examples.take(torch.arange(2 * SAMPLES))
    assert torch.equal(images[1::2], images[::2].flip(3))
    assert examples.preprocessing is not None
    (mean,) = examples.preprocessing.constants
    assert not torch.equal(mean, mean.flip(2))


def test_without_mirroring_the_order_is_what_it_always_was():
    """Runs without mirroring must not change because others mirror."""
    assert torch.equal(order("none", 3, 5), torch.randperm(SAMPLES, generator=stream(3, "order", 5)))


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


def test_batches_have_every_sample_once_in_order_and_never_mirrored():
    for mirror in MIRRORS:
        batches = list(split(mirror).batches(4))
        assert [len(labels) for _, labels in batches] == [4, 4, 2]
        assert read_back(torch.cat([images for images, _ in batches])) == [(i, False) for i in range(SAMPLES)]
        assert torch.cat([labels for _, labels in batches]).tolist() == list(range(SAMPLES))


def test_a_split_moves_as_a_whole():
    moved = split("random", "per-pixel-mean").to("meta")
    assert (moved.images.device.type, moved.labels.device.type, moved.mirror) == ("meta", "meta", "random")
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


def test_copies_and_random_mirroring_share_a_store_which_is_not_that_without(tmp_path: Path):
    for mirror in MIRRORS:
        teacher_logits(Left(), dataset(split(mirror)), tmp_path)
    assert len(list(tmp_path.glob("logits/*/manifest.json"))) == 2


def test_the_error_is_that_of_the_images_as_they_are():
    examples = split("copies")
    answers = Split(examples.images, torch.ones(SAMPLES, dtype=torch.int64), examples.preprocessing, "copies")
    assert error_percent(Left(), answers) == 0


def training(folder: Path, mirror: str, logits: Tensor | None) -> Training:
    settings = TrainerSettings(epochs=4, batch_size=4, lr=1e-30, hold=1.0, patience=None, checkpoint_seconds=1e9)
    return Training("miniature", mirror, split(mirror), logits, settings, 0, folder / "checkpoint")


def witnessed(given: Training, stop_after: int | None = None) -> tuple[list[Step], Progress | None]:
    """The steps of a training of `Left`, which answers what its teacher of the same weights answered."""
    steps: list[Step] = []

    def seen(step: Step) -> Tensor:
        steps.append(step)
        if len(steps) == stop_after:
            signal.raise_signal(signal.SIGINT)
        return step.logits.square().mean()

    try:
        return steps, train(Left(), Objective({"seen": Term(seen)}), given, engine(), no_figures)
    except Interrupted:
        return steps, None


@pytest.mark.parametrize("mirror", MIRRORS)
def test_the_hint_is_that_of_the_view_that_was_shown(tmp_path: Path, mirror: str):
    logits = teacher_logits(Left(), dataset(split(mirror)), tmp_path)
    steps, progress = witnessed(training(tmp_path, mirror, logits))
    assert progress is not None
    assert progress.steps == len(steps) == 4 * (split(mirror).per_epoch // 4)
    mirrored = 0
    for step in steps:
        assert step.teacher_logits is not None
        torch.testing.assert_close(step.logits, step.teacher_logits)
        left, right = step.teacher_logits[:, 0], step.teacher_logits[:, 1]
        assert torch.minimum(left, right).round().int().tolist() == step.labels.tolist()
        mirrored += int((left > right).sum())
    # Of 4 * 20 views the half; of 4 * 8 samples about the half.
    assert mirrored in {"none": [0], "copies": [40], "random": range(6, 27)}[mirror]


def test_random_mirroring_goes_on_where_it_was_stopped(tmp_path: Path):
    logits = teacher_logits(Left(), dataset(split("random")), tmp_path)
    whole, _ = witnessed(training(tmp_path / "whole", "random", logits))
    before, _ = witnessed(training(tmp_path / "stopped", "random", logits), stop_after=3)
    after, progress = witnessed(training(tmp_path / "stopped", "random", logits))
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
        lesson = Lesson(dataset(split(mirror)))
        with pytest.raises(InterruptedError):
            fit(perceptron(), Counting(), lesson, None, engine())  # type: ignore[arg-type]
    assert counted == [10, 20, 10]
