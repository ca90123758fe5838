"""docs/deviations.md is what the data beside the networks says."""

import fnmatch
import importlib.util
from pathlib import Path

from flaxcnn.models._registry import ALIASES, DEVIATIONS, VARIANTS

DOCS = Path(__file__).parents[2] / "docs"


def test_the_table_is_up_to_date():
    spec = importlib.util.spec_from_file_location("make_deviations", DOCS / "make_deviations.py")
    make_deviations = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(make_deviations)
    assert (DOCS / "deviations.md").read_text() == make_deviations.render()


def test_every_deviation_is_about_a_network():
    for deviation in DEVIATIONS:
        assert all(deviation) and "|" not in "".join(deviation)
        for pattern in deviation.models.split(", "):
            assert fnmatch.filter([*VARIANTS, *ALIASES], pattern), pattern


def test_the_networks_that_papers_and_ports_draw_differently_are_in_it():
    named = ", ".join(deviation.models for deviation in DEVIATIONS).split(", ")
    for name in (
        *("alexnet", "googlenet", "resnet50", "resnet50v2", "squeezenet1_0"),
        *("inception_resnet_v2", "nasnet_a_mobile"),
    ):
        assert any(fnmatch.fnmatch(name, pattern) for pattern in named), name
