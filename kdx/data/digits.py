"""scikit-learn's 1,797 handwritten digits: real images without any download."""

import hashlib
import logging

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor
from torch.nn import functional

from kdx.config.datasets import DigitsSettings
from kdx.data.dataset import Data, build_data
from kdx.data.preprocessing import Preprocessing, symmetric
from kdx.data.splits import stratified_choice
from kdx.errors import UserError

log = logging.getLogger(__name__)


TEST_SAMPLES = 360
# The test set is the same whatever the settings, so that results of different splits can be compared.
TEST_SEED = 1797
# Hash of the 64 pixels (0 to 16) of every image and of the labels, a byte each.
SHA256 = "87ff0c9e40dc7e2c0e34e7257799c2e3f3aec1a016363bb11cad869ec428a826"


def load(settings: DigitsSettings) -> Data:
    """The digits as float32 (N, 1, 28, 28), in [0, 1] or [-1, 1].

    Raises UserError for an impossible split, and if scikit-learn's images are not the known ones.
    """
    if settings.root is not None or settings.download:
        log.warning("digits: dataset.root and dataset.download have no effect, since the images need no files")
    flat, targets = load_digits(return_X_y=True)
    if hashlib.sha256(b"".join(each.astype(np.uint8).tobytes() for each in (flat, targets))).hexdigest() != SHA256:
        raise UserError(
            "dataset.name: 'digits' has other images in this scikit-learn than the 1,797 that kdx knows; install"
            " scikit-learn again, or use another data set"
        )
    pixels, labels = torch.tensor(flat).reshape(-1, 1, 8, 8), torch.tensor(targets).long()
    test = stratified_choice(labels, TEST_SAMPLES, TEST_SEED)
    train, test = (pixels[~test], labels[~test]), (pixels[test], labels[test])
    return build_data(settings, train, test, PREPROCESSING[settings.preprocessing])


def _enlarge(pixels: Tensor) -> Tensor:
    # In float64 the result, rounded to float32, is exact: every machine gets the same pixels and fingerprint.
    enlarged = functional.interpolate(pixels.double() / 16, size=(28, 28), mode="bilinear", align_corners=False)
    return enlarged.float().clamp(0, 1)


PREPROCESSING = {
    "scale": Preprocessing("0..16 scaled to [0,1], 8x8 resized to 28x28 bilinearly", _enlarge),
    "symmetric": Preprocessing(
        "0..16 scaled to [-1,1], 8x8 resized to 28x28 bilinearly", lambda pixels: symmetric(_enlarge(pixels))
    ),
}
"""The choices of `dataset.preprocessing`."""
