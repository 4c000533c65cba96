"""Several networks that answer together."""

from collections.abc import Sequence
from math import log

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Ensemble(nn.Module):
    """Networks `member1`, `member2`, ... whose predictions are averaged; its size is that of all of them.

    Averaged is what SGLD predicts with: the posterior predictive, by Monte Carlo (Welling and Teh 2011; SPEC 6).
    """

    def __init__(self, members: Sequence[nn.Module]) -> None:
        super().__init__()
        for number, member in enumerate(members, 1):
            self.add_module(f"member{number}", member)

    def forward(self, images: Tensor) -> Tensor:
        """The logarithm of the mean softmax, (batch, classes), which are logits too."""
        members = list(self.children())
        answers = torch.stack([F.log_softmax(member(images), dim=1) for member in members])
        return torch.logsumexp(answers, dim=0) - log(len(members))
