"""How figures and tests are written as text, the same in all reports."""


def decimals(value: float) -> int:
    """The number of decimals to show: two, fewer for large numbers."""
    return 0 if abs(value) >= 1000 else 1 if abs(value) >= 100 else 2


def with_interval(mean: float, half_width: float | None) -> str:
    """The mean and half of its interval, such as `1.58 ± 0.05`; the mean alone if there is no interval."""
    places = decimals(mean)
    text = f"{mean:,.{places}f}"
    return text if half_width is None else f"{text} ± {half_width:,.{places}f}"


def counted(n: int, of: int) -> str:
    """Such as ` (2 of 3)`, after a mean over only those seeds that have the figure; empty if all have it."""
    return f" ({n} of {of})" if n < of else ""


def signed(difference: float, places: int) -> str:
    """A signed difference such as `-0.30`, with one digit, such as -0.0002, if `places` decimals would show zero."""
    text = f"{difference:+,.{places}f}"
    return text if difference == 0 or float(text.replace(",", "")) else f"{difference:+.1g}"


def t_test(answer: str, t: float | None, df: float | None, p: float | None) -> str:
    """A test as text, such as `t = 9.46, df 16.7, p = 4.1e-08`; `exact` for an answer that needs no test."""
    if t is None or df is None or p is None:
        return {"untested": "–", "undecided": "not possible"}.get(answer, "exact")
    return f"t = {t:.2f}, df {df:.1f}, p = {p:.3g}"
