import io
import xml.dom.minidom

import cv2
import matplotlib.figure
import numpy as np
import pytest

from flaxcnn.analysis import plots
from flaxcnn.analysis.deconvnet import Patches
from flaxcnn.analysis.diagram import draw_diagram, select_layers
from flaxcnn.analysis.kernels import KERNELS, filter_image
from flaxcnn.errors import UserError

RNG = np.random.RandomState(0)
IMAGE = RNG.randint(0, 256, (11, 14, 3)).astype(np.uint8)


@pytest.mark.parametrize("kernel", [*KERNELS, RNG.randn(5, 3).tolist()])
def test_kernels_are_opencvs(kernel):
    rows = KERNELS[kernel] if isinstance(kernel, str) else kernel
    expected = cv2.filter2D(IMAGE.astype(np.float32), -1, np.array(rows, np.float32))
    np.testing.assert_allclose(filter_image(IMAGE, kernel), expected, atol=1e-3)
    if kernel in ("sobel_x", "sobel_y"):
        order = (1, 0) if kernel == "sobel_x" else (0, 1)
        sobel = cv2.Sobel(IMAGE, cv2.CV_32F, *order)
        np.testing.assert_allclose(filter_image(IMAGE, kernel), sobel, atol=1e-3)


@pytest.mark.parametrize(
    ("kernel", "message"),
    [
        ("emboss", "unknown kernel 'emboss': there are sobel_x"),
        ([[1, 2]], "odd numbers"),
        ([[1], [2, 3]], "equally long"),
        (np.ones((23, 1)), "too large"),
    ],
)
def test_kernels_are_checked(kernel, message):
    with pytest.raises(UserError, match=message):
        filter_image(IMAGE, kernel)


def test_diagram_is_xml_with_a_box_for_each_shape():
    layers = {
        "conv1": (28, 28, 6),
        "conv1_bn": (28, 28, 6),
        "block/conv": (9, 9, 9),
        "block": (14, 14, 12),
        "dropout": (2352,),
        "a<b": (10,),
        "output": (10,),
    }
    chosen = select_layers(layers, (28, 28, 6))
    assert list(chosen) == ["input", "conv1_bn", "block", "output"]
    document = xml.dom.minidom.parseString(draw_diagram(chosen | {"a<b": (3,)}, 'A "net" & more'))
    texts = [node.firstChild.data for node in document.getElementsByTagName("text")]
    assert len(document.getElementsByTagName("polygon")) == 3 * 5  # front, top, side
    assert {"a<b", "14×14", "× 12", 'A "net" & more'} <= set(texts)
    width = float(document.documentElement.getAttribute("width"))
    for polygon in document.getElementsByTagName("polygon"):
        points = [pair.split(",") for pair in polygon.getAttribute("points").split()]
        assert all(0 < float(x) < width for x, _ in points)
    for wrong in ({}, {"x": (1, 2)}):
        with pytest.raises(UserError):
            draw_diagram(wrong)


def draw_all():
    maps = RNG.randn(6, 5, 7).astype(np.float32)
    patches = Patches(*(np.zeros(9),) * 3, RNG.rand(9, 5, 5, 3), RNG.randn(9, 5, 5, 3))
    results = {"blur": {"flaxcnn": IMAGE / 1.0, "OpenCV": IMAGE / 1.0}}
    methods = {"saliency": RNG.randn(2, 5, 5, 3), "grad_cam": RNG.rand(2, 5, 5, 1)}
    yield "samples", plots.draw_samples([IMAGE, IMAGE[..., :1]], ["a", "$b"]), 2
    yield "channels", plots.draw_channels(IMAGE), 4
    yield "pixels", plots.draw_pixels(IMAGE), 3
    yield "filtered", plots.draw_filtered(IMAGE, results), 4
    yield "filters", plots.draw_filters(RNG.randn(3, 3, 3, 5)), 1
    yield "features", plots.draw_features(maps, image=IMAGE, title="x"), 3
    yield "attributions", plots.draw_attributions(RNG.rand(2, 5, 5, 3), methods, ["a", "b"]), 6
    yield "patches", plots.draw_patches([patches], 0.5, 0.5, ["unit 1"]), 18


def test_figures_can_be_saved():
    for name, figure, panels in draw_all():
        assert isinstance(figure, matplotlib.figure.Figure), name
        assert len(figure.get_axes()) == panels, name
        figure.savefig(io.BytesIO(), dpi=20)


def test_pixels_are_written_as_numbers():
    (axes,) = plots.draw_pixels(np.array([[[0], [255]], [[17], [8]]], np.uint8)).get_axes()
    assert [text.get_text() for text in axes.texts] == ["0", "255", "17", "8"]
    (axes,) = plots.draw_pixels(np.array([[[0.0], [0.25], [1.0]]])).get_axes()
    assert [text.get_text() for text in axes.texts] == [".00", ".25", "1.00"]
    with pytest.raises(UserError, match="choose at most 40x40"):
        plots.draw_pixels(np.zeros((41, 2, 1)))


def test_values_for_the_eye():
    np.testing.assert_allclose(
        plots.to_pixels(np.array([[[[-1.0, 4.0]]]]), 0.5, 0.25), [[[[0.25, 1]]]]
    )
    shown = plots.stretch(np.array([-2.0, 0, 1]).reshape(3, 1, 1))
    np.testing.assert_allclose(shown.ravel(), [0, 0.5, 0.75])
