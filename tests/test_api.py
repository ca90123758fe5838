"""docs/api.md is what the docstrings say, docs/README.md names every document, links lead on."""

import importlib.util
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
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


def test_the_indexes_name_every_document():
    for index in DOCS.rglob("README.md"):
        linked = {(index.parent / link).resolve() for link in LINKS.findall(index.read_text())}
        folders = {file.parent for file in linked if file.name == "README.md"}
        missing = [
            file
            for file in index.parent.rglob("*.md")
            if file not in linked | {index} and file.parent not in folders
        ]
        assert not missing, f"{index} has no line on these"


def test_every_link_leads_to_a_file():
    files = [*ROOT.glob("*.md"), *ROOT.glob("[!.]*/README.md"), *DOCS.rglob("*.md")]
    links = {(file, link) for file in files for link in LINKS.findall(file.read_text())}
    assert len(links) > 40
    missing = [(file, link) for file, link in links if not (file.parent / link).exists()]
    assert not missing
