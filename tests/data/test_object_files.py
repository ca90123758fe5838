"""`coco:`, `voc:` and `yolo:`: the same images and boxes in each, and their mistakes."""

import json

import numpy as np
import pytest
from PIL import Image

from flaxcnn.data.record import Record
from flaxcnn.data.sources import check_source, load_dataset
from flaxcnn.errors import UserError

NAMES = ("cat", "dog")
# By image: (label, left, top, right, bottom) in whole pixels, of 30x20.
OBJECTS = {
    "a": [(0, 2, 3, 12, 15)],
    "b": [(1, 0, 0, 5, 5), (0, 10, 4, 30, 20), (1, 20, 1, 25, 3)],
    "c": [],
    "d": [(1, 7, 8, 21, 19)],
    "e": [(0, 1, 1, 3, 2)],
    "f": [(1, 3, 3, 9, 9)],
}
SPLITS = {"train": "abc", "val": "d", "test": "ef"}


def paint(file, objects):
    image = np.zeros((20, 30, 3), np.uint8)
    for _, left, top, right, bottom in objects:
        image[top:bottom, left:right] = 255
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(file)


def make_coco(names, objects):
    images = [{"id": ord(n), "file_name": f"{n}.png", "width": 30, "height": 20} for n in names]
    annotations = [
        {
            "id": 10 * ord(name) + i,
            "image_id": ord(name),
            "category_id": (3, 8)[label],
            "bbox": [x1, y1, x2 - x1, y2 - y1],
            "area": (x2 - x1) * (y2 - y1) / 2,
            "iscrowd": int(name == "b" and i == 1),
        }
        for name in names
        for i, (label, x1, y1, x2, y2) in enumerate(objects[name])
    ]
    categories = [{"id": 8, "name": "dog"}, {"id": 3, "name": "cat"}]
    # As Roboflow writes them: a category that is only the others' kind, without a box.
    categories = [{"id": 0, "name": "pets"}] + [c | {"supercategory": "pets"} for c in categories]
    return {"images": images, "annotations": annotations, "categories": categories}


def write_coco(folder, layout):
    for split, names in SPLITS.items():
        values, year = make_coco(names, OBJECTS), f"{split}2017"
        table, images = {
            "files": (folder / f"{split}.json", folder / "images"),
            "folders": (folder / split / "_annotations.coco.json", folder / split),
            "official": (folder / "annotations" / f"instances_{year}.json", folder / year),
        }[layout]
        table.parent.mkdir(parents=True, exist_ok=True)
        table.write_text(json.dumps(values))
        for name in names:
            paint(images / f"{name}.png", OBJECTS[name])


def make_voc(objects, crowd=()):
    things = "".join(
        f"<object><name>{NAMES[label]}</name><difficult>{int(i in crowd)}</difficult><bndbox>"
        f"<xmin>{x1 + 1}</xmin><ymin>{y1 + 1}</ymin><xmax>{x2}</xmax><ymax>{y2}</ymax></bndbox>"
        "</object>"
        for i, (label, x1, y1, x2, y2) in enumerate(objects)
    )
    size = "<size><width>30</width><height>20</height><depth>3</depth></size>"
    return f"<annotation>{size}{things}</annotation>"


def write_voc(folder, layout):
    for split, names in SPLITS.items():
        official = layout == "official"
        xmls = folder / ("Annotations" if official else split)
        xmls.mkdir(parents=True, exist_ok=True)
        for name in names:
            (xmls / f"{name}.xml").write_text(make_voc(OBJECTS[name], {1} if name == "b" else ()))
            paint(folder / ("JPEGImages" if official else split) / f"{name}.png", OBJECTS[name])
        if official:
            lists = folder / "ImageSets" / "Main"
            lists.mkdir(parents=True, exist_ok=True)
            (lists / f"{split}.txt").write_text("\n".join(names) + "\n")


