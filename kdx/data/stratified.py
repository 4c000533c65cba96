"""Drawing samples so that every class keeps its share."""

import torch
from torch import Tensor


def class_counts(labels: Tensor, count: int) -> list[int]:
    """How many of `count` samples each class gets: its exact share, rounded by the largest remainder."""
    total = len(labels)
    # Integers throughout, so that the counts are exact; equal remainders go to the lower class.
    shares = [divmod(count * size, total) for size in torch.bincount(labels).tolist()]
    counts = [whole for whole, _ in shares]
    by_remainder = sorted(range(len(shares)), key=lambda label: -shares[label][1])
    for label in by_remainder[: count - sum(counts)]:
        counts[label] += 1
    return counts


def stratified_choice(labels: Tensor, count: int, seed: int) -> Tensor:
    """A boolean mask (N,) that picks `count` <= N of the samples with int64 `labels` (N,), at random by class."""
    shuffled = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    shuffled_labels = labels[shuffled]
    chosen = torch.zeros(len(labels), dtype=torch.bool)
    for label, size in enumerate(class_counts(labels, count)):
        chosen[shuffled[shuffled_labels == label][:size]] = True
    return chosen
