"""An ensemble: several networks whose predictions are averaged."""

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
