"""The table of an export."""

from kdx.export import Exported
from kdx.report import formatting, layout


def print_export(exported: Exported) -> None:
    """Print an exported file's figures, beside those of the student of its run, on standard output."""
    screen = layout.console()
    content = layout.table(
        layout.words(""), layout.numbers("student"), layout.numbers(exported.format), layout.words("")
    )
    difference = exported.test_error_percent - exported.student_test_error_percent
    teacher = None if exported.teacher_bytes is None else exported.teacher_bytes / exported.bytes
    rows = [
        (
            "test error %",
            formatting.percent(exported.student_test_error_percent),
            formatting.percent(exported.test_error_percent),
            f"{difference:+.2f} points" if difference else "equal",
        ),
        ("largest logit difference", "", f"{exported.logit_difference:.2g}", ""),
        _counts("parameters", exported.student_parameters, exported.parameters),
        _counts("multiplications", exported.student_multiplications, exported.multiplications),
        _counts("nonzero multiplications", exported.student_nonzero_multiplications, exported.nonzero_multiplications),
        (
            "file",
            formatting.size(exported.student_bytes),
            formatting.size(exported.bytes),
            ""
            if teacher is None
            else f"teacher {formatting.size(exported.teacher_bytes)}: {formatting.ratio(teacher)}",
        ),
    ]
    for row in rows:
        content.add_row(*row)
    title = exported.format if exported.values == "fp32" else f"{exported.format}, weights as {exported.values}"
    layout.show(screen, content, f"Export: {title}")
    screen.print("Read from disk again and compared with the student on the whole test set.")
    screen.print("The teacher has 4 bytes per weight and bias. Multiplications: for one image.")


def _counts(name: str, before: int, after: int) -> tuple[str, str, str, str]:
    fewer = f"{formatting.ratio(before / after)} fewer" if after and after != before else ""
    return name, formatting.count(before), formatting.count(after), fewer
