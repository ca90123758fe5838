"""Images with boxes: COCO's JSON for object detection (Lin et al. 2014)."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flaxcnn.data.annotated import Mistakes
from flaxcnn.data.annotation_files import find_annotations, find_split, read_json
from flaxcnn.data.folder_files import SPLIT_OF
from flaxcnn.data.images import ImageFormat
from flaxcnn.data.object_files import NotedImage, NotedObject, open_objects
from flaxcnn.data.record import Record
from flaxcnn.data.splits import Opened
from flaxcnn.errors import UserError

_NAMES = ("annotations.json", "_annotations.coco.json")


def open_coco(path: str, image_format: ImageFormat, record: Record | None = None) -> Opened:
    """The images of COCO's JSON, or of one per split; those without splits are only "all".

    `path` is such a file, or a folder with annotations.json, with one file per split (train.json,
    val.json, test.json, or annotations.json or _annotations.coco.json in train/, valid/ and test/),
    or as COCO itself comes (annotations/instances_train2017.json, train2017/ and so on). Images
    are beside their file, in images/, or as COCO has them. Classes are the categories in order of
    their ids, those that a box is of or that are of no other (`supercategory`). A box is `bbox`
    [left, top, width, height]; `iscrowd` and `area` count as COCO counts them. An image may have a
    `split`, and needs no box. Raises UserError with a line for each mistake, up to 20.
    """
    source = f"coco:{path}"
    tables = _find_tables(Path(path).expanduser()) or find_annotations(path, _NAMES)
    mistakes = Mistakes(source)
    folder = Path(path).expanduser()
    root = folder if folder.is_dir() else folder.parent
    contents = {split: _read(table) for split, table in tables.items()}
    names = _find_classes(tables, contents, mistakes)
    images = [
        image
        for split, values in contents.items()
        for image in _read_images(tables[split], split, values, names, root, mistakes)
    ]
    mistakes.tell()
    return open_objects(source, root, tuple(names.values()), images, image_format, record, mistakes)


def _find_tables(root: Path) -> dict[str, Path]:
    """COCO's own folder: instances_SPLITyear.json in annotations/."""
    found: dict[str, Path] = {}
    for file in sorted((root / "annotations").glob("instances_*.json")):
        split = SPLIT_OF.get(file.stem.removeprefix("instances_").rstrip("0123456789"))
        if split in found:
            raise UserError(f"data.source: {found[split]} and {file} are both {split}")
        if split:
            found[split] = file
    order = ("train", "validation", "test")
    return {split: found[split] for split in order if split in found} if "train" in found else {}


def _read(table: Path) -> dict[str, Any]:
    values = read_json(table)
    wanted = ("images", "annotations", "categories")
    if not isinstance(values, dict) or not all(
        isinstance(values.get(key), list) and all(isinstance(x, dict) for x in values[key])
        for key in wanted
    ):
        raise UserError(f"{table} is no JSON as COCO's: an object with lists {', '.join(wanted)}")
    return values


def _find_classes(
    tables: Mapping[str, Path], contents: Mapping[str, dict[str, Any]], mistakes: Mistakes
) -> dict[Any, str]:
    """The name of each category's id, in order, the same in every file."""
    found: dict[Any, str] = {}
    for split, values in contents.items():
        try:
            named = {category["id"]: str(category["name"]) for category in values["categories"]}
            named = dict(sorted(named.items()))
        except (KeyError, TypeError) as error:
            raise UserError(f"{tables[split]}: a category needs id and name: {error!r}") from error
        if found and named != found:
            mistakes.add(f"{tables[split]} has other categories than {next(iter(tables.values()))}")
        if len({*named.values()}) < len(named):
            mistakes.add(f"{tables[split]} has two categories of one name")
        found = found or named
    used = {x.get("category_id") for values in contents.values() for x in values["annotations"]}
    parents = {
        category.get("supercategory")
        for values in contents.values()
        for category in values["categories"]
    }
    return {i: name for i, name in found.items() if i in used or name not in parents}


def _read_images(
    table: Path,
    split: str,
    values: Mapping[str, Any],
    names: Mapping[Any, str],
    root: Path,
    mistakes: Mistakes,
) -> list[NotedImage]:
    objects: dict[Any, list[NotedObject]] = {image.get("id"): [] for image in values["images"]}
    if len(objects) < len(values["images"]):
        mistakes.add(f"{table} has two images of one id")
    labels = {category: label for label, category in enumerate(names)}
    for annotation in values["annotations"]:
        line = f"{table} annotation {annotation.get('id', '?')}"
        category, image = annotation.get("category_id"), annotation.get("image_id")
        if category not in labels:
            mistakes.add(f"{line}: there is no category {category}")
        elif image not in objects:
            mistakes.add(f"{line}: there is no image {image}")
        else:
            try:
                left, top, width, height = (float(x) for x in annotation["bbox"])
                area = annotation.get("area")
                area = None if area is None else float(area)
            except (KeyError, TypeError, ValueError):
                mistakes.add(f"{line}: bbox must be [left, top, width, height], area a number")
                continue
            box = left, top, left + width, top + height
            crowd = bool(annotation.get("iscrowd", 0))
            objects[image].append(NotedObject(line, labels[category], box, crowd, area))
    folder = _find_images(table, values["images"], root)
    found = []
    for image in values["images"]:
        line = f"{table} image {image.get('id')}"
        if not image.get("file_name"):
            mistakes.add(f"{line} has no file_name")
            continue
        size = None
        if image.get("width") and image.get("height"):
            size = int(image["height"]), int(image["width"])
        of_image = find_split(image.get("split"), line, mistakes) if split == "all" else split
        path = folder / str(image["file_name"])
        found.append(NotedImage(line, path, of_image, objects[image.get("id")], size))
    return found


def _find_images(table: Path, images: list[dict[str, Any]], root: Path) -> Path:
    """The folder below which the images of a file are."""
    name = str(images[0].get("file_name")) if images else ""
    of_coco = table.stem.removeprefix("instances_")
    folders = (table.parent, table.parent / "images", root / of_coco, root / "images" / of_coco)
    return next((folder for folder in folders if (folder / name).is_file()), table.parent)
