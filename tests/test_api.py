"""docs/api.md is what the docstrings say, and docs/README.md names every document."""

import importlib.util
import re
from pathlib import Path

DOCS = Path(__file__).parents[1] / "docs"
LINKS = re.compile(r"\]\((?!http)([^)#]+)\)")


def test_the_list_of_public_names_is_up_to_date():
    """After a change to them: python docs/make_api.py."""
    spec = importlib.util.spec_from_file_location("make_api", DOCS / "make_api.py")
    make_api = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(make_api)
    text = make_api.render()
    assert (DOCS / "api.md").read_text() == text
    for name in ("create_model", "train", "Conv", "max_pool", "convert", "make_augment", "Task"):
        assert len(re.findall(rf"^- \[`{name}\b", text, re.MULTILINE)) == 1, name
    for line in re.findall(r"^- .*", text, re.MULTILINE):
        assert re.fullmatch(r"- \[`.*`\]\(.*\.py\): \S.{12,98}\.", line), f"no sentence: {line}"
    assert all((DOCS / link).is_file() for link in LINKS.findall(text))
