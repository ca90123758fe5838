"""Images with boxes: XML as of PASCAL VOC (Everingham et al. 2010)."""

from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

from flaxcnn.data.annotated import Mistakes
from flaxcnn.data.folder_files import SPLIT_OF
from flaxcnn.data.images import FILE_SUFFIXES, ImageFormat
from flaxcnn.data.object_files import NotedImage, NotedObject, open_objects
from flaxcnn.data.record import Record
from flaxcnn.data.splits import Opened
from flaxcnn.errors import UserError

_ANNOTATIONS, _IMAGES, _LISTS = "Annotations", "JPEGImages", Path("ImageSets", "Main")


def open_voc(path: str, image_format: ImageFormat, record: Record | None = None) -> Opened:
    """The images of a folder of XML files; those without splits are only "all".

    `path` holds Annotations/ and JPEGImages/ (or images/), and if images are divided
    ImageSets/Main/ with train.txt (or trainval.txt), val.txt and test.txt; or XML files beside
    their images, directly or in train/, valid/ and test/. Classes are sorted by name. The first
    pixel of VOC is 1: a box from xmin to xmax begins at xmin - 1 here. Objects that are `difficult`
    count as COCO's crowds: neither sought nor held against who finds them.
    Raises UserError with a line for each mistake, up to 20.
    """
    root, source = Path(path).expanduser(), f"voc:{path}"
    if not root.is_dir():
        raise UserError(f"data.source: there is no folder {root}")
    mistakes = Mistakes(source)
    found = [
        (split, xml, image, _read(xml, mistakes))
        for split, xml, image in _find_files(root, mistakes)
    ]
    names = tuple(sorted({str(o.findtext("name")) for *_, tree in found for o in _objects(tree)}))
    images = []
    for split, xml, image, tree in found:
        if tree is None:
            continue
        objects = [
            _read_object(f"{xml} object {i}", thing, names, mistakes)
            for i, thing in enumerate(_objects(tree), 1)
        ]
        size = _read_size(tree)
        images.append(NotedImage(str(xml), image, split, [x for x in objects if x], size))
    mistakes.tell()
    return open_objects(source, root, names, images, image_format, record, mistakes)


def _find_files(root: Path, mistakes: Mistakes) -> Iterator[tuple[str, Path, Path]]:
    """The split of each image, its XML and itself."""
    if (root / _ANNOTATIONS).is_dir():
        images = root / (_IMAGES if (root / _IMAGES).is_dir() else "images")
        lists = {split: root / _LISTS / f"{split}.txt" for split in SPLIT_OF}
        lists = {split: file for split, file in lists.items() if file.is_file()}
        both = root / _LISTS / "trainval.txt"
        if both.is_file() and "train" not in lists:
            lists["train"] = both
        for split, file in lists.items():
            for stem in file.read_text().split():
                yield from _pair(SPLIT_OF[split], root / _ANNOTATIONS / stem, images, mistakes)
        if not lists:
            for xml in sorted((root / _ANNOTATIONS).glob("*.xml")):
                yield from _pair("all", xml.with_suffix(""), images, mistakes)
        return
    folders = {root: "all"}
    if not any(root.glob("*.xml")):
        folders = {
            child: SPLIT_OF[child.name.lower()]
            for child in sorted(root.iterdir())
            if child.is_dir() and child.name.lower() in SPLIT_OF
        }
    for folder, split in folders.items():
        for xml in sorted(folder.glob("*.xml")):
            yield from _pair(split, xml.with_suffix(""), folder, mistakes)


def _pair(
    split: str, stem: Path, images: Path, mistakes: Mistakes
) -> Iterator[tuple[str, Path, Path]]:
    xml = stem.with_name(f"{stem.name}.xml")
    if not xml.is_file():
        mistakes.add(f"there is no {xml}")
        return
    suffixes = [s for suffix in (".jpg", *sorted(FILE_SUFFIXES)) for s in (suffix, suffix.upper())]
    candidates = (images / f"{stem.name}{suffix}" for suffix in suffixes)
    image = next((path for path in candidates if path.is_file()), None)
    if image is None:
        mistakes.add(f"{xml} has no image: there is no {images / stem.name}.jpg")
    else:
        yield split, xml, image


def _read(xml: Path, mistakes: Mistakes) -> ElementTree.Element | None:
    try:
        tree = ElementTree.fromstring(xml.read_bytes())
    except (OSError, ElementTree.ParseError) as error:
        mistakes.add(f"{xml} cannot be read: {error}")
        return None
    if tree.tag != "annotation":
        mistakes.add(f"{xml} is no annotation of VOC: it is of {tree.tag}")
        return None
    return tree


def _objects(tree: ElementTree.Element | None) -> list[ElementTree.Element]:
    return [] if tree is None else tree.findall("object")


def _read_size(tree: ElementTree.Element) -> tuple[int, int] | None:
    try:
        height, width = (int(tree.findtext(f"size/{side}") or 0) for side in ("height", "width"))
    except ValueError:
        return None
    return (height, width) if height and width else None


def _read_object(
    line: str, thing: ElementTree.Element, names: tuple[str, ...], mistakes: Mistakes
) -> NotedObject | None:
    name = thing.findtext("name")
    if not name:
        mistakes.add(f"{line} has no name")
        return None
    try:
        left, top, right, bottom = (
            float(str(thing.findtext(f"bndbox/{side}")))
            for side in ("xmin", "ymin", "xmax", "ymax")
        )
    except ValueError:
        mistakes.add(f"{line}: bndbox must have xmin, ymin, xmax and ymax, numbers")
        return None
    difficult = (thing.findtext("difficult") or "0").strip() == "1"
    box = left - 1, top - 1, right, bottom
    return NotedObject(line, names.index(name), box, difficult)
