"""The command line: subcommands, errors in one line, exit codes. Everything heavy is imported when it is needed."""

import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from kdx import __version__
from kdx.errors import UserError, nearest, one_line, unknown
from kdx.failure import RunFailed, describe, is_plain, recorded

DONE, FAILED, MISTAKE, INTERRUPTED = 0, 1, 2, 130

_HELP = """\
usage: kdx COMMAND ...

Compress image classifiers by knowledge distillation and variational sparsification.

commands:
  train [KEY=VALUE ...]   train a student and print its table (kdx train --help: all choices and keys)
  train -m KEY=A,B ...    the same for several values, and one summary over the seeds
  table RUN ...           the tables of finished runs again, by folder or run id
  reproduce TABLE ...     a paper's table beside the published numbers (kdx reproduce --list)
  plot DATASET            error over sparsity, of all runs and the published networks (kdx plot --help)
  export RUN format=F     a student as a file: shrink, csr, onnx or torch (kdx export --help)
  bench RUN ...           how fast students are, in every runtime (kdx bench --help)
  report [OUTPUTS]        all results as one HTML page (kdx report --help)

options:
  -h, --help              this text
  --version               the version

KDX_DATA is the folder of the data sets, KDX_OUTPUTS that of the results (outputs).
exit codes: 0 done, 1 failed, 2 mistake on the command line, 130 interrupted (the same command continues)"""

_TABLE_HELP = """\
usage: kdx table RUN ...

Print the tables of a finished run, or a comparison of several. RUN is a run's folder, or the beginning of its id."""

_PLOT_HELP = """\
usage: kdx plot DATASET [x=FIGURE] [y=FIGURE] [student=PATTERN] [method=PATTERN] [out=NAME]

Draw the finished runs of a data set and the networks that the papers print for it, as NAME.svg and NAME.png, with the
points in NAME.csv. Runs that differ in their seed only are one point with the 95 % interval.

x, y             figures of metrics.json: R_s and test_error_percent by default
student, method  only runs that match, such as method=st-*
out              outputs/plots/DATASET by default"""

_EXPORT_HELP = """\
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

_BENCH_HELP = """\
usage: kdx bench RUN ... [seconds=S]

Time the students of finished runs and their teachers: dense, masked, CSR, shrunk and as ONNX, for batches of 1, 32
and 1024 images, on one CPU thread and on all; the times go to bench.csv in the run's folder, the machine to bench.json.
RUN is a run's folder, or the beginning of its id.

seconds    for each runtime and batch, 0.5 by default"""

_REPORT_HELP = """\
usage: kdx report [OUTPUTS] [file=PATH]

Write every reproduced table and figure, every sweep and every finished run of the folder OUTPUTS (by default
$KDX_OUTPUTS, else outputs) as one HTML page, which needs no other file and no network.

file       the page; OUTPUTS/report.html by default"""


def main(words: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    try:
        code = _dispatch(list(sys.argv[1:] if words is None else words))
        sys.stdout.flush()
    except UserError as mistake:
        return _say(one_line(mistake), MISTAKE)
    except KeyboardInterrupt as stop:
        return _say(f"interrupted {stop}".rstrip(), INTERRUPTED)
    except BrokenPipeError:
        # The reader went away (`kdx table X | head`); Python would complain once more when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except Exception as failure:
        if not isinstance(failure, RunFailed) and not is_plain(failure):
            import traceback

            traceback.print_exception(failure)
        return _say(describe(failure), FAILED)
    return code


def train(words: list[str]) -> int:
    """`kdx train`: one run, or a sweep with -m."""
    options = {word for word in words if word.startswith("-")}
    overrides = [word for word in words if not word.startswith("-")]
    allowed = ("-h", "--help", "-m", "--multirun")
    for option in sorted(options.difference(allowed)):
        raise unknown("option", option, allowed)
    if options & {"-h", "--help"}:
        from kdx.help import train_help

        print(train_help(overrides))
        return DONE
    return _sweep(overrides) if options else _single(overrides)


def table(words: list[str]) -> int:
    """`kdx table`: the tables of finished runs."""
    if {"-h", "--help"} & set(words):
        print(_TABLE_HELP)
        return DONE
    if not words:
        raise UserError("table: no run is given; allowed: the folders or ids of finished runs")
    from kdx.report.table import finished_run, print_comparison, print_run

    runs = [finished_run(word, _outputs()) for word in words]
    if len(runs) == 1:
        print_run(runs[0])
    else:
        print_comparison(runs)
    return DONE


def reproduce(words: list[str]) -> int:
    """`kdx reproduce`: tables of the papers."""
    options = {word for word in words if word.startswith("-")}
    allowed = ("-h", "--help", "-l", "--list")
    for option in sorted(options.difference(allowed)):
        raise unknown("option", option, allowed)
    from kdx.reproduce import command

    if options:
        print(command.HELP if options & {"-h", "--help"} else command.listing())
        return DONE
    return command.reproduce(words)


def plot(words: list[str]) -> int:
    """`kdx plot`: the trade-off of all finished runs of a data set."""
    if {"-h", "--help"} & set(words):
        print(_PLOT_HELP)
        return DONE
    from kdx.words import names_and_settings

    keys = ("x", "y", "student", "method", "out")
    names, given = names_and_settings("plot", words, keys, "data set", "a data set with finished runs, such as mnist")
    if len(names) > 1:
        raise UserError(f"plot: '{names[1]}' is a second data set; allowed: one")
    dataset = names[0]
    from kdx.plot import trade_off

    out = Path(given.pop("out", _outputs() / "plots" / dataset))
    for file in trade_off(dataset, _outputs(), out, **given):
        print(file)
    return DONE


def export(words: list[str]) -> int:
    """`kdx export`: a finished run's student as a verified file."""
    if {"-h", "--help"} & set(words):
        print(_EXPORT_HELP)
        return DONE
    from kdx.words import names_and_settings

    runs, settings = names_and_settings("export", words, ("format", "values", "out"))
    if len(runs) > 1:
        raise UserError(f"export: '{runs[1]}' is a second run; allowed: one")
    if "format" not in settings:
        raise UserError("format: no value is given; allowed: csr, onnx, shrink, torch")
    from kdx.report.finished import finished_run

    run = finished_run(runs[0], _outputs())
    out = Path(settings["out"]) if settings.get("out") else None
    from kdx.export import export
    from kdx.report.export import print_export

    exported = export(run, settings["format"], settings.get("values", "fp32"), out)
    print_export(exported)
    print(exported.path)
    return DONE


