"""`scripts/torture`: which tortures, how many, and where the figures go."""

import argparse
import json
import tempfile
from pathlib import Path

from kdx.machine import describe_machine
from tortures import child, disk, files, kill, rot, several, words

TORTURES = {
    "kill": (kill.torture, 50),
    "rot": (rot.torture, 500),
    "files": (files.torture, 300),
    "words": (words.torture, 300),
    "disk": (disk.torture, 60),
    "several": (several.torture, 24),
}
FILE = Path("outputs/benchmarks/torture.json")


def main() -> int:
    """Run the chosen tortures; 0 when everything was survived."""
    parser = argparse.ArgumentParser(prog="scripts/torture", description=__doc__)
    parser.add_argument("torture", nargs="*", help=f"any of {', '.join(TORTURES)}; all of them by default")
    parser.add_argument("--count", type=int, help="how often; by default 50 kills, 500 damages and so on")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--file", type=Path, default=FILE, help=f"where the figures are written, {FILE} by default")
    given = parser.parse_args()
    unknown = set(given.torture) - TORTURES.keys()
    if unknown:
        parser.error(f"{', '.join(unknown)} is not known; allowed: {', '.join(TORTURES)}")
    child.prepare()
    figures = json.loads(given.file.read_text()) if given.file.exists() else {}
    failed = False
    for name in given.torture or TORTURES:
        torture, count = TORTURES[name]
        with tempfile.TemporaryDirectory(prefix="kdx-torture-") as folder:
            result = torture(Path(folder), given.count or count, given.seed)
        print(json.dumps({name: result}, indent=2))
        figures[name] = {"seed": given.seed, **result}
        failed |= bool(result["failures"])
        # After each: an hour's work is not lost with the next.
        figures["machine"] = describe_machine()
        given.file.parent.mkdir(parents=True, exist_ok=True)
        given.file.write_text(json.dumps(figures, indent=2) + "\n")
    return int(failed)


raise SystemExit(main())
