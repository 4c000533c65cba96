"""Several networks as one: the mean of their predictions, or of their centred logits."""

from collections.abc import Sequence
from math import log

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Ensemble(nn.Module):
    """Networks `member1`, `member2`, ... whose predictions are averaged; all their parameters count.

    The mean of SGLD's samples is a Monte Carlo estimate of the posterior predictive (Welling and Teh 2011).
    """

    def __init__(self, members: Sequence[nn.Module]) -> None:
        super().__init__()
        for number, member in enumerate(members, 1):
            self.add_module(f"member{number}", member)

    def forward(self, images: Tensor) -> Tensor:
        """The logarithm of the mean softmax, (batch, classes), which can be used as logits."""
        members = list(self.children())
        answers = torch.stack([F.log_softmax(member(images), dim=1) for member in members])
        return torch.logsumexp(answers, dim=0) - log(len(members))


def mean_logits(logits: Sequence[Tensor]) -> Tensor:
    """The mean over several networks of their logits (..., classes), centred over the classes; one network's unchanged.

    These are the logits of the geometric mean of their predictions (Noisy Teachers sec. 3.2). The mean of float16
    logits is float32.
    """
    if len(logits) == 1:
        return logits[0]
    wide = [each.float() if each.dtype == torch.float16 else each for each in logits]
    return torch.stack([each - each.mean(dim=-1, keepdim=True) for each in wide]).mean(dim=0)


class MeanLogits(nn.Module):
    """Several networks as one, by `mean_logits`: images (batch, C, H, W) to logits (batch, classes)."""

    def __init__(self, networks: Sequence[nn.Module]) -> None:
        super().__init__()
        self.networks = nn.ModuleList(networks)

    def forward(self, images: Tensor) -> Tensor:
        """The mean logits of all networks."""
        return mean_logits([network(images) for network in self.networks])
