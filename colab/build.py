"""Makes each notebook from the .py beside it, and is the only thing that writes them.

    python colab/build.py

What a notebook is comes from its .py alone: the same cell ids and metadata on every machine, no
outputs. A fork changes REPOSITORY and runs it.
"""

from pathlib import Path

import jupytext
import nbformat

REPOSITORY = "flaxcnn/flaxcnn"  # on GitHub: of the badges, and of what the notebooks install
FOLDER = Path(__file__).parent
SOURCES = sorted(FOLDER.glob("[0-9]_*.py"))


def build(source: Path) -> str:
    """The text of the notebook that belongs to a .py file in jupytext's percent format."""
    text = source.read_text().replace("flaxcnn/flaxcnn", REPOSITORY)
    notebook = jupytext.reads(text, fmt="py:percent")
    notebook.metadata["jupytext"]["text_representation"].pop("jupytext_version", None)
    notebook.nbformat, notebook.nbformat_minor = 4, 5
    for number, cell in enumerate(notebook.cells, 1):
        cell["id"] = f"cell-{number}"  # jupytext's are random
    return nbformat.writes(notebook) + "\n"


if __name__ == "__main__":
    for source in SOURCES:
        source.with_suffix(".ipynb").write_text(build(source))
