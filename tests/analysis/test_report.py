"""The page that `analysis.report` makes of plain data: no network, no script needed, safe names."""

import dataclasses
import html.parser
import json
import re
import shutil
import subprocess

import numpy as np
import pytest

from flaxcnn.analysis.report import Contents, Mistake, Named, render, to_json
from flaxcnn.analysis.report.contents import differences
from flaxcnn.analysis.report.curves import collect, make_ticks
from flaxcnn.analysis.report.pictures import encode, mosaic

EVIL = "<script>alert(\"1\")</script> & 'x'"
NAMES = ("cat", EVIL, "dog")
EPOCHS = [
    [[5, 1, 0], [2, 3, 1], [0, 0, 6]],
    [[6, 0, 0], [1, 4, 1], [0, 0, 6]],
]


def make_contents(name="first", side=8, count=3, **changes):
    generator = np.random.default_rng(0)

    def picture():
        return encode(generator.integers(0, 256, (side, side, 3), np.uint8))

    rows = [
        {"split": split, "epoch": e, "step": 10 * e, "loss": 1.0 / e, "accuracy": 0.5 + 0.1 * e}
        | ({"learning_rate": 0.1 / e} if split == "train" else {})
        for e in (1, 2)
        for split in ("train", "validation")
    ]
    found = [
        Mistake(
            index=i,
            name=f"{EVIL}/{i}.png",
            true=NAMES[1 + i % 2],
            predicted=NAMES[i % 2],
            loss=3.0 - 0.01 * i,
            probability=0.5 + 0.001 * i,
            pictures={"image": picture(), "Grad-CAM": picture()},
        )
        for i in range(count)
    ]
    contents = Contents(
        name=name,
        path=f"runs/{name}",
        metric="accuracy",
        unit="%",
        split="test",
        figures={"accuracy": 0.875, "loss": 0.25},
        table="",
        rows=rows,
        class_names=NAMES,
        classes=[{"name": n, "recall": 0.25 * i, "support": 6} for i, n in enumerate(NAMES)],
        confusions=[
            {"split": "validation", "epoch": e, "counts": counts}
            for e, counts in enumerate(EPOCHS, 1)
        ],
        mistakes=found,
        wrong=count + 4,
        images=1018,
        filters=[Named("conv1", picture(), "3x3x3x32")],
        features=[Named("conv2", picture(), "8x8")],
        facts={"network": EVIL, "epochs": 2},
        config={"data.source": f"folder:{EVIL}", "epochs": 2, "seed": 0},
        environment={"versions.jax": "0.10.1"},
        hashes={"parameters at the end": "5efbdab7"},
    )
    return dataclasses.replace(contents, **changes)


