"""`kdx reproduce`: tables and figures of the papers, beside the published numbers."""

import logging
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from fnmatch import fnmatchcase
from pathlib import Path

from kdx.analysis.summary import Content
from kdx.cli.arguments import flag, outputs_folder, split_options
from kdx.config.compose import compose_config, launcher_settings
from kdx.config.hydra_keys import is_hydras_word
from kdx.device.machine import set_omp_wait_policy
from kdx.errors import UserError, unknown
from kdx.reproduce.cells import cells_of, check_claims
from kdx.reproduce.jobs import BUDGETS, Budget, Job, JobResult, Request, jobs_of
from kdx.reproduce.reuse import read_recorded, recorded_runs
from kdx.reproduce.run import run_all
from kdx.reproduce.tables import PaperTable, load_table, named, table_names
from kdx.reproduce.writer import write_table
from kdx.storage.checksums import seal, unseal
from kdx.sweep.resources import check_here, check_launcher

log = logging.getLogger(__name__)


HELP = """\
usage: kdx reproduce TABLE|FIGURE|PAPER ... [rows=PATTERN] [seeds=N] [budget=BUDGET] [train=false]
                     [recorded=true] [KEY=VALUE ...]

Run what a paper's table or figure needs and write it beside the published numbers, into outputs/paper/. Finished runs
are not repeated, interrupted ones go on; the same command again continues.

  rows=*           train the rows whose label matches, such as "rows=*SVD", and show the others as far as they are
  seeds=3          runs of every row, with seed=0, 1, 2
  budget=paper     as long as the paper's; short: 10 epochs; smoke: a test on scikit-learn's digits
  train=false      run nothing: write the table from what is finished, the rest is shown as missing
  recorded=true    runs that the table lists as finished already, here or elsewhere, need not be repeated
  hydra/launcher=joblib   several runs at once, also ray, submitit_slurm, ...; hydra.launcher.KEY=VALUE sets it
  KEY=VALUE        for every run, as in kdx train; what changes the runs has a folder of its own, and is marked

  kdx reproduce --list    the tables and figures"""
SEEDS_MOST = 100


def main(words: Sequence[str]) -> int:
    """`kdx reproduce`: the tables that are named, or their list with -l; returns the exit code."""
    options, names = split_options(words, ("-l", "--list"))
    if options:
        print(listing())
        return 0
    return reproduce(names)


def reproduce(words: Sequence[str]) -> int:
    """Reproduce the named tables; returns 0 if every run finished, else 1; raises UserError for wrong arguments."""
    names, order = parsed(words)
    set_omp_wait_policy()
    if order.launcher:
        check_launcher(order.launcher)
        launcher_settings(order.launcher)
    tables = [load_table(name) for paper in names for name in named(paper)]
    if all(not fnmatchcase(row, order.rows) for table in tables for row in table.rows):
        labels = [row for table in tables for row in table.rows]
        raise unknown("rows", order.rows, [f"'{label}'" if "," in label else label for label in labels])
    # Every job of every table is checked before the first is run.
    planned = [(table, jobs_of(table, order)) for table in tables]
    check_here(order.launcher, [job.config for _, jobs in planned for job in jobs if order.trains(job.row)])
    # The other tables are read once, and only where they are believed.
    elsewhere = recorded_runs(folder_of(tables[0].name, order).parents[2]) if order.reuse else {}
    known = [_recorded(table, jobs, order, elsewhere) for table, jobs in planned]
    complete = True
    for (table, jobs), recorded in zip(planned, known, strict=True):
        done = run_all(table.name, jobs, order, recorded)
        cells = cells_of(table, done)
        folder = folder_of(table.name, order)
        unseal(folder)
        write_table(folder, table, order, done, cells, check_claims(table, cells))
        if table.figure:
            # Here, because it takes a second to import.
            from kdx.reproduce.draw import draw

            draw(folder, table, order, done, cells)
        seal(folder)
        complete &= all(each.status == "finished" for each in done if order.trains(each.job.row))
        print((folder / "table.md").read_text(encoding="utf-8"))
        print(folder)
        if failed := [each for each in done if each.status == "failed"]:
            line = f"{len(failed)} of {len(done)} runs failed (runs.csv says why), the first: {failed[0].reason}"
            print(f"kdx: {table.name}: {line}", file=sys.stderr)
    return 0 if complete else 1


def _recorded(
    table: PaperTable, jobs: Sequence[Job], order: Request, elsewhere: Mapping[str, Content]
) -> dict[int, JobResult]:
    """The jobs whose results an earlier table records, if `order` allows; warns if the new table will drop them."""
    folder = folder_of(table.name, order)
    if order.reuse:
        return read_recorded(folder, table, jobs, elsewhere)
    with suppress(UserError):
        lost = len(read_recorded(folder, table, [job for job in jobs if not order.trains(job.row)], elsewhere))
        if lost:
            log.warning(
                "%s: %d runs that it lists as finished are not here and will be missing; recorded=true keeps them",
                folder,
                lost,
            )
    return {}


def listing() -> str:
    """The list of all tables, one line each."""
    titles = {name: load_table(name).title for name in table_names()}
    width = max(map(len, titles))
    return "\n".join(f"{name:{width}}  {title}" for name, title in titles.items())


def folder_of(name: str, order: Request) -> Path:
    """The folder of a table; other budgets than the paper's, and other settings, have folders of their own."""
    given = [word for word in order.overrides if word.partition("=")[0] == "outputs"]
    # As the runs understand it, which may be quoted, or take it from the environment.
    outputs = Path(compose_config(given).outputs) if given else outputs_folder()
    return outputs / "paper" / f"{name}{order.suffix}"


def parsed(words: Sequence[str]) -> tuple[list[str], Request]:
    """The names of tables and the options; other KEY=VALUE arguments are overrides."""
    options = {"rows": "*", "seeds": "3", "budget": "paper", "train": "true", "recorded": "false"}
    names, overrides, launcher, given = [], [], [], dict[str, str]()
    for word in words:
        key, equals, value = word.partition("=")
        if equals and key in given:
            raise UserError(f"{key}: '{value}' is a second value beside '{given[key]}'; allowed: one")
        given[key] = value
        if not equals:
            names.append(word)
        elif key in options:
            options[key] = value
        elif key == "seed":
            raise UserError(f"{word}: the seeds are those of every row; allowed: seeds=N for seed=0 to N-1")
        elif key == "force":
            raise UserError(f"{word}: finished runs are never repeated here; allowed: kdx train ... force=true for one")
        elif is_hydras_word(word):
            launcher.append(word)
        else:
            overrides.append(word)
    if not names:
        raise UserError(f"reproduce: no table is given; allowed: {', '.join(table_names())}")
    return names, Request(
        rows=options["rows"],
        seeds=_seeds(options["seeds"]),
        budget=_budget(options["budget"]),
        overrides=tuple(overrides),
        train=flag("train", options["train"]),
        reuse=flag("recorded", options["recorded"]),
        launcher=tuple(launcher),
    )


def _seeds(text: str) -> int:
    if not text.isascii() or not text.isdecimal() or not 1 <= int(text) <= SEEDS_MOST:
        raise UserError(f"seeds: '{text}' is not allowed; allowed: a whole number from 1 to {SEEDS_MOST}")
    return int(text)


def _budget(text: str) -> Budget:
    for budget in BUDGETS:
        if budget == text:
            return budget
    raise unknown("budget", text, BUDGETS)
