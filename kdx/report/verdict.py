"""Results that must not pass for results."""

from kdx.report.finished import Figures, number

# Every data set has ten classes: guessing is wrong 90 % of the time. Five points below that is no skill either.
CHANCE_ERROR_PERCENT = 100 * (1 - 1 / 10) - 5


def warnings_of(figures: Figures) -> list[str]:
    """What makes the figures of a run worthless, one line each."""
    found = []
    test, teacher = number(figures, "test_error_percent"), number(figures, "teacher_test_error_percent")
    if number(figures, "nonzero_weights") == 0:
        found.append("the student is pruned to nothing: every weight is zero, R_s is undefined.")
    if test is not None and test >= CHANCE_ERROR_PERCENT:
        found.append(f"the student is no better than chance: test error {test:.2f} %.")
    if teacher is not None and teacher >= CHANCE_ERROR_PERCENT:
        found.append(f"the teacher is no better than chance: test error {teacher:.2f} %.")
    return found