def write_yolo(folder, layout):
    folder.mkdir(parents=True, exist_ok=True)
    for split, names in SPLITS.items():
        ultralytics = layout == "yaml"
        images = folder / "images" / split if ultralytics else folder / split / "images"
        labels = folder / "labels" / split if ultralytics else folder / split / "labels"
        labels.mkdir(parents=True)
        for name in names:
            paint(images / f"{name}.png", OBJECTS[name])
            rows = [
                f"{i} {(x1 + x2) / 60:.9f} {(y1 + y2) / 40:.9f} {(x2 - x1) / 30} {(y2 - y1) / 20}"
                for i, x1, y1, x2, y2 in OBJECTS[name]
            ]
            if name == "d":  # as a polygon
                _, x1, y1, x2, y2 = OBJECTS[name][0]
                corners = [(x1, y1), (x2, y1), (x2, y2), (x1, (y1 + y2) / 2)]
                rows = ["1 " + " ".join(f"{x / 30:.9f} {y / 20:.9f}" for x, y in corners)]
            if rows:  # no file: no objects
                (labels / f"{name}.txt").write_text("\n".join(rows) + "\n")
    if layout == "yaml":
        text = "train: images/train\nval: images/val\ntest: images/test\nnames: {0: cat, 1: dog}\n"
        (folder / "data.yaml").write_text(text)
    elif layout == "roboflow":
        text = "train: ../train/images\nval: ../val/images\ntest: ../test/images\nnc: 2\n"
        (folder / "data.yaml").write_text(text + "names: [cat, dog]\n")
    else:
        (folder / "classes.txt").write_text("cat\ndog\n")


WRITERS = {"coco": write_coco, "voc": write_voc, "yolo": write_yolo}


@pytest.mark.parametrize(
    "kind, layout",
    [
        *(("coco", layout) for layout in ("files", "folders", "official")),
        *(("voc", layout) for layout in ("folders", "official")),
        *(("yolo", layout) for layout in ("yaml", "roboflow", "classes")),
    ],
)
def test_every_layout_has_the_same_boxes(tmp_path, kind, layout):
    WRITERS[kind](tmp_path, layout)
    dataset = load_dataset(f"{kind}:{tmp_path}", image_size=(60, 60), resize="pad")
    assert dataset.class_names == NAMES and not dataset.labelled
    for split, names in SPLITS.items():
        of_split = dataset.splits["validation" if split == "val" else split]
        images, targets = of_split.load(np.arange(len(names)))
        assert targets.boxes.shape == (len(names), 3, 4)  # as many as the fullest image has
        for i, name in enumerate(names):
            count = len(OBJECTS[name])
            assert targets.valid[i].tolist() == [True] * count + [False] * (3 - count)
            assert not targets.boxes[i, count:].any()
            true = np.array(OBJECTS[name], np.float32).reshape(-1, 5)
            fitted = true[:, 1:] * 2 + [0, 10, 0, 10]  # twice as large, 10 rows above
            np.testing.assert_allclose(targets.boxes[i, :count], fitted, atol=1e-4)
            np.testing.assert_array_equal(targets.labels[i, :count], true[:, 0])
            crowd = [name == "b" and j == 1 and kind != "yolo" for j in range(count)]
            assert targets.crowd[i, :count].tolist() == crowd
            area = fitted[:, 2:] - fitted[:, :2]
            np.testing.assert_allclose(
                targets.area[i, :count], area.prod(-1) / (2 if kind == "coco" else 1), rtol=1e-5
            )
            assert targets.placed[i].tolist() == [2, 2, 0, 10, 30, 20]
            for left, top, right, bottom in fitted.astype(int):
                assert (images[i, top:bottom, left:right] > 127).all()


def mistakes_of(source):
    with pytest.raises(UserError) as caught:
        load_dataset(source)
    head, *lines = str(caught.value).split("\n")
    assert head == f"{source}:"
    return lines


