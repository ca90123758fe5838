"""Writes docs/deviations.md from the DEVIATIONS beside each network.

python docs/make_deviations.py
"""

from pathlib import Path

from flaxcnn.models._registry import DEVIATIONS

FILE = Path(__file__).with_name("deviations.md")
HEADER = """# Where papers and ports differ

Made by `python docs/make_deviations.py` from the data beside each network in `flaxcnn/models/`.

| networks | the paper | the ports | here |
| --- | --- | --- | --- |
"""


def render() -> str:
    """The text of the file, sorted by network."""
    rows = (f"| {' | '.join((f'`{d.models}`', *d[1:]))} |\n" for d in sorted(DEVIATIONS))
    return HEADER + "".join(rows)


if __name__ == "__main__":
    FILE.write_text(render())
