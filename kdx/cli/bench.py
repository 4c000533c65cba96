"""`kdx bench`: the inference table of finished runs."""

from collections.abc import Sequence

from kdx.cli.arguments import names_and_settings, outputs_folder
from kdx.errors import UserError

HELP = """\
usage: kdx bench RUN ... [seconds=S]

Time the students of finished runs and their teachers: dense, masked, CSR, shrunk and as ONNX, for batches of 1, 32
and 1024 images, on one CPU thread and on all; the times go to bench.csv in the run's folder, the machine to bench.json.
All are timed in turn, in rounds, and compared within each; a comparison that the rounds do not agree on is too noisy,
and where other programs take the cores nothing is written.
RUN is a run's folder, or the beginning of its id.

seconds    for each runtime and batch, 0.5 by default"""


def main(words: Sequence[str]) -> int:
    """`kdx bench`: the inference table of finished runs; returns the exit code."""
    words, settings = names_and_settings("bench", words, ("seconds",))
    try:
        seconds = float(settings.get("seconds", 0.5))
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < 3600:
        raise UserError(f"seconds: '{settings['seconds']}' is not allowed; allowed: a number above 0 and below 3600")
    from kdx.runs.reader import finished_run

    runs = [finished_run(word, outputs_folder()) for word in words]
    from kdx.bench.timing import bench, write_bench
    from kdx.cli.bench_tables import print_bench

    for run in runs:
        measured = bench(run, seconds)
        write_bench(measured)
        print_bench(measured)
    return 0
