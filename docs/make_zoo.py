"""Writes docs/zoo.md: what papers print of each network, and what is measured here.

python docs/make_zoo.py

Measured is what `flaxcnn.analysis.summary` counts (about two minutes for all); papers' figures and
reasons are in docs/zoo_published.csv, fields of other implementations in tests/models/zoo.csv.
"""

import csv
from pathlib import Path

from flaxcnn.analysis import summary
from flaxcnn.models import create_model, list_models, variant

FILE = Path(__file__).with_name("zoo.md")
PUBLISHED = Path(__file__).with_name("zoo_published.csv")
REFERENCE = FILE.parents[1] / "tests" / "models" / "zoo.csv"
HEADER = """# The zoo in numbers

Made by `python docs/make_zoo.py`: what the papers print, and what `flaxcnn.analysis.summary` counts in the networks here
(`flaxcnn summary NAME`). Parameters are the trainable ones, at the paper's classes. Multiply-adds are those of
convolutions and dense layers for one image; an "operation" of Darknet is half of one. They equal those of the authors'
network files, or of torchvision, timm or Keras, for every network that has any (tests/models/zoo.csv). The field is the
side of the receptive field, in pixels, of the last maps before a global pool or dense layer, beside that of Araujo, Norris
and Sim (Distill 2019) or of their method on another implementation: gates do not count.
Top-1 is the paper's accuracy on ImageNet's validation set in percent, one model, as published, not measured here: *read* in
the authors' repository, *quoted* from the paper's table and not read again; crops differ between papers.

| network | images | parameters: paper | measured | multiply-adds: paper | measured | field: other | measured | top-1 | why they differ |
| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | --- | --- |
"""  # noqa: E501


def read_table(file: Path) -> dict[str, dict[str, str]]:
    """A CSV file's rows by their names."""
    with open(file) as lines:
        return {row["name"]: row for row in csv.DictReader(lines)}


def render_row(name: str) -> str:
    """The line of a network."""
    v = variant(name)
    published = read_table(PUBLISHED).get(name, {})
    other = read_table(REFERENCE).get(name, {})
    found = summary(create_model(name), v.input_shape)
    located = any(layer.located for layer in found.layers)
    field = str(found.receptive_field[0]) if located and found.receptive_field else ""
    top1 = f"{published['top1']} {published['top1_source']}" if published.get("top1") else ""
    cells = (
        f"`{name}`",
        "x".join(map(str, v.input_shape)),
        published.get("params", ""),
        f"{found.params:,}",
        published.get("multiply_adds", ""),
        f"{found.multiply_adds:,}",
        other.get("receptive_field", ""),
        field,
        top1,
        published.get("reason", ""),
    )
    return f"| {' | '.join(cells)} |\n"


# Detectors have several outputs, whose receptive fields are not one number.
NAMES = [name for name in list_models() if variant(name).task != "detection"]


def render() -> str:
    """The text of the file."""
    return HEADER + "".join(map(render_row, NAMES))


if __name__ == "__main__":
    FILE.write_text(render())
