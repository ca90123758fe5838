"""The notebooks run from their first cell to their last, on the CPU, with the tests' settings.

In a folder with a space in its name, as Google Drive's "My Drive" has: their runs lie there.
"""

import base64
import io
import json
import re
import subprocess
import sys
import tarfile
from pathlib import Path

import nbformat
import numpy as np
import pytest
from notebooks import ROOT, SOURCES, find_cell
from PIL import Image

PICTURES = {
    "1_first_network": 5,
    "2_zoo_tour": 3,
    "3_cifar10": 4,
    "4_transfer_learning": 4,
    "5_look_inside": 12,
    "6_detection_segmentation": 6,
    "7_reproduce": 1,
}
MOBILENET = "data/weights/mobilenet_v2_1.0_224_q8.safetensors"  # instead of a download


def execute(notebook: Path, folder: Path, env: dict[str, str]) -> nbformat.NotebookNode:
    """The notebook with its outputs, by nbclient in a process of its own, as from a terminal."""
    code = """
import sys, nbformat
from nbclient import NotebookClient
source, folder = sys.argv[1:]
notebook = nbformat.read(source, as_version=4)
resources = {"metadata": {"path": folder}}
NotebookClient(notebook, timeout=240, kernel_name="python3", resources=resources).execute()
nbformat.write(notebook, folder + "/executed.ipynb")
"""
    result = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code, str(notebook), str(folder)],
        env=env | {"PYTHONPATH": str(ROOT), "FLAXCNN_NOTEBOOK": "quick"},
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    return nbformat.read(folder / "executed.ipynb", as_version=4)


def find_pictures(notebook: nbformat.NotebookNode) -> list[np.ndarray]:
    shown = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    encoded = [
        output.data["image/png"] for output in shown if "image/png" in output.get("data", {})
    ]
    return [np.asarray(Image.open(io.BytesIO(base64.b64decode(text)))) for text in encoded]


def find_photographs(data: Path, folder: Path) -> dict[str, str]:
    """What tells the notebook of a few photographs, and of weights, that are here."""
    with tarfile.open(data / "cats-dogs.tar.gz") as archive:
        chosen = [m for m in archive if re.search(r"/(test|validation)/\w+/.*[05]\.jpg$", m.name)]
        for member in chosen:
            member.name = re.sub("^cats-dogs/(test|validation)", "pets", member.name)
        archive.extractall(folder, chosen, filter="data")
    weights = data / "weights" / "mobilenet_v2_1.0_224_q8.safetensors"
    return {
        "FLAXCNN_PHOTOS": str(folder / "pets"),
        "FLAXCNN_WEIGHTS": f"file:{weights}",
        "XDG_CACHE_HOME": str(folder / "cache"),
    }


def find_cells(data: Path, folder: Path) -> dict[str, str]:
    """What tells the notebook of a few of BCCD's images, and of a small network's weights."""
    cells = folder / "cells"
    with tarfile.open(data / "bccd.tar.gz") as archive:
        archive.extractall(folder, filter="data")
    (cells / "images").mkdir(parents=True)
    for split, count in (("train", 16), ("val", 6), ("test", 6)):
        noted = json.loads((folder / "bccd" / f"{split}.json").read_text())
        kept = {image["id"]: image["file_name"] for image in noted["images"][:count]}
        noted["images"] = noted["images"][:count]
        noted["annotations"] = [x for x in noted["annotations"] if x["image_id"] in kept]
        (cells / f"{split}.json").write_text(json.dumps(noted))
        for name in kept.values():
            (folder / "bccd" / "images" / name).rename(cells / "images" / name)
    weights = data / "weights" / "mobilenet_v1_0.25_128_q8.safetensors"
    return {"FLAXCNN_BOXES": str(cells), "FLAXCNN_WEIGHTS": f"file:{weights}"}


@pytest.mark.slow
@pytest.mark.parametrize("source", SOURCES, ids=[source.stem for source in SOURCES])
def test_runs(source, shared, tfds_dir, command_env, tmp_path):
    folder = tmp_path / "My Drive"
    folder.mkdir()
    files = {"TFDS_DATA_DIR": tfds_dir, "FLAXCNN_WEIGHTS": shared / MOBILENET}
    env = command_env | {name: str(path) for name, path in files.items()}
    if source.stem == "4_transfer_learning":
        env |= find_photographs(shared / "data", tmp_path)
    if source.stem == "6_detection_segmentation":
        pytest.importorskip("pycocotools", reason="needs the extra detection")
        env |= find_cells(shared / "data", tmp_path)
    notebook = execute(source.with_suffix(".ipynb"), folder, env)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    pictures = find_pictures(notebook)
    assert len(pictures) == PICTURES[source.stem]
    assert all(len(np.unique(picture)) > 10 for picture in pictures)  # none is blank
    said = "".join(output.get("text", "") for cell in code for output in cell.outputs)
    assert "Traceback" not in said and "Warning" not in said


@pytest.mark.slow
def test_the_command_line_notebook_stops_too(monkeypatch):
    """Which asks in a process of its own; the others are in test_notebooks.py."""
    (source,) = [source for source in SOURCES if source.stem == "7_reproduce"]
    monkeypatch.setenv("COLAB_TPU_1VM", "1")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    with pytest.raises(RuntimeError, match=r"^a TPU is here \(COLAB_TPU_1VM=1\) and JAX computes"):
        exec(find_cell(source, "unused_accelerator"), {"subprocess": subprocess, "sys": sys})