def test_mistakes_of_coco_are_told_at_once_up_to_20(tmp_path):
    for name in OBJECTS:
        paint(tmp_path / f"{name}.png", OBJECTS[name])
    values = make_coco("abcdef", OBJECTS)
    broken = values["annotations"]
    broken[0]["category_id"] = 5
    broken[1]["image_id"] = 7
    broken[2]["bbox"] = [1, 2, "wide", 4]
    file = tmp_path / "some.json"
    file.write_text(json.dumps(values))
    told = mistakes_of(f"coco:{file}")
    assert [line.split(": ", 1)[1] for line in told] == [
        "there is no category 5",
        "there is no image 7",
        "bbox must be [left, top, width, height], area a number",
    ]

    values = make_coco("abcdef", OBJECTS)
    values["annotations"][0]["bbox"] = [25, 3, 10, 5]
    values["annotations"][4]["bbox"] = [9, 9, -2, 5]
    values["images"][4]["width"] = 40
    values["images"][5]["file_name"] = "none.png"
    file.write_text(json.dumps(values))
    told = mistakes_of(f"coco:{file}")
    assert "25, 3, 35, 8 (left, top, right, bottom) is outside a.png, 30x20" in told[0]
    assert "9, 9, 7, 14 (left, top, right, bottom) of d.png ends before it begins" in told[1]
    assert told[2].endswith("e.png is 30x20, and noted as 40x20") and "none.png" in told[3]

    values = make_coco("abcdef", OBJECTS | {"a": [(0, 0, 0, 31.5, 9)] * 25})
    file.write_text(json.dumps(values))
    told = mistakes_of(f"coco:{file}")
    assert len(told) == 21 and told[-1] == "and 5 more"


def test_mistakes_of_voc_and_yolo(tmp_path):
    write_voc(tmp_path / "voc", "folders")
    train = tmp_path / "voc" / "train"
    (train / "a.xml").write_text("<annotation><object>")
    (train / "b.png").unlink()
    xml = make_voc(OBJECTS["d"]).replace("<xmax>21</xmax>", "<xmax>far</xmax>")
    (tmp_path / "voc" / "val" / "d.xml").write_text(xml.replace("<width>30", "<width>31"))
    told = mistakes_of(f"voc:{tmp_path / 'voc'}")
    assert "a.xml cannot be read" in told[0] and "b.xml has no image" in told[1]
    assert told[2].endswith("d.xml object 1: bndbox must have xmin, ymin, xmax and ymax, numbers")

    write_yolo(tmp_path / "yolo", "classes")
    labels = tmp_path / "yolo" / "train" / "labels"
    (labels / "a.txt").write_text("2 0.5 0.5 0.1 0.1\n\n0 0.5 0.5 0.1\ncat 0.5 0.5 0.1 0.1\n")
    (labels / "z.txt").write_text("0 0.5 0.5 0.1 0.1\n")
    told = mistakes_of(f"yolo:{tmp_path / 'yolo'}")
    assert told[0].endswith(f"z.txt has no image in {labels.parent / 'images'}")
    assert told[1].endswith("a.txt:1: class 2 is not one of 0..1")
    assert "a.txt:3: must be a class's number, and x, y, width and height" in told[2]
    assert "a.txt:4: must be" in told[3]


def test_boxes_without_an_area_are_left_out(tmp_path, capsys):
    paint(tmp_path / "a.png", OBJECTS["a"])
    paint(tmp_path / "b.png", OBJECTS["b"])
    file = tmp_path / "some.json"
    file.write_text(json.dumps(make_coco("ab", {"a": OBJECTS["a"], "b": [(0, 4, 4, 4, 9)]})))
    dataset = load_dataset(f"coco:{file}", split=(1.0, 0.0, 0.0), validation=0)
    assert dataset.splits["train"].load(np.arange(2))[1].valid.sum() == 1
    told = capsys.readouterr().err
    assert f"1 boxes without an area are left out: {file} annotation 980" in told


def test_a_run_stays_with_its_annotations(tmp_path):
    write_coco(tmp_path, "files")
    source = f"coco:{tmp_path}"
    dataset = load_dataset(source)
    record = Record(dataset.class_names, dataset.version, dataset.files)
    check_source(source, record)
    table = tmp_path / "test.json"
    values = json.loads(table.read_text())
    values["annotations"][0]["iscrowd"] = 1
    table.write_text(json.dumps(values))
    with pytest.raises(UserError, match="not what this run was trained on: 1 file changed in test"):
        check_source(source, record)
