"""Reads the files that `kdx bench` writes into a run's folder."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kdx.runs.reader import Damaged, Record, read_rows, reading
from kdx.storage.files import sha256_of

TABLE, PLACE = "bench.csv", "bench.json"
# Of the table, kept beside the machine. The run's own checksums were written before it, and a run need not be repeated
# where its timings were changed.
HASH = "sha256"


class Timed(Record):
    """One network in one form and runtime: microseconds for one batch, and the bytes of its file, if it has one.

    `against_...` is its speedup over the dense student and over the teacher, with the 95 % interval. The speedup is
    None if the interval is too wide to tell, and all three are None without a comparison.
    """

    network: str
    form: str
    runtime: str
    batch: int
    threads: int
    median_us: float
    p10_us: float
    p90_us: float
    repetitions: int
    file_bytes: int | None = None
    against_dense: float | None = None
    against_dense_low: float | None = None
    against_dense_high: float | None = None
    against_teacher: float | None = None
    against_teacher_low: float | None = None
    against_teacher_high: float | None = None

    @property
    def name(self) -> str:
        """The student's form, or `teacher`."""
        return self.network if self.network == "teacher" else self.form


COLUMNS = tuple(Timed.model_fields)


@dataclass(frozen=True)
class Inference:
    """The timings of a run, and the machine on which they were measured."""

    timings: list[Timed]
    machine: dict[str, Any]


def read_inference(run: Path) -> Inference | None:
    """The timings that `kdx bench` wrote into the folder `run`, or None; raises Damaged if a file does not fit."""
    place = run / PLACE
    # The machine is written last, so a table without it is that of a measurement that was killed.
    if not (run / TABLE).exists() or not place.exists():
        return None
    with reading(place):
        machine = json.loads(place.read_bytes())
        if not isinstance(machine, dict):
            raise ValueError("it is not a JSON object")
    expected = machine.pop(HASH, None)
    if expected is not None and sha256_of(run / TABLE) != expected:
        raise Damaged(run / TABLE, "its content is not what was written")
    return Inference(read_rows(run / TABLE, Timed), machine)
