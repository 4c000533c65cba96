"""Block sparse regularisation over the teacher's and the student's weights (VS eqs. 8-11)."""

from collections.abc import Mapping
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from kdx.config.base import Settings
from kdx.config.ranges import Weight
from kdx.methods.modifier import Context, Hyperparameter, Modifier
from kdx.models.weights import weight_parameters
from kdx.training.objective import LossInputs, Monitor, Term

# l1_max is equation 10 as it is printed: the largest w, not the largest |w|, so that no negative weight is pulled.
Norm = Literal["l1_linf", "l1_l2", "l1_max"]
# Keeps the gradient of the square root finite where a whole group is zero.
EPSILON = 1e-12


def group_sizes(weights: list[Tensor], norm: Norm, axis: int, groups: int) -> Tensor:
    """The size (groups,) of each group m: its sum of squares (l1_l2), largest |w| (l1_linf) or largest w (l1_max).

    `weights` are matrices (out, in) or filters (out, in, kh, kw); `axis` 0 groups by output unit, 1 by input. A layer
    with fewer units than `groups` counts as zero-padded, as in VS, without the padded block being built; for the same
    reason the largest w is never below 0.
    """
    combined = torch.zeros(groups, device=weights[0].device)
    for weight in weights:
        others = [dim for dim in range(weight.dim()) if dim != axis]
        if norm == "l1_l2":
            combined = combined + _padded(weight.square().sum(dim=others), groups)
        else:
            entries = weight if norm == "l1_max" else weight.abs()
            combined = torch.maximum(combined, _padded(entries.amax(dim=others), groups))
    return combined


def block_norm(student: Tensor, teacher: Tensor | None, norm: Norm) -> Tensor:
    """Sum over groups of the norm of the joint block, from the group sizes of both networks (VS eqs. 9 and 10)."""
    if norm == "l1_l2":
        joint = student if teacher is None else student + teacher
        return torch.sqrt(joint + EPSILON).sum()
    return (student if teacher is None else torch.maximum(student, teacher)).sum()


class BlockShape(Settings):
    """The norm of the block, its grouping axis, and whether it includes the teacher's weights (VS fig. 4)."""

    norm: Norm
    teacher: bool
    axis: Annotated[int, Field(ge=0, le=1)]


class BlockSparsity(Modifier):
    """The norm of the block of teacher and student weights, weighted by `lambda_g` (VS eqs. 8-11)."""

    weight = "lambda_g"

    lambda_g: Hyperparameter[Weight]
    bsr: BlockShape

    @property
    def needs_teacher(self) -> bool:
        """Whether the block includes the teacher's weights."""
        return self.bsr.teacher

    @property
    def needs_single_teacher(self) -> str | None:
        """The setting that puts the weights of one teacher into the block."""
        return "method.bsr.teacher=true" if self.bsr.teacher else None

    def terms(self, context: Context) -> dict[str, Term]:
        """`bsr`; the teacher's share of every group is constant, so it is computed here, once."""
        names, groups, teacher = self._block(context)

        def bsr(step: LossInputs) -> Tensor:
            weights = [step.parameters[name] for name in names]
            return block_norm(group_sizes(weights, self.bsr.norm, self.bsr.axis, groups), teacher, self.bsr.norm)

        return {"bsr": Term(bsr, weight="lambda_g")}

    def monitors(self, context: Context) -> dict[str, Monitor]:
        """`bsr_student_wins`: the fraction of groups with student weights in which the student's norm is the larger.

        With l1_linf and l1_max the student has a gradient in these groups only, so a teacher with large weights should
        make it less sparse, although VS says sparser.
        """
        names, groups, teacher = self._block(context)
        if teacher is None:
            return {}

        def student_wins(parameters: Mapping[str, Tensor]) -> float:
            weights = [parameters[name] for name in names]
            occupied = max(weight.shape[self.bsr.axis] for weight in weights)
            student = group_sizes(weights, self.bsr.norm, self.bsr.axis, groups)
            return (student > teacher)[:occupied].float().mean().item()

        return {"bsr_student_wins": student_wins}

    def _block(self, context: Context) -> tuple[list[str], int, Tensor | None]:
        matrices = weight_parameters(context.student)
        names, weights = list(matrices), list(matrices.values())
        if context.teacher is None or not self.bsr.teacher:
            return names, max(weight.shape[self.bsr.axis] for weight in weights), None
        fixed = [weight.detach() for weight in weight_parameters(context.teacher).values()]
        groups = max(weight.shape[self.bsr.axis] for weight in [*weights, *fixed])
        return names, groups, group_sizes(fixed, self.bsr.norm, self.bsr.axis, groups)


def _padded(vector: Tensor, length: int) -> Tensor:
    return F.pad(vector, (0, length - len(vector)))
