"""How figures and tests are written as text, the same in all reports."""

ABSENT = "-"


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


def count(value: float | None) -> str:
    """A whole number with thousands separators."""
    return ABSENT if value is None else f"{value:,.0f}"


def percent(value: float | None) -> str:
    """A percentage with two decimals, without the sign."""
    return ABSENT if value is None else f"{value:.2f}"


def sparsity(weights: float, nonzero: float) -> str:
    """The percentage of zeros, never rounded to 100 or 0 unless it is exactly that."""
    zero = 100 * (weights - nonzero) / weights if weights else 0.0
    if nonzero and f"{zero:.2f}" == "100.00":
        return ">99.99"
    if nonzero < weights and f"{zero:.2f}" == "0.00":
        return "<0.01"
    return f"{zero:.2f}"


def ratio(value: float | None) -> str:
    """A ratio such as 8.98x, with two decimals below 100 and none from 1,000 on."""
    if value is None:
        return ABSENT
    decimals = 2 if value < 99.995 else 1 if value < 999.95 else 0
    return f"{value:,.{decimals}f}x"


def size(value: float | None) -> str:
    """Bytes, in kB (1,000 bytes) or MB (1,000,000 bytes) if that is shorter."""
    if value is None:
        return ABSENT
    if value < 1_000:
        return f"{value:,.0f} B"
    # 999,995 would read 1,000.00 kB.
    return f"{value / 1e3:,.2f} kB" if value < 999_995 else f"{value / 1e6:,.2f} MB"


def milliseconds(value: float | None) -> str:
    """Milliseconds with at least three significant digits from 1 microsecond on."""
    if value is None:
        return ABSENT
    return f"{value:.4f}" if value < 1 else f"{value:,.2f}"


def duration(seconds: float | None) -> str:
    """Seconds, or minutes and hours if it is long."""
    if seconds is None:
        return ABSENT
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
