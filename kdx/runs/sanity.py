"""Warnings about figures that must not be taken for results."""

from kdx.runs.reader import Figures, number

# For runs without the number of classes in metrics.json, which all had ten.
CLASSES = 10


def sanity_warnings(figures: Figures) -> list[str]:
    """Why a run's figures are worthless, or of another method than the run's name says, one line each."""
    found = []
    if number(figures, "lambda_V_reached") == 0:
        found.append("the KL had no weight in any epoch: its warm-up begins where the training ends.")
    test, teacher = number(figures, "test_error_percent"), number(figures, "teacher_test_error_percent")
    if number(figures, "nonzero_weights") == 0:
        found.append("the student is pruned to nothing: every weight is zero, R_s is undefined.")
    chance = _chance_error_percent(number(figures, "classes") or CLASSES)
    if test is not None and test >= chance:
        found.append(f"the student is no better than chance: test error {test:.2f} %.")
    if teacher is not None and teacher >= chance:
        found.append(f"the teacher is no better than chance: test error {teacher:.2f} %.")
    return found


def _chance_error_percent(classes: float) -> float:
    """The error that counts as chance: that of guessing minus 5 points, or half of guessing's accuracy if less."""
    right = 100 / classes
    return 100 - right - min(5, right / 2)
