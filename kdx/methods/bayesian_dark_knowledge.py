"""Bayesian dark knowledge: a student is distilled from a teacher that is being sampled (Korattikara et al. 2015)."""

from copy import deepcopy

from torch import Tensor, nn

from kdx.config.ranges import Deviation, Weight
from kdx.config.schema import Config
from kdx.device.backend import Backend
from kdx.errors import UserError
from kdx.methods.distillation import soft_cross_entropy
from kdx.methods.fit import FitSpec, TrainingInputs, fit
from kdx.methods.langevin import LangevinDynamics, normal_prior
from kdx.methods.method import Method
from kdx.methods.modifier import Context, Hyperparameter
from kdx.methods.procedure import FitResult, Procedure
from kdx.models.layers import NoisyLayer
from kdx.training.objective import LossInputs, Term


class NoisyInputs(NoisyLayer):
    """Adds normal noise with standard deviation `deviation`, in units of the pixels, if noise is set."""

    def __init__(self, deviation: float) -> None:
        super().__init__()
        self.deviation = deviation

    def forward(self, inputs: Tensor) -> Tensor:
        """The inputs plus `deviation` times `noise`."""
        return inputs if self.noise is None else inputs + self.deviation * self.noise

    def new_noise(self, inputs: Tensor, outputs: Tensor) -> Tensor:
        """An empty buffer in the shape of the inputs."""
        return inputs.new_empty(inputs.shape)

    def draw(self, noise: Tensor, generator) -> None:
        """Fill `noise` with standard normal numbers."""
        noise.normal_(generator=generator)


class StudentAndSampler(nn.Module):
    """The two networks that are trained in one step: the student, and the teacher that is sampled by SGLD."""

    def __init__(self, student: nn.Module, sampler: nn.Module, input_noise: float) -> None:
        super().__init__()
        self.student, self.sampler, self.inputs = student, sampler, NoisyInputs(input_noise)

    def forward(self, images: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The student's logits (batch, classes) for noisy images, and two outputs of the sampler.

        `sampler` are its logits for the images without noise, by which it is sampled; `targets` its logits for the
        noisy images, which are constants for the student.
        """
        noisy = self.inputs(images)
        targets = self.sampler(noisy).detach()
        return self.student(noisy), {"sampler": self.sampler(images).float(), "targets": targets.float()}


class DarkKnowledge(LangevinDynamics):
    """The sampler follows Langevin dynamics; Adam trains the student, with the penalty `student_prior` / 2N |w|^2.

    The student's target is the sample at the beginning of the step. Algorithm 1 of Korattikara et al. 2015 takes the
    one at its end; both are draws from the same chain.
    """

    student_prior: Hyperparameter[Weight]

    @property
    def learns_labels(self) -> bool:
        """True: the sampler learns from the labels."""
        return True

    def replace_layers(self, student: nn.Module) -> nn.Module:
        """The student unchanged; raises ValueError if there is no sampler beside it."""
        if not isinstance(student, StudentAndSampler):
            raise ValueError("method.parts: dark-knowledge needs method.procedure=dark-knowledge")
        return student

    def sampled(self, context: Context) -> list[str]:
        """The names of the sampler's parameters."""
        return [name for name, _ in context.student.named_parameters() if name.startswith("sampler.")]

    def terms(self, context: Context) -> dict[str, Term]:
        """`cross_entropy` and `prior` are the sampler's; `distillation` and `student_prior` the student's."""
        learnt = [name for name, _ in context.student.named_parameters() if name.startswith("student.")]

        def student_prior(step: LossInputs) -> Tensor:
            return normal_prior((step.parameters[name] for name in learnt), context.examples)

        return {
            "cross_entropy": Term(lambda step: step.cross_entropy(step.activations["sampler"])),
            **super().terms(context),
            "distillation": Term(lambda step: soft_cross_entropy(step.logits, step.activations["targets"])),
            "student_prior": Term(student_prior, weight="student_prior"),
        }

    def finalize(self, student: nn.Module) -> nn.Module:
        """The student without the sampler."""
        assert isinstance(student, StudentAndSampler), "only what `replace_layers` accepted is finalized"
        return student.student


class BayesianDarkKnowledge(Procedure):
    """One fit of student and sampler together; the student sees images with normal noise of deviation `input_noise`."""

    input_noise: Deviation

    @property
    def makes_teacher(self) -> bool:
        """True: sampling starts from the initial weights of the configured teacher."""
        return True

    def unused_settings(self) -> dict[str, str]:
        """The settings by which a teacher would be trained."""
        keys = ("teacher.trainer", "teacher.dropout", "teacher.input_dropout")
        return dict.fromkeys(keys, "a teacher that is sampled and never trained")

    def check(self, config: Config) -> None:
        """Raise UserError for an average of the weights, which would average the sampler too."""
        if config.trainer.average is not None:
            raise UserError(
                f"trainer.average: {config.trainer.average} is not allowed with method={config.method['name']}, whose"
                " teacher is the last sample and not their average; allowed: null"
            )

    def run(
        self, network: nn.Module, method: Method, inputs: TrainingInputs, spec: FitSpec, backend: Backend
    ) -> FitResult:
        """Fit both networks; the outcome is the student, with the last sample as its teacher."""
        assert inputs.teacher is not None, "the inputs of a procedure that makes its teacher have the initial one"
        both = StudentAndSampler(network, deepcopy(inputs.teacher), self.input_noise)
        student, progress = fit(both, method, inputs, spec, backend)
        return FitResult(student, progress, teacher=both.sampler)
