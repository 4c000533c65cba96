"""From stored pixels to the float32 images that networks see."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

CHUNK = 1000


@dataclass(frozen=True)
class Preprocessing:
    """How stored pixels (N, C, H, W) become float32 images: `apply(pixels, *constants)`, image by image.

    `name` describes it and is part of fingerprints, so it must change when the result does. `fit` computes the
    constants from the stored training pixels. With `per_batch` the stored pixels stay in memory (a quarter of the size
    if they are bytes) and each mini-batch is preprocessed when it is used; otherwise everything is preprocessed once,
    at load.
    """

    name: str
    apply: Callable[..., Tensor]
    fit: Callable[[Tensor], tuple[Tensor, ...]] | None = None
    per_batch: bool = False
    constants: tuple[Tensor, ...] = ()

    def __call__(self, pixels: Tensor) -> Tensor:
        """The float32 images of stored pixels (batch, C, H, W)."""
        return self.apply(pixels, *self.constants)

    def fitted(self, training_pixels: Tensor) -> "Preprocessing":
        """The same preprocessing with its constants computed from the stored training pixels."""
        return self if self.fit is None else replace(self, constants=self.fit(training_pixels))

    def to(self, device: torch.device | str) -> "Preprocessing":
        """The same preprocessing with its constants on `device`."""
        return replace(self, constants=tuple(constant.to(device) for constant in self.constants))


def scale(pixels: Tensor) -> Tensor:
    """Bytes (0 to 255) as float32 in [0, 1]."""
    return pixels.float().div_(255)


def symmetric(images: Tensor) -> Tensor:
    """Images in [0, 1] rescaled to [-1, 1], in place."""
    return images.mul_(2).sub_(1)


def mean_image(pixels: Tensor) -> Tensor:
    """The mean (C, H, W), in [0, 1], of bytes (N, C, H, W), summed in integers so that every machine gets the same."""
    total = torch.zeros(pixels.shape[1:], dtype=torch.int64, device=pixels.device)
    # In chunks, because torch widens a tensor as a whole before it adds.
    for chunk in pixels.split(CHUNK):
        total += chunk.sum(dim=0, dtype=torch.int64)
    return (total.double() / (255 * len(pixels))).float()


KERNEL, SIGMA, FLOOR = 7, 2.0, 1e-4


def local_contrast(images: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Subtractive and divisive local contrast normalisation of images (N, C, H, W), each channel by itself.

    `rows` and `columns` are the `blur_matrix` of the height and of the width.

    Jarrett et al. 2009, sec. 3.1: v = x - w*x and y = v / max(mean(s), s) with s = sqrt(w*v^2). The window w is a
    Gaussian of 7x7 pixels with sigma 2 and s is at least 1e-4, as in pylearn2's LeCunLCN, which the Maxout paper
    applied to SVHN; at the border the weights that lie in the image are scaled to sum 1, as in Torch7's
    SpatialContrastiveNormalization (zeros around the image would draw a frame).
    """
    centred = images - rows @ images @ columns.T
    # Rounding can make a zero variance negative.
    deviation = (rows @ centred.square() @ columns.T).clamp_(min=0).sqrt_()
    return centred / deviation.maximum(deviation.mean(dim=(2, 3), keepdim=True)).clamp_(min=FLOOR)


def blur_matrix(size: int) -> Tensor:
    """(size, size): row i has the weights of the window around pixel i, so `rows @ image @ columns.T` is w*image."""
    distance = torch.arange(size).unsqueeze(0) - torch.arange(size).unsqueeze(1)
    weights = torch.exp(-distance.double().square() / (2 * SIGMA**2)).where(distance.abs() <= KERNEL // 2, 0.0)
    return (weights / weights.sum(dim=1, keepdim=True)).float()


PER_BATCH = {
    "scale": Preprocessing("0..255 scaled to [0,1], batch by batch", scale, per_batch=True),
    "symmetric": Preprocessing(
        "0..255 scaled to [-1,1], batch by batch", lambda pixels: symmetric(scale(pixels)), per_batch=True
    ),
    "per-pixel-mean": Preprocessing(
        "0..255 scaled to [0,1] less the mean training image, batch by batch",
        lambda pixels, mean: scale(pixels).sub_(mean),
        lambda pixels: (mean_image(pixels),),
        per_batch=True,
    ),
    "local-contrast": Preprocessing(
        "0..255 scaled to [0,1], local contrast normalisation 7x7 sigma 2, batch by batch",
        lambda pixels, rows, columns: local_contrast(scale(pixels), rows, columns),
        lambda pixels: tuple(blur_matrix(size) for size in pixels.shape[2:]),
        per_batch=True,
    ),
}
"""The choices of `dataset.preprocessing` for data sets whose images stay in memory as bytes."""
