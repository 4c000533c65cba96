"""Bayesian dark knowledge as a procedure: the configured teacher is sampled beside the student, not trained."""

from copy import deepcopy

from torch import nn

from kdx.config import Config
from kdx.device import Engine
from kdx.errors import UserError
from kdx.fit import Lesson, Plan, fit
from kdx.methods import Method
from kdx.methods.dark_knowledge import StudentAndSampler
from kdx.procedures.procedure import Outcome, Procedure
from kdx.ranges import Deviation


class DarkKnowledgeFit(Procedure):
    """One fit of student and sampler together; the student sees images with normal noise of deviation `input_noise`."""

    input_noise: Deviation

    @property
    def makes_teacher(self) -> bool:
        """True: sampling starts from the initial weights of the configured teacher."""
        return True

    def idle(self) -> dict[str, str]:
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

    def run(self, network: nn.Module, method: Method, lesson: Lesson, plan: Plan, engine: Engine) -> Outcome:
        """Fit both networks; the outcome is the student, with the last sample as its teacher."""
        assert lesson.teacher is not None, "the lesson of a procedure that makes its teacher has the initial one"
        both = StudentAndSampler(network, deepcopy(lesson.teacher), self.input_noise)
        student, progress = fit(both, method, lesson, plan, engine)
        return Outcome(student, progress, teacher=both.sampler)
