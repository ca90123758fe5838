"""Writes docs/deviations.md from the DEVIATIONS of the model files.

python docs/make_deviations.py [--check]
"""

import sys
from pathlib import Path

from flaxcnn.models.registry import DEVIATIONS

FILE = Path(__file__).with_name("deviations.md")
HEADER = """# Where papers and ports differ

Made by `python docs/make_deviations.py` from the data beside each network; do not edit.

| networks | the paper | the ports | here |
| --- | --- | --- | --- |
"""


def main() -> int:
    """Writes the file; with --check compares it and exits with 1 if it is old."""
    rows = [
        f"| {' | '.join([f'`{d.models}`', d.paper, d.ports, d.ours])} |" for d in sorted(DEVIATIONS)
    ]
    text = HEADER + "\n".join(rows) + "\n"
    if "--check" in sys.argv[1:]:
        return int(not FILE.exists() or FILE.read_text() != text)
    FILE.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