def bench(words: list[str]) -> int:
    """`kdx bench`: the inference table of finished runs."""
    if {"-h", "--help"} & set(words):
        print(_BENCH_HELP)
        return DONE
    from kdx.words import names_and_settings

    words, settings = names_and_settings("bench", words, ("seconds",))
    try:
        seconds = float(settings.get("seconds", 0.5))
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < 3600:
        raise UserError(f"seconds: '{settings['seconds']}' is not allowed; allowed: a number above 0 and below 3600")
    from kdx.report.finished import finished_run

    runs = [finished_run(word, _outputs()) for word in words]
    from kdx.bench import bench, write_bench
    from kdx.report.bench import print_bench

    for run in runs:
        measured = bench(run, seconds)
        write_bench(measured)
        print_bench(measured)
    return DONE


def report(words: list[str]) -> int:
    """`kdx report`: all results as one HTML page."""
    if {"-h", "--help"} & set(words):
        print(_REPORT_HELP)
        return DONE
    from kdx.report.page.command import report

    print(report(words))
    return DONE


def _outputs() -> Path:
    return Path(os.environ.get("KDX_OUTPUTS", "outputs"))


def _dispatch(words: list[str]) -> int:
    commands: dict[str, Callable[[list[str]], int]] = {
        "train": train,
        "table": table,
        "reproduce": reproduce,
        "plot": plot,
        "export": export,
        "bench": bench,
        "report": report,
    }
    if not words:
        raise UserError(f"no command is given; allowed: {', '.join(commands)} (kdx --help)")
    command, *rest = words
    if command in ("-h", "--help"):
        print(_HELP)
        return DONE
    if command == "--version":
        print(f"kdx {__version__}")
        return DONE
    if command not in commands:
        # `kdx method=kd`: the command was forgotten.
        hint = "did you mean 'kdx train ...'? " if "=" in command else nearest(command, commands)
        raise UserError(f"command: '{command}' is not known; {hint}allowed: {', '.join(commands)}")
    return commands[command](rest)


def _single(overrides: list[str]) -> int:
    from kdx.compose import check_method, single
    from kdx.runs import run_folder

    config = single(overrides)
    check_method(config)
    log_file = run_folder(config).log_file
    from kdx.experiment import run
    from kdx.report.table import print_run

    with recorded(log_file):
        folder = run(config)
    print_run(folder)
    print(folder)
    return DONE


def _sweep(overrides: list[str]) -> int:
    from kdx.report.summary import groups_of, print_summary, write_failures, write_summary
    from kdx.report.table import print_comparison
    from kdx.seal import seal, unseal
    from kdx.sweep import sweep

    folder, records = sweep(overrides)
    finished = [Path(record.run) for record in records if record.run]
    groups = groups_of(finished)
    unseal(folder)
    write_summary(folder / "summary.csv", groups)
    failed = [record for record in records if record.error]
    write_failures(
        folder / "failed.csv",
        [{"job": one.number, "overrides": " ".join(one.overrides), "reason": one.error} for one in failed],
    )
    seal(folder)
    if finished:
        print_comparison(finished)
        print_summary(groups)
    print(folder)
    for record in failed:
        ended = "failed" if record.started else "skipped"
        print(f"kdx: job {record.number} ({' '.join(record.overrides)}) {ended}: {record.error}", file=sys.stderr)
    return FAILED if failed else DONE


def _say(line: str, code: int) -> int:
    print(f"kdx: {line}", file=sys.stderr)
    return code
