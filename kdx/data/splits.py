"""Random choices of samples that keep the shares of the classes."""

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
    """A boolean mask (N,) of `count` <= N samples with int64 `labels` (N,), random, each class in proportion."""
    return _choice(labels, class_counts(labels, count), seed)


def balanced_choice(labels: Tensor, count: int, classes: int, seed: int) -> Tensor:
    """A mask, bool (N,), of `count` samples drawn at random, the same number of every class.

    A remainder goes to the lower classes; a class with too few samples gives all it has.
    """
    return _choice(labels, [count // classes + (label < count % classes) for label in range(classes)], seed)


def nested_choice(labels: Tensor, count: int, seed: int) -> Tensor:
    """A mask, bool (N,), of `count` <= N samples with each class in proportion; larger counts choose supersets.

    `stratified_choice` does not nest: by the largest remainder a class can lose a sample when `count` grows.
    """
    by_class = _shuffled_by_class(labels, seed)
    # Sainte-Lague: sample r of a class of n comes at (2r + 1) / n, so every beginning has the classes in proportion.
    numbers = [torch.arange(len(members), dtype=torch.float64) for members in by_class]
    places = torch.cat([(2 * number + 1) / len(number) for number in numbers])
    chosen = torch.zeros(len(labels), dtype=torch.bool)
    chosen[torch.cat(by_class)[places.argsort(stable=True)[:count]]] = True
    return chosen


def _choice(labels: Tensor, counts: list[int], seed: int) -> Tensor:
    chosen = torch.zeros(len(labels), dtype=torch.bool)
    for members, count in zip(_shuffled_by_class(labels, seed), counts, strict=False):
        chosen[members[:count]] = True
    return chosen


def _shuffled_by_class(labels: Tensor, seed: int) -> list[Tensor]:
    """The samples of each class, in an order that depends on the seed."""
    shuffled = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    shuffled_labels = labels[shuffled]
    return [shuffled[shuffled_labels == label] for label in range(len(torch.bincount(labels)))]
