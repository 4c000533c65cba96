"""`kdx export`: write a finished run's student as a verified file."""

from collections.abc import Sequence
from pathlib import Path

from kdx.commands import outputs_folder
from kdx.errors import UserError
from kdx.words import names_and_settings

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
    from kdx.report.finished import finished_run

    run = finished_run(runs[0], outputs_folder())
    out = Path(settings["out"]) if settings.get("out") else None
    from kdx.export import export
    from kdx.report.export import print_export

    exported = export(run, settings["format"], settings.get("values", "fp32"), out)
    print_export(exported)
    print(exported.path)
    return 0
