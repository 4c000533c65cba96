"""Splits, fingerprints and the digits: what every data set has in common."""

import logging
import subprocess
import sys
from itertools import pairwise

import numpy as np
import pytest
import torch
from helpers import ROOT
from omegaconf import OmegaConf
from pydantic import ValidationError
from sklearn.datasets import load_digits

from kdx.config.datasets import DATASETS, DigitsSettings
from kdx.data import load_data
from kdx.data.dataset import Data, Split, build_data, fingerprint
from kdx.data.preprocessing import Preprocessing
from kdx.data.splits import balanced_choice, class_counts, nested_choice, stratified_choice
from kdx.errors import UserError

CONF = ROOT / "conf" / "dataset"


def settings(**changes) -> DigitsSettings:
    values = {"name": "digits", "root": None, "validation": 200, "split_seed": 0, "train_size": None}
    return DigitsSettings(**(values | {"preprocessing": "scale", "mirror": "none", "download": False} | changes))


def numbered(count: int = 100) -> tuple[torch.Tensor, torch.Tensor]:
    """Samples whose only pixel is their index, in four classes of unequal size."""
    return torch.arange(count).reshape(-1, 1, 1, 1), torch.arange(count) % 7 % 4


def build(**changes) -> Data:
    return build_data(settings(**changes), numbered(), numbered(20), Preprocessing("as they are", torch.Tensor.float))


@pytest.mark.parametrize("count", [0, 1, 3, 17, 99, 100])
def test_class_counts_are_the_shares_rounded_by_largest_remainder(count):
    labels = numbered()[1]
    counts, sizes = torch.tensor(class_counts(labels, count)), torch.bincount(labels)
    assert counts.sum() == count
    assert (counts <= sizes).all()
    assert ((counts - sizes * count / 100).abs() < 1).all()


def test_equal_remainders_go_to_the_lower_class():
    assert class_counts(torch.tensor([0, 0, 1, 1, 2, 2]), 4) == [2, 1, 1]


def test_a_class_without_samples_gets_none():
    assert class_counts(torch.tensor([0, 0, 2, 2]), 2) == [1, 0, 1]


def test_choice_has_the_class_counts_and_depends_on_the_seed_alone():
    labels = numbered(1000)[1]
    torch.manual_seed(1)
    chosen = stratified_choice(labels, 130, seed=5)
    torch.manual_seed(2)
    assert torch.bincount(labels[chosen]).tolist() == class_counts(labels, 130)
    assert torch.equal(chosen, stratified_choice(labels, 130, seed=5))
    assert not torch.equal(chosen, stratified_choice(labels, 130, seed=6))


def test_split_is_disjoint_complete_and_in_order():
    data = build(validation=30)
    assert data.validation is not None
    train, validation = (split.images.flatten() for split in (data.train, data.validation))
    assert (len(data.train), len(data.validation), len(data.test)) == (70, 30, 20)
    assert torch.equal(torch.cat([train, validation]).sort().values, torch.arange(100.0))
    assert (train.diff() > 0).all()
    assert torch.equal(data.train.labels, numbered()[1][train.long()])


SIZES = (1, 2, 3, 5, 8, 13, 21, 34, 55, 70)


@pytest.mark.parametrize("seed", [0, 1])
def test_smaller_training_sets_are_subsets_of_larger_ones_beside_the_same_validation_set(seed: int):
    data = [build(validation=30, train_size=size, split_seed=seed) for size in SIZES]
    whole = build(validation=30, split_seed=seed)
    assert whole.validation is not None
    samples = [set(one.train.images.flatten().tolist()) for one in data]
    assert [len(chosen) for chosen in samples] == [len(one.train) for one in data] == list(SIZES)
    assert all(smaller < larger for smaller, larger in pairwise(samples))
    assert samples[-1] == set(whole.train.images.flatten().tolist())
    for one in data:
        assert one.validation is not None
        assert torch.equal(one.validation.images, whole.validation.images)
        assert torch.equal(one.train.labels, numbered()[1][one.train.images.flatten().long()])
        assert (one.train.images.flatten().diff() > 0).all()
    assert len({one.fingerprint for one in data}) == len(data)


@pytest.mark.parametrize("count", [0, 1, 10, 57, 500, 999, 1000])
def test_nested_choices_have_every_class_in_proportion(count: int):
    labels = torch.cat([torch.full((size,), label) for label, size in enumerate([1, 9, 90, 250, 0, 650])])
    chosen = torch.bincount(labels[nested_choice(labels, count, seed=2)], minlength=6)
    assert chosen.sum() == count
    assert ((chosen - torch.bincount(labels) * count / 1000).abs() <= 1).all()


def test_a_nested_choice_depends_on_the_seed():
    labels = numbered(1000)[1]
    assert torch.equal(nested_choice(labels, 100, 5), nested_choice(labels, 100, 5))
    assert not torch.equal(nested_choice(labels, 100, 5), nested_choice(labels, 100, 6))


def test_a_balanced_choice_has_as_many_of_every_class():
    labels = numbered(1000)[1]
    for count, expected in ((8, [2, 2, 2, 2]), (10, [3, 3, 2, 2]), (0, [0, 0, 0, 0])):
        chosen = balanced_choice(labels, count, 4, seed=1)
        assert torch.bincount(labels[chosen], minlength=4).tolist() == expected


@pytest.mark.parametrize("size", [71, 100])
def test_more_training_samples_than_there_are_is_refused(size: int):
    with pytest.raises(UserError, match=rf"^dataset\.train_size: {size} .* 1 to 70 or null, .*validation=30$"):
        build(validation=30, train_size=size)


