"""Export of finished students as verified files; `export` is the entry point."""

from dataclasses import dataclass
from pathlib import Path

from kdx.errors import UserError, unknown

FOLDER = "exports"


@dataclass(frozen=True)
class Exported:
    """An exported and verified file, compared with the student of its run.

    Errors are in percent; `logit_difference` is the largest between the logits of file and student over the test set;
    multiplications are per image. `teacher_bytes` are the teacher's dense bytes, None without a teacher.
    """

    path: Path
    format: str
    values: str
    bytes: int
    teacher_bytes: float | None
    student_bytes: int
    test_error_percent: float
    student_test_error_percent: float
    logit_difference: float
    parameters: int
    student_parameters: int
    multiplications: int
    student_multiplications: int
    nonzero_multiplications: int
    student_nonzero_multiplications: int


def export(run: Path, format: str, values: str = "fp32", out: Path | None = None) -> Exported:
    """Write the student of the finished `run` as `format` to `out`, by default into the run's folder `exports`.

    The file is read again and compared with the student on the whole test set before it gets its final name. Raises
    UserError for the user's mistakes, and NotTheSame if the file does not compute what the student does.
    """
    # Imported here, so that importing the names above does not import torch.
    from kdx.export.csr import VALUES, Values
    from kdx.export.formats import FORMATS
    from kdx.export.student import finished_student
    from kdx.export.verification import Verified, verify
    from kdx.measure.footprint import parameter_count
    from kdx.measure.multiplications import multiplications, nonzero_multiplications
    from kdx.runs.reader import number
    from kdx.storage.files import write_atomically

    if format not in FORMATS:
        raise unknown("format", format, FORMATS)
    known: dict[str, Values] = {each: each for each in VALUES}
    if values not in known:
        raise unknown("values", values, known)
    stored = known[values]
    if stored != "fp32" and format != "csr":
        raise UserError(f"values: '{values}' is not allowed with format={format}, only with csr; allowed: fp32")
    if out is not None and out.is_dir():
        raise UserError(f"out: '{out}' is a folder; allowed: a file")
    student, how = finished_student(run), FORMATS[format]
    network = how.network(student, stored)
    suffix = "" if values == "fp32" else f"-{values}"
    path = out or run / FOLDER / f"student{suffix}.{how.ending}"
    verified: list[Verified] = []

    def write(temporary: Path) -> None:
        how.write(temporary, network, student, stored)
        verified.append(verify(how.read(temporary), network, student.network, student.data.test))

    try:
        write_atomically(path, write)
    except OSError as error:
        if out is None:
            raise
        raise UserError(f"out: '{path}' cannot be written: {error.strerror}; allowed: a file") from error
    (proof,) = verified
    shape = student.data.image_shape
    return Exported(
        path=path,
        format=format,
        values=values,
        bytes=path.stat().st_size,
        teacher_bytes=number(student.figures, "teacher_dense_bytes"),
        student_bytes=(run / "student.safetensors").stat().st_size,
        test_error_percent=proof.test_error_percent,
        student_test_error_percent=proof.student_test_error_percent,
        logit_difference=proof.logit_difference,
        parameters=parameter_count(network),
        student_parameters=parameter_count(student.network),
        multiplications=multiplications(network, shape),
        student_multiplications=multiplications(student.network, shape),
        nonzero_multiplications=nonzero_multiplications(network, shape),
        student_nonzero_multiplications=nonzero_multiplications(student.network, shape),
    )
