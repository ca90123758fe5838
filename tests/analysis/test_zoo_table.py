"""docs/zoo.md is up to date, agrees with others, and says why where a paper differs."""

import importlib.util
import re
from pathlib import Path

import pytest

from flaxcnn.models import variant

DOCS = Path(__file__).parents[2] / "docs"
_spec = importlib.util.spec_from_file_location("make_zoo", DOCS / "make_zoo.py")
assert _spec is not None and _spec.loader is not None
make_zoo = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(make_zoo)

LINES = (DOCS / "zoo.md").read_text().splitlines(keepends=True)
ROWS = {line.split("`")[1]: line for line in LINES if line.startswith("| `")}
CELLS = {name: [cell.strip() for cell in row.split("|")[1:-1]] for name, row in ROWS.items()}
SAMPLE = ("lenet5_1998", "alexnet_2012_2group", "vgg16")


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.zoo] * (n not in SAMPLE)) for n in make_zoo.NAMES]
)
def test_the_row_is_up_to_date(name):
    """After a change: python docs/make_zoo.py."""
    assert make_zoo.render_row(name) == ROWS[name]


def test_the_table_is_whole():
    assert "".join(LINES) == make_zoo.HEADER + "".join(ROWS[name] for name in make_zoo.NAMES)


def test_the_figures_are_those_of_the_reference_table():
    """Authors' network files, torchvision, timm and Keras: tests/models/zoo.csv."""
    other = make_zoo.read_table(make_zoo.REFERENCE)
    for name, cells in CELLS.items():
        _, _, _, params, _, macs, _, field, _, why = cells
        assert int(params.replace(",", "")) == variant(name).params
        row = other.get(name)
        if row is None:
            continue
        assert int(params.replace(",", "")) == int(row["params"]), name
        if not why:
            assert int(macs.replace(",", "")) == int(row["macs"]), name
            # Networks without convolutions have none there, and the teaching example.
            assert field == row["receptive_field"] or not row["receptive_field"], name


def test_every_difference_from_a_paper_has_a_reason():
    differ = []
    for name, (_, _, params_paper, params, macs_paper, macs, *_, why) in CELLS.items():
        pairs = ((params_paper, params), (macs_paper, macs))
        if any(paper and not agree(paper, counted) for paper, counted in pairs):
            differ.append(name)
            assert why, name
    assert len(differ) > 10
    published = make_zoo.read_table(make_zoo.PUBLISHED)
    assert set(published) <= set(CELLS) and len(published) > 60


def agree(paper: str, counted: str) -> bool:
    """Whether the count rounds to what a paper prints."""
    value = int(counted.replace(",", ""))
    match = re.fullmatch(r"([\d,.]+)(?: ([MG]))?( operations)?", paper)
    if match is None:  # "< 25 M", "340,908 connections"
        return False
    number, unit, operations = match.groups()
    value *= 2 if operations else 1
    decimals = len(number.partition(".")[2])
    scale = {"M": 1e6, "G": 1e9, None: 1}[unit]
    return round(value / scale, decimals) == float(number.replace(",", ""))
