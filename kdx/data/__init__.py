"""Image data sets as tensors in memory; `load_data` is the way in."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kdx.data.dataset import Data
    from kdx.data.settings import DatasetSettings


def load_data(settings: "DatasetSettings") -> "Data":
    """Load the data set that `settings` names, on the CPU; raises UserError when its files are missing or damaged."""
    from kdx.data import cifar10, digits, mnist, svhn  # here, so that reading settings does not import torch

    match settings.name:
        case "mnist":
            return mnist.load(settings)
        case "digits":
            return digits.load(settings)
        case "cifar10":
            return cifar10.load(settings)
        case "svhn":
            return svhn.load(settings)
