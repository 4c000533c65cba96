"""Results that must not pass for results."""

from kdx.report.finished import Figures, number

# Runs from before metrics.json had the number of classes were all of ten.
CLASSES = 10


def warnings_of(figures: Figures) -> list[str]:
    """What makes the figures of a run worthless, or those of another method than it says, one line each."""
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
    """The test error without skill: that of guessing, less five points or half of what guessing gets right."""
    right = 100 / classes
    return 100 - right - min(5, right / 2)
