"""Noisy stripes, which lie or stand."""

import torch
from torch import Tensor

from kdx.config.datasets import DatasetSettings
from kdx.data.dataset import Data, build_data
from kdx.data.preprocessing import PER_BATCH


class Stripes(DatasetSettings):
    """1x8x8 pixels, drawn anew from the same seed every time."""

    image_shape = (1, 8, 8)
    classes = 2

    contrast: int

    def load(self) -> Data:
        """200 images to train on and 100 to test."""
        return build_data(self, self._drawn(200, 1), self._drawn(100, 2), PER_BATCH[self.preprocessing])

    def _drawn(self, count: int, seed: int) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(seed)
        noise = torch.randint(256 - self.contrast, (count, 1, 8, 8), generator=generator)
        labels = torch.arange(count) % 2
        lying = (torch.arange(8) % 2 * self.contrast).expand(8, 8)
        return (noise + torch.where(labels.reshape(-1, 1, 1, 1) == 1, lying, lying.T)).byte(), labels
