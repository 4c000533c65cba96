"""Preprocessing: exact where it can be, and local contrast normalisation against its definition."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from kdx.config.compose import compose_config
from kdx.data import load_data
from kdx.data.preprocessing import PER_BATCH, mean_image

SYMMETRIC = "dataset.preprocessing=symmetric"


def pixels(count: int = 3, height: int = 12, width: int = 9, seed: int = 0) -> Tensor:
    numbers = torch.Generator().manual_seed(seed)
    return torch.randint(256, (count, 2, height, width), generator=numbers, dtype=torch.uint8)


def prepared(name: str, images: Tensor) -> Tensor:
    return PER_BATCH[name].fitted(images)(images)


def windowed(image: np.ndarray) -> np.ndarray:
    """The Gaussian mean of the 7x7 window around every pixel, over what of it lies in the image: by its definition."""
    height, width = image.shape
    result = np.zeros((height, width))
    for row in range(height):
        for column in range(width):
            total = weights = 0.0
            for i in range(max(row - 3, 0), min(row + 4, height)):
                for j in range(max(column - 3, 0), min(column + 4, width)):
                    weight = math.exp(-((i - row) ** 2 + (j - column) ** 2) / (2 * 2.0**2))
                    total, weights = total + weight * image[i, j], weights + weight
            result[row, column] = total / weights
    return result


def test_local_contrast_is_that_of_jarrett_et_al():
    images = pixels()
    result = prepared("local-contrast", images)
    for sample, channel in np.ndindex(3, 2):
        image = images[sample, channel].double().numpy() / 255
        centred = image - windowed(image)
        deviation = np.sqrt(windowed(centred**2))
        expected = centred / np.maximum(deviation, deviation.mean())
        np.testing.assert_allclose(result[sample, channel].numpy(), expected, atol=2e-5)


def test_local_contrast_forgets_brightness_and_contrast_but_not_in_flat_images():
    dark = pixels() // 4
    bright = dark * 2 + 60
    torch.testing.assert_close(prepared("local-contrast", dark), prepared("local-contrast", bright), atol=1e-4, rtol=0)
    flat = torch.full((1, 1, 8, 8), 200, dtype=torch.uint8)
    assert prepared("local-contrast", flat).abs().max() < 0.01


@pytest.mark.parametrize("name", PER_BATCH)
def test_every_image_is_preprocessed_by_itself(name):
    images = pixels(5)
    fitted = PER_BATCH[name].fitted(images)
    before = images.clone()
    assert fitted(images).dtype == torch.float32
    torch.testing.assert_close(torch.cat([fitted(image) for image in images.split(1)]), fitted(images))
    assert torch.equal(images, before)


def test_a_mirrored_image_is_normalised_to_the_mirror_image():
    images = pixels()
    mirrored = prepared("local-contrast", images.flip(3))
    torch.testing.assert_close(mirrored, prepared("local-contrast", images).flip(3), atol=1e-5, rtol=0)


def test_the_mean_image_is_exact_whatever_the_chunks():
    images = pixels(2345, 3, 2)
    expected = (images.numpy().astype(np.int64).sum(axis=0) / (255 * 2345)).astype(np.float32)
    assert np.array_equal(mean_image(images).numpy(), expected)


def test_scale_is_a_division_by_255():
    images = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16)
    assert np.array_equal(prepared("scale", images).numpy(), images.numpy() / np.float32(255))


def test_constants_move_with_the_preprocessing():
    moved = PER_BATCH["per-pixel-mean"].fitted(pixels()).to("meta")
    assert [constant.device.type for constant in moved.constants] == ["meta"]


def test_symmetric_lies_in_minus_one_to_one():
    images = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16)
    expected = images.numpy().astype(np.float64) / 127.5 - 1
    np.testing.assert_allclose(prepared("symmetric", images).numpy(), expected, atol=1e-7)
    scaled, symmetric = (load_data(compose_config(["dataset=digits", *words]).dataset) for words in ([], [SYMMETRIC]))
    assert scaled.fingerprint != symmetric.fingerprint
    for before, after in zip(scaled.test.batches(), symmetric.test.batches(), strict=True):
        assert torch.equal(2 * before[0] - 1, after[0])
