"""`kdx export`: write a finished run's student as a verified file."""

from collections.abc import Sequence
from pathlib import Path

from kdx import console, formatting
from kdx.cli.arguments import names_and_settings, outputs_folder
from kdx.errors import UserError
from kdx.export import Exported

HELP = """\
usage: kdx export RUN format=FORMAT [values=VALUES] [out=FILE]

Write the student of a finished run as a file, read it again and compare it with the student on the whole test set.
RUN is the run's folder, or the beginning of its id.

format:
  shrink   the dense network without neurons, channels and pixels that cannot matter, .safetensors
  csr      compressed sparse rows for kdx.deploy, which needs numpy and scipy only, .safetensors
  onnx     the shrunk network for onnxruntime, any batch size
  torch    the shrunk network for torch.export.load, any batch size

values     of csr: fp32 (default), fp16, or int8 with one factor per row
out        the file; by default one in the folder exports of the run"""


def main(words: Sequence[str]) -> int:
    """`kdx export`: write a finished run's student as a verified file; returns the exit code."""
    runs, settings = names_and_settings("export", words, ("format", "values", "out"))
    if len(runs) > 1:
        raise UserError(f"export: '{runs[1]}' is a second run; allowed: one")
    if "format" not in settings:
        raise UserError("format: no value is given; allowed: csr, onnx, shrink, torch")
    from kdx.runs.reader import finished_run

    run = finished_run(runs[0], outputs_folder())
    out = Path(settings["out"]) if settings.get("out") else None
    from kdx.export import export

    exported = export(run, settings["format"], settings.get("values", "fp32"), out)
    print_export(exported)
    print(exported.path)
    return 0


def print_export(exported: Exported) -> None:
    """Print an exported file's figures, beside those of the student of its run, on standard output."""
    screen = console.console()
    content = console.table(
        console.words(""), console.numbers("student"), console.numbers(exported.format), console.words("")
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
    console.show(screen, content, f"Export: {title}")
    screen.print("Read from disk again and compared with the student on the whole test set.")
    screen.print("The teacher has 4 bytes per weight and bias. Multiplications: for one image.")


def _counts(name: str, before: int, after: int) -> tuple[str, str, str, str]:
    fewer = f"{formatting.ratio(before / after)} fewer" if after and after != before else ""
    return name, formatting.count(before), formatting.count(after), fewer
