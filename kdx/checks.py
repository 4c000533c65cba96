"""What is refused before any work begins: a method, or teachers, that do not fit the rest of a configuration."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from kdx.config.schema import Config
from kdx.errors import UserError

if TYPE_CHECKING:
    from kdx.methods.method import Method
    from kdx.methods.modifier import Unreached


def check_method(config: Config, overrides: Sequence[str] = ()) -> list[str]:
    """Build the method once, so that a mistake in method.* is reported before the work begins (imports torch).

    Returns warnings: a line for each setting that a schedule does not reach before training ends, and for each override
    without effect, with the reason.
    """
    from kdx.methods import build

    method, procedure = build(config.method)
    check_teachers(config, method)
    procedure.check(config)
    idle = config.unused_settings() | method.unused_settings() | procedure.unused_settings()
    epochs = config.trainer.epochs
    cut_short = [_told(name, short, config.method[name], epochs) for name, short in method.unreached(epochs).items()]
    return cut_short + [
        f"{override} has no effect on the training with {reason}"
        for override in overrides
        for key, reason in idle.items()
        if override.partition("=")[0] == key or override.startswith(f"{key}.")
    ]


def _told(name: str, short: "Unreached", value: float, epochs: int) -> str:
    """The warning that a setting is not reached, and what to do about it."""
    what = f"comes to {short.most / value:.3g} of its value only" if short.most else "has no effect on the training"
    return (
        f"method.{name} {what}, with method.{short.until}={short.epoch:g} and trainer.epochs={epochs};"
        " lower the one or raise the other"
    )


def check_teachers(config: Config, method: "Method") -> None:
    """Raise UserError, which names both keys, for several teachers with a method that cannot use them.

    That is a method without a teacher, or one that reads the weights of one teacher.
    """
    for key, teacher in config.teachers.items():
        if key == "teacher":
            continue
        if not method.needs_teacher:
            raise UserError(
                f"{key}: '{teacher.name}' is not allowed with method={method.name}, which learns from no teacher;"
                " allowed: none"
            )
        if method.needs_single_teacher is not None:
            raise UserError(
                f"{key}: '{teacher.name}' is not allowed with {method.needs_single_teacher}, which is about the weights"
                " of one teacher; allowed: none"
            )