def test_validation_zero_keeps_every_sample():
    data = build(validation=0)
    assert data.validation is None
    assert len(data.train) == 100
    assert data.to("cpu").validation is None


@pytest.mark.parametrize("validation", [100, 101])
def test_a_split_that_leaves_no_training_sample_is_refused(validation):
    with pytest.raises(UserError, match=rf"^dataset\.validation: {validation} .*0 to 99"):
        build(validation=validation)


@pytest.mark.parametrize(
    "change",
    [
        {"validation": -1},
        {"split_seed": -1},
        {"split_seed": 2**64},
        {"name": "cifar"},
        {"mirror": "random"},
        {"train_size": 0},
        {"shift": 28},
        {"shift": -1},
    ],
)
def test_impossible_settings_are_refused(change):
    with pytest.raises(ValidationError):
        settings(**change)


def test_fingerprint_tells_pixels_labels_order_and_preprocessing_apart():
    split = Split(torch.rand(6, 1, 2, 2), torch.arange(6))
    pixels, labels = split.images.clone(), split.labels.clone()
    pixels[3, 0, 1, 1] = torch.nextafter(pixels[3, 0, 1, 1], torch.tensor(2.0))
    labels[5] = 0
    order = torch.tensor([1, 0, 2, 3, 4, 5])
    prints = [
        fingerprint(split, "a"),
        fingerprint(split, "b"),
        fingerprint(Split(pixels, split.labels), "a"),
        fingerprint(Split(split.images, labels), "a"),
        fingerprint(Split(split.images[order], split.labels[order]), "a"),
        fingerprint(Split(split.images.reshape(6, 1, 4, 1), split.labels), "a"),
    ]
    assert len(set(prints)) == len(prints)
    assert fingerprint(Split(split.images.clone(), split.labels.clone()), "a") == prints[0]


def test_fingerprint_follows_the_split_and_not_the_test_set():
    same, other = build(validation=10), build(validation=10, split_seed=1)
    assert same.fingerprint == build(validation=10).fingerprint == same.to("cpu").fingerprint
    assert same.fingerprint != other.fingerprint


def test_moving_data_moves_every_split():
    data = build(validation=10).to("meta")
    assert data.validation is not None
    for split in (data.train, data.validation, data.test):
        assert split.images.device.type == split.labels.device.type == "meta"


def test_digits_have_their_shapes_and_a_stratified_test_set():
    data = load_data(settings())
    assert data.validation is not None
    assert (len(data.train), len(data.validation), len(data.test)) == (1237, 200, 360)
    assert (data.name, data.classes, data.image_shape) == ("digits", 10, (1, 28, 28))
    for split in (data.train, data.validation, data.test):
        assert split.images.dtype == torch.float32
        assert split.images.shape == (len(split), 1, 28, 28)
        assert split.labels.dtype == torch.int64
        assert split.images.min() == 0
        assert split.images.max() == 1
    assert torch.bincount(data.test.labels).tolist() == class_counts(torch.from_numpy(load_digits()["target"]), 360)


def test_training_images_alone_are_shifted_and_are_the_same_ones():
    data, still = load_data(settings(shift=2)), load_data(settings())
    assert data.validation is not None
    assert (data.train.shift, data.validation.shift, data.test.shift) == (2, 0, 0)
    assert (data.train.views, data.validation.views, data.test.views) == (25, 1, 1)
    assert data.fingerprint == still.fingerprint
    images, labels = data.train.take(torch.arange(25) + 25 * 7)
    assert torch.equal(images[0], still.train.images[7])
    assert torch.equal(images[1, :, :, :-1], still.train.images[7][:, :, 1:])
    assert len({image.numpy().tobytes() for image in images}) == 25
    assert labels.tolist() == 25 * [int(still.train.labels[7])]


def test_digits_test_set_depends_on_no_setting():
    first, second = load_data(settings()), load_data(settings(validation=0, split_seed=9))
    assert torch.equal(first.test.images, second.test.images)
    assert first.fingerprint == load_data(settings()).fingerprint != second.fingerprint


def test_digits_pixels_are_the_exact_bilinear_values():
    position = np.clip((np.arange(28) * 2 + 1) * 2 - 7, 0, 98)  # in fourteenths of a source pixel
    weights = np.zeros((28, 8), np.int64)
    low, part = position // 14, position % 14
    weights[np.arange(28), low] += 14 - part
    weights[np.arange(28), np.minimum(low + 1, 7)] += part
    exact = weights @ load_digits()["images"].astype(np.int64) @ weights.T
    expected = torch.from_numpy(exact.astype(np.float64) / (14 * 14 * 16)).float()
    data = load_data(settings(validation=0))
    images = torch.cat([data.train.images, data.test.images]).flatten(1).tolist()
    assert sorted(images) == sorted(expected.flatten(1).tolist())


def test_digits_say_that_files_are_not_used(caplog):
    with caplog.at_level(logging.WARNING, "kdx.data"):
        load_data(settings(download=True))
    assert "have no effect" in caplog.text


@pytest.mark.parametrize("name", DATASETS.names())
def test_every_data_set_has_its_yaml_with_a_first_line_that_says_what_it_is(name):
    schema = DATASETS.find(name, "dataset.name")
    text = (CONF / f"{name}.yaml").read_text(encoding="utf-8")
    content = OmegaConf.to_container(OmegaConf.create(text))
    content.pop("defaults", None)
    assert schema(**content).name == name
    assert text.startswith("# ")


def test_settings_are_read_without_torch():
    code = "import sys, kdx.config.datasets; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
