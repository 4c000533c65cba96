"""Bayesian dark knowledge: a student learns from a teacher while it is sampled (Korattikara et al. 2015)."""

from torch import Tensor, nn

from kdx.layers import NoisyLayer
from kdx.methods.langevin import LangevinDynamics, normal_prior
from kdx.methods.part import Context
from kdx.methods.soft_labels import soft_cross_entropy
from kdx.objective import Schedule, Step, Term
from kdx.ranges import Weight


class NoisyInputs(NoisyLayer):
    """Adds normal noise of the given standard deviation, in units of the pixels, while there is noise."""

    def __init__(self, deviation: float) -> None:
        super().__init__()
        self.deviation = deviation

    def forward(self, inputs: Tensor) -> Tensor:
        """The inputs, moved by `deviation` times `noise`."""
        return inputs if self.noise is None else inputs + self.deviation * self.noise

    def new_noise(self, inputs: Tensor, outputs: Tensor) -> Tensor:
        """One number for every input."""
        return inputs.new_empty(inputs.shape)

    def draw(self, noise: Tensor, generator) -> None:
        """Standard normal numbers."""
        noise.normal_(generator=generator)


class StudentAndSampler(nn.Module):
    """Two networks that are trained in one step: the student, and the teacher that is sampled."""

    def __init__(self, student: nn.Module, sampler: nn.Module, input_noise: float) -> None:
        super().__init__()
        self.student, self.sampler, self.inputs = student, sampler, NoisyInputs(input_noise)

    def forward(self, images: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The student's logits (batch, classes) for noisy images, and those of the sampler.

        `sampler` are its logits for the images as they are, by which it is sampled; `targets` those for the noisy ones,
        which are constant for the student.
        """
        noisy = self.inputs(images)
        targets = self.sampler(noisy).detach()
        return self.student(noisy), {"sampler": self.sampler(images).float(), "targets": targets.float()}


class DarkKnowledge(LangevinDynamics):
    """The sampler's posterior by Langevin dynamics; Adam on the student, with the penalty `student_prior` / 2N |w|^2.

    The student's target is the sample at the beginning of the step, where the paper takes the one that the step ends
    with (algorithm 1): either is a draw from the same chain.
    """

    student_prior: Weight

    @property
    def learns_labels(self) -> bool:
        """The sampler does."""
        return True

    def swap(self, student: nn.Module) -> nn.Module:
        """Nothing is substituted; raises ValueError where there is no sampler beside the student."""
        if not isinstance(student, StudentAndSampler):
            raise ValueError("method.parts: dark-knowledge needs method.procedure=dark-knowledge")
        return student

    def sampled(self, context: Context) -> list[str]:
        """The names of the sampler's parameters."""
        return [name for name, _ in context.student.named_parameters() if name.startswith("sampler.")]

    def terms(self, context: Context) -> dict[str, Term]:
        """`cross_entropy` and `prior` are the sampler's; `distillation` and `student_prior` the student's."""
        learnt = [name for name, _ in context.student.named_parameters() if name.startswith("student.")]

        def student_prior(step: Step) -> Tensor:
            return normal_prior((step.parameters[name] for name in learnt), context.examples)

        return {
            "cross_entropy": Term(lambda step: step.cross_entropy(step.activations["sampler"])),
            **super().terms(context),
            "distillation": Term(lambda step: soft_cross_entropy(step.logits, step.activations["targets"])),
            "student_prior": Term(student_prior, weight="student_prior"),
        }

    def numbers(self) -> dict[str, Schedule]:
        """Those of the sampler, and the constant weight of the student's penalty."""
        return super().numbers() | {"student_prior": lambda epoch: self.student_prior}

    def finalize(self, student: nn.Module) -> nn.Module:
        """The student alone."""
        assert isinstance(student, StudentAndSampler), "only what `swap` accepted is finalized"
        return student.student
