"""Parts of the papers' tables, for tests that need not all of one."""

from fnmatch import fnmatchcase

from kdx.reproduce.jobs import Request
from kdx.reproduce.tables import PaperTable


def only(table: PaperTable, pattern: str) -> PaperTable:
    """The table with the rows whose label matches and the claims about them."""
    rows = {label: row for label, row in table.rows.items() if fnmatchcase(label, pattern)}
    assert rows, f"{table.name} has no row {pattern}"
    claims = [claim for claim in table.claims if claim.row in rows and claim.than not in table.rows.keys() - rows]
    return table.model_copy(update={"rows": rows, "claims": claims})


ORDER = Request(rows="*", seeds=3, budget="paper", overrides=(), train=False)
