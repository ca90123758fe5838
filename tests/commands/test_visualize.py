import xml.dom.minidom

import numpy as np
import pytest
from PIL import Image

from flaxcnn.commands.main import main


@pytest.fixture
def image(tmp_path):
    pixels = np.random.RandomState(0).randint(0, 256, (8, 8)).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "digit.png")
    return str(tmp_path / "digit.png")


@pytest.mark.parametrize(
    "arguments",
    [
        "samples IMAGE IMAGE",
        "pixels IMAGE --at 1,2,3,4",
        ["kernels", "IMAGE", "--kernel", "0 1 0; 1 -4 1; 0 1 0"],
        "filters --model digits_cnn",
        "receptive_field --model resnet18",
        "features --model digits_cnn --layer conv2 IMAGE",
        pytest.param(
            "deconv --model digits_cnn --layer conv1 --units 3 IMAGE IMAGE", marks=pytest.mark.slow
        ),
        pytest.param(
            "grad_cam --model digits_cnn --layer conv2_bn --class 3 IMAGE", marks=pytest.mark.slow
        ),
        pytest.param(
            "maximize --model digits_cnn --layer output --units 1 --steps 1", marks=pytest.mark.slow
        ),
    ],
)
def test_picture_is_written(arguments, image, tmp_path, capsys):
    words = arguments.split() if isinstance(arguments, str) else arguments
    out = str(tmp_path / "out.png")
    words = [image if word == "IMAGE" else word for word in words]
    assert main(["visualize", *words, "--out", out]) == 0
    assert capsys.readouterr().out.endswith(f"{out}\n")
    with Image.open(out) as picture:
        assert picture.size[0] > 100


def test_diagram_is_written(tmp_path):
    out = tmp_path / "a.svg"
    assert main(["visualize", "diagram", "--model", "squeezenet1_0", "--out", str(out)]) == 0
    assert len(xml.dom.minidom.parse(str(out)).getElementsByTagName("polygon")) == 3 * 10


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("pixels IMAGE --at 1,2,30,4", "--at 1,2,30,4: there are no such pixels in IMAGE"),
        ("kernels IMAGE --kernel a", '--kernel "a": rows of numbers'),
        ("channels IMAGE IMAGE", "channels draws one image, and 2 are given"),
        ("filters", "give either --workdir RUN or --model NAME"),
        ("filters --model digits_cnn --out NO/a.png", "there is no folder NO"),
        ("features --model digits_cnn --layer conv* IMAGE", "means several: conv1, conv1_bn"),
        pytest.param(
            "features --model digits_cnn --layer fc1 IMAGE",
            "fc1 has no maps: its output is 64",
            marks=pytest.mark.slow,
        ),
        ("saliency --model digits_cnn --class 10 IMAGE", "class 10: there are 10"),
        ("maximize --model digits_cnn --layer fc1 --units a", "--units a: numbers"),
    ],
)
def test_mistakes_are_told_in_one_line(arguments, message, image, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = [image if word == "IMAGE" else word for word in arguments.split()]
    assert main(["visualize", *words]) == 2
    error = capsys.readouterr().err
    assert message.replace("IMAGE", image) in error and error.count("\n") == 1
