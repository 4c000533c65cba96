"""The plain data term."""

import torch.nn.functional as F

from kdx.methods.part import Context, Part
from kdx.objective import Term


class Labels(Part):
    """Cross entropy with the labels, a mean over the batch (VS eq. 4)."""

    def terms(self, context: Context) -> dict[str, Term]:
        """`cross_entropy`, in nats."""
        return {"cross_entropy": Term(lambda step: F.cross_entropy(step.logits, step.labels))}
