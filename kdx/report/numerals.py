"""How figures and tests are written, on every page alike."""


def decimals(value: float) -> int:
    """Two decimals, fewer for large numbers."""
    return 0 if abs(value) >= 1000 else 1 if abs(value) >= 100 else 2


def with_interval(mean: float, half_width: float | None) -> str:
    """Such as `1.58 ± 0.05`; the mean alone where there is no interval."""
    places = decimals(mean)
    text = f"{mean:,.{places}f}"
    return text if half_width is None else f"{text} ± {half_width:,.{places}f}"


def counted(n: int, of: int) -> str:
    """Such as ` (2 of 3)` behind the mean of those seeds that have a figure; empty where all have it."""
    return f" ({n} of {of})" if n < of else ""


def signed(difference: float, places: int) -> str:
    """Such as `-0.30`; a difference that so many places would show as zero has one digit instead, such as -0.0002."""
    text = f"{difference:+,.{places}f}"
    return text if difference == 0 or float(text.replace(",", "")) else f"{difference:+.1g}"


def t_test(answer: str, t: float | None, df: float | None, p: float | None) -> str:
    """Such as `t = 9.46, df 16.7, p = 4.1e-08`; `exact` behind an answer that needs no test."""
    if t is None or df is None or p is None:
        return {"untested": "–", "undecided": "not possible"}.get(answer, "exact")
    return f"t = {t:.2f}, df {df:.1f}, p = {p:.3g}"