class Reader(html.parser.HTMLParser):
    """Collects what a page is made of, and checks that every element is closed in order."""

    VOID = frozenset(("meta", "img", "input", "br"))

    def __init__(self, page):
        super().__init__()
        self.open, self.ids, self.images, self.texts = [], [], [], []
        self.addresses, self.counts = [], {}
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        values = dict(attrs)
        assert len(values) == len(attrs), f"<{tag}> has an attribute twice"
        self.counts[tag] = self.counts.get(tag, 0) + 1
        self.ids += [values["id"]] if "id" in values else []
        if tag == "img":
            self.images.append(values["src"])
            assert values["alt"] and int(values["width"]) > 0
        self.addresses += [v for k, v in attrs if k in ("src", "href", "action", "data", "srcset")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        assert "svg" in self.open, f"<{tag}/>"

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, f"</{tag}> at {self.getpos()}"

    def handle_data(self, data):
        if "script" not in self.open and "style" not in self.open:
            self.texts.append(data)


def test_the_page_loads_nothing_and_says_everything_without_a_script():
    page = render([make_contents()])
    reader = Reader(page)
    assert page.startswith("<!DOCTYPE html>")
    assert len(reader.ids) == len({*reader.ids})
    for address in reader.addresses:
        assert address.startswith(("data:image/", "#")), address
        assert not address.startswith("#") or address[1:] in reader.ids
    assert not re.findall(r"https?:|//\w|@import|url\(", page)
    assert "default-src 'none'" in page
    assert len(reader.images) == 3 * 2 + 2
    text = " ".join(" ".join(reader.texts).split())
    assert "87.50 %" in text and "7 of 1,018 test images are wrong; the 3 of the largest" in text
    for word in (EVIL, "folder:" + EVIL, "0.10.1", "5efbdab7", "3x3x3x32", "loss 3.000", "0.2500"):
        assert word in text
    assert reader.counts["svg"] == 3
    # The script's filters stay hidden until it shows them; the table has the last epoch's counts.
    assert re.search(r'<form class="filters" hidden', page)
    cells = re.findall(r"<td[^>]*>(\d+)</td>", page.partition('class="matrix"')[2])
    assert [int(cell) for cell in cells[:9]] == [count for row in EPOCHS[-1] for count in row]


def test_names_are_text_and_nothing_else():
    page = render([make_contents()])
    assert "<script>alert" not in page and 'alert("1")</script>' not in page
    assert Reader(page).counts["script"] == 2
    (data,) = re.findall(r'<script type="application/json">(.*?)</script>', page, re.DOTALL)
    read = json.loads(data)
    assert read["names"] == list(NAMES)
    assert [epoch["counts"] for epoch in read["epochs"]] == EPOCHS


def test_runs_side_by_side_with_the_fields_that_differ():
    other = make_contents("second", config={"data.source": f"folder:{EVIL}", "epochs": 9})
    reader = Reader(render([make_contents(), other]))
    assert len(reader.ids) == len({*reader.ids})
    assert {"differences", "run0-mistakes", "run1-mistakes"} < {*reader.ids}
    text = " ".join(" ".join(reader.texts).split())
    found = text.partition("field first second epochs 2 9 seed 0")
    assert found[1], text
    assert "data.source" not in found[2].partition("Confusion matrix")[0]
    assert differences([{"a": 1, "b": 2}, {"a": 1, "c": 3}]) == {"b": [2, None], "c": [None, 3]}


def test_a_task_without_classes_has_its_own_table_and_pictures():
    plain = make_contents(
        class_names=(),
        classes=(),
        confusions=(),
        mistakes=(),
        metric="distance",
        unit="px",
        figures={"distance": 1.25},
        table="distance  1.25 <px>",
        pictures=[Named("squares.png", encode(np.zeros((8, 8, 1), np.uint8)))],
    )
    reader = Reader(render([plain]))
    assert not {"mistakes", "confusions"} & {*reader.ids} and "pictures" in reader.ids
    assert "distance  1.25 <px>" in reader.texts
    mixed = {*Reader(render([plain, make_contents("second")])).ids}
    assert {"pictures", "mistakes", "run1-mistakes"} < mixed and "run0-mistakes" not in mixed


def test_a_page_that_would_be_too_large_has_fewer_pictures():
    many = make_contents(side=64, count=60)
    assert 1_000_000 < len(render([many]).encode())
    small = render([many], limit=500_000)
    assert len(small.encode()) <= 500_000
    shown = len(re.findall('class="views"', small))
    assert 5 < shown < 60
    assert f"64 of 1,018 test images are wrong; the {shown} of the largest loss" in small


def test_json_has_all_but_the_pictures():
    read = json.loads(json.dumps(to_json([make_contents(), make_contents("second", config={})])))
    first, second = read["runs"]
    assert (first["name"], second["name"]) == ("first", "second")
    assert first["mistakes"][1]["true"] == "dog" and first["mistakes"][1]["pictures"] == {}
    assert [of_epoch["counts"] for of_epoch in first["confusions"]] == EPOCHS
    assert read["differences"]["config.epochs"] == [2, None]


def test_curves_are_means_of_epochs_and_ticks_are_round():
    rows = [
        {"split": "train", "epoch": e, "loss": y, "learning_rate": y}
        for e, y in ((0.5, 4.0), (1.0, 2.0), (1.5, 1.0), (2.0, None))
    ]
    assert collect(rows, "loss", "train") == [(1.0, 3.0), (2.0, 1.0)]
    assert collect(rows, "learning_rate", "train", 10) == [(0.5, 40), (1.0, 20), (1.5, 10)]
    assert make_ticks(0.13, 1.02) == [0.2, 0.4, 0.6, 0.8, 1.0]
    assert make_ticks(0, 30) == [0, 10, 20, 30]
    assert make_ticks(3, 3) == [3]


def test_pictures_are_small_and_keep_their_shape():
    assert (
        encode(np.zeros((300, 150, 3), np.uint8)).width,
        encode(np.zeros((8, 6, 1), np.uint8)).mime,
    ) == (80, "image/png")
    tiles = mosaic(
        np.arange(5, dtype=np.uint8)[:, None, None, None] * np.ones((1, 3, 2, 1), np.uint8), 2
    )
    assert tiles.shape == (3 * 3 + 2, 2 * 2 + 1, 1)
    assert tiles[4, 3, 0] == 3 and tiles[3, 0, 0] == 255


PROBE = """
const all = (chosen) => [...document.querySelectorAll(chosen)];
const read = () => all(".mistakes figure").filter((x) => !x.hidden).map((x) => +x.dataset.index);
const change = (element, name) => element.dispatchEvent(new Event(name));
const [form] = all("form.filters"), [range] = all("input[type=range]");
const root = document.documentElement;
const found = { start: read() };
form.elements.sort.value = "probability"; change(form, "change"); found.sorted = read();
form.elements.true.value = "dog"; change(form, "change"); found.filtered = read();
found.said = form.querySelector("output").textContent;
found.slider = !range.parentElement.hidden;
range.value = 0; change(range, "input");
found.cells = all(".matrix td").map((cell) => Number(cell.textContent));
found.when = all(".when")[0].textContent;
for (let i = 0; i < 2; i++) all(".sortable th")[1].click();
found.classes = all(".sortable tbody tr").map((row) => row.cells[0].textContent);
found.width = innerWidth; found.overflow = root.scrollWidth - root.clientWidth;
parent.found.push(found);
"""


@pytest.mark.skipif(not shutil.which("chromium"), reason="needs chromium")
def test_in_a_browser_at_the_size_of_a_phone_and_of_a_desktop(tmp_path):
    page = render([make_contents()]).replace("</body>", f"<script>{PROBE}</script></body>")
    frames = "".join(
        f'<iframe width="{width}" height="800" srcdoc="{html.escape(page)}"></iframe>'
        for width in (390, 1280)
    )
    (tmp_path / "frames.html").write_text(
        f"<script>var found = [];</script>{frames}<script>onload = () => "
        '{ document.title = "found " + JSON.stringify(found) + " end"; };</script>'
    )
    flags = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path}/profile"]
    done = subprocess.run(
        ["chromium", *flags, "--dump-dom", (tmp_path / "frames.html").as_uri()],
        capture_output=True,
        text=True,
        timeout=120,
    )
    said = re.search(r"<title>found (.*?) end</title>", done.stdout, re.DOTALL)
    assert said, done.stdout[-500:] + done.stderr[-500:]
    found = json.loads(html.unescape(said[1]))  # as they were loaded, in either order
    phone, desktop = sorted(found, key=lambda frame: frame["width"])
    assert (phone.pop("width"), desktop.pop("width")) == (390, 1280)
    assert phone == desktop
    assert phone == {
        "start": [0, 1, 2],
        "sorted": [2, 1, 0],
        "filtered": [1],
        "said": "1 of 3 shown",
        "slider": True,
        "cells": [5, 1, 0, 2, 3, 1, 0, 0, 6],
        "when": "validation, epoch 1",
        "classes": list(NAMES)[::-1],
        "overflow": 0,
    }
