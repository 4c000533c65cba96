"""The data term: cross entropy with the labels."""

from kdx.methods.part import Context, Part
from kdx.objective import Term


class Labels(Part):
    """Cross entropy with the labels, a mean over the batch (VS eq. 4)."""

    @property
    def learns_labels(self) -> bool:
        """True."""
        return True

    def terms(self, context: Context) -> dict[str, Term]:
        """`cross_entropy`, in nats."""
        return {"cross_entropy": Term(lambda step: step.cross_entropy(step.logits))}
