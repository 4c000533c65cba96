"""Verification of an exported file: its logits for the whole test set are compared with the student's."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from kdx.data.dataset import Split
from kdx.errors import RunFailed
from kdx.models.layers import eval_mode

# Allowed difference relative to the largest logit: float32 sums of some thousand terms in another order differ by
# about 1e-6.
TOLERANCE = 1e-4

Run = Callable[[Tensor], Tensor]
"""An exported network in its own runtime: images, float32 (batch, C, H, W), to logits (batch, classes)."""


class NotTheSame(RunFailed):
    """An exported file does not compute what the student does; the message is one line."""


@dataclass(frozen=True)
class Verified:
    """The test errors, in percent, of export and student, and the largest difference between their logits."""

    test_error_percent: float
    student_test_error_percent: float
    logit_difference: float


def verify(run: Run, exact: nn.Module, student: nn.Module, test: Split) -> Verified:
    """Compare `run` with `exact`, the network that it must equal, and with `student`, before its weights were rounded.

    Raises NotTheSame if the test error differs from that of `exact`, or a logit by more than rounding allows.
    """
    answers = [_logits(each, test) for each in (run, exact, student)]
    exported, expected, original = answers
    if exported.shape != expected.shape:
        raise NotTheSame(f"the export gives logits {tuple(exported.shape)}, expected {tuple(expected.shape)}")
    error, expected_error, student_error = (_error_percent(logits, test.labels) for logits in answers)
    difference, largest = _largest(exported - expected), _largest(expected)
    # Written so that NaN does not pass.
    if not difference <= TOLERANCE * max(1.0, largest):
        raise NotTheSame(f"the export's logits differ by {difference:.3g} (largest logit {largest:.3g})")
    if error != expected_error:
        raise NotTheSame(f"the export's test error is {error:.4f} %, expected {expected_error:.4f} %")
    return Verified(error, student_error, _largest(exported - original))


def _logits(run: Run | nn.Module, test: Split) -> Tensor:
    if isinstance(run, nn.Module):
        with eval_mode(run):
            return torch.cat([run(images) for images, _ in test.batches()])
    return torch.cat([run(images) for images, _ in test.batches()])


def _error_percent(logits: Tensor, labels: Tensor) -> float:
    return 100.0 * (logits.argmax(dim=1) != labels).sum().item() / len(labels)


def _largest(logits: Tensor) -> float:
    return logits.abs().max().item()
