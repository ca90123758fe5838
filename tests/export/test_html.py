"""The page computes what JAX computes, in node and in headless Chromium, and is a page to use."""

import base64
import io
import json
import re
import shutil
import subprocess
import tarfile
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import flaxcnn
from flaxcnn.data.images import fit_image, read_image
from flaxcnn.errors import UserError
from flaxcnn.export import Page, Sample, export_html
from flaxcnn.export.html import pack_constants, prepare, round_weights
from flaxcnn.layers import (
    BatchNorm,
    Conv,
    DepthwiseConv,
    avg_pool,
    channel_max_pool,
    global_max_pool,
    local_response_norm,
    max_pool,
)
from flaxcnn.models import variant

MEAN, STD = (0.4, 0.5, 0.3), (0.2, 0.25, 0.3)


@pytest.fixture
def compute(tmp_path):
    """(page, images uint8 [N, H, W, C]) -> outputs [N, ...] and the maps of the first, by node."""
    node = shutil.which("node")
    if node is None:
        pytest.skip("no node here")

    def run(page: Path, images: np.ndarray):
        (tmp_path / "pixels").write_bytes(images.tobytes())
        program = Path(__file__).with_name("run_page.js")
        command = [node, str(program), str(page), str(tmp_path / "pixels")]
        finished = subprocess.run(command, capture_output=True, text=True)
        assert finished.returncode == 0, finished.stderr
        answers = json.loads(finished.stdout)
        return np.array([answer["output"] for answer in answers]), answers[0]["maps"]

    return run


def draw_variables(model: nn.Module, shape: tuple[int, ...], seed: int = 0):
    """Variables without zeros and ones, which would hide what is left out; signals stay large."""
    rng = np.random.default_rng(seed)

    def draw(path, x):
        name = path[-1].key
        if name in ("scale", "var"):
            return rng.uniform(0.7, 1.3, x.shape).astype(np.float32)
        fan_in = np.prod(x.shape[:-1]) if x.ndim > 1 else 50
        return (rng.normal(size=x.shape) * np.sqrt(2 / fan_in)).astype(np.float32)

    images = jax.ShapeDtypeStruct((1, *shape), jnp.float32)
    made = jax.eval_shape(lambda x: model.init(jax.random.key(0), x, train=False), images)
    return jax.tree_util.tree_map_with_path(draw, made)


def draw_images(count: int, shape: tuple[int, ...]) -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, (count, *shape)).astype(np.uint8)


def normalize(images: np.ndarray) -> np.ndarray:
    mean, std = (np.array(x[: images.shape[-1]], np.float32) for x in (MEAN, STD))
    return (images.astype(np.float32) / 255 - mean) / std


def expect(model, variables, images: np.ndarray) -> np.ndarray:
    return np.asarray(
        jax.jit(model.apply, static_argnames="train")(variables, normalize(images), train=False)
    )


def make_page(count: int, channels: int = 3, **more) -> Page:
    names = [f"class {index}" for index in range(count)]
    return Page("a network", names, MEAN[:channels], STD[:channels], **more)


class Everything(nn.Module):
    """What the networks are made of, in odd sizes and with padding of different sides."""

    @nn.compact
    def __call__(self, x, *, train):
        x = Conv(12, 5, 2, padding=((1, 2), (0, 3)), name="stem")(x)
        x = nn.relu6(BatchNorm(not train, name="stem_bn")(x))
        y = nn.relu(BatchNorm(not train, name="norm_first")(x))  # nothing to fold it into
        y = Conv(18, 3, dilation=2, groups=3, use_bias=False, name="grouped")(y)
        y = nn.gelu(BatchNorm(not train, name="grouped_bn")(y), approximate=False)
        y = nn.sigmoid(nn.Dense(18, name="gate")(y.mean((1, 2), keepdims=True))) * y
        z = nn.relu6(2 * DepthwiseConv(3, strides=2, padding=((1, 0), (2, 0)), name="spread")(x))
        z = nn.relu6(DepthwiseConv(2, padding=((1, 0), (0, 1)), name="limited")(3 * z))
        z = nn.Conv(7, (3, 2), name="flax")(z)
        z = nn.tanh(jnp.concatenate([nn.relu(z), nn.relu(-z)], -1))
        pooled = [
            max_pool(y, (3, 2), (2, 2), ceil_mode=True, padding=((0, 0), (0, 1))),
            avg_pool(x, (3, 3), (2, 2), "SAME", count_include_pad=False),
            jnp.pad(z, ((0, 0), (0, 0), (0, 0), (2, 1)))[:, ::-1],
            nn.max_pool(x, (2, 2), (2, 2), "SAME"),
        ]
        height, width = (min(p.shape[axis] for p in pooled) for axis in (1, 2))
        x = jnp.concatenate([p[:, :height, :width] for p in pooled], -1)
        x = local_response_norm(x, size=5, k=1.5, alpha=0.1) + local_response_norm(x, beta=0.6)
        x = channel_max_pool(x[..., : x.shape[-1] // 2 * 2], 2)
        y = nn.leaky_relu(nn.Dense(11, name="dense")(x.transpose(0, 3, 1, 2).reshape(len(x), -1)))
        floor = nn.relu(jnp.maximum(nn.Dense(4, name="floor")(y), 0.3))
        x = jnp.concatenate([floor, nn.elu(y - 1), global_max_pool(x), nn.hard_swish(y)], -1)
        return nn.Dense(5, name="classifier")(9 * nn.softmax(x) + x**3 * 0.1 + x)


def test_every_operation_is_jaxs(compute, tmp_path):
    model, shape = Everything(), (17, 14, 3)
    variables = draw_variables(model, shape)
    images = draw_images(3, shape)
    assert export_html(tmp_path / "page.html", model, variables, shape, make_page(5)) == "float32"
    got, maps = compute(tmp_path / "page.html", images)
    apply = jax.jit(lambda x: model.apply(variables, x, train=False, capture_intermediates=True))
    want, state = apply(normalize(images))
    assert np.ptp(want, axis=0).min() > 0.1  # the images are told apart
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-5)
    # The first layer's maps: the convolution, its BatchNorm and ReLU6.
    (stem,) = state["intermediates"]["stem_bn"]["__call__"]
    np.testing.assert_allclose(maps, np.clip(stem[0], 0, 6).ravel(), atol=1e-5)


def test_half_precision_is_that_of_the_rounded_kernels(compute, tmp_path):
    model, shape = flaxcnn.create_model("cifar_cnn_5x5_bn"), (32, 32, 3)
    variables, images = draw_variables(model, shape), draw_images(4, shape)
    export_html(tmp_path / "page.html", model, variables, shape, make_page(10), "float16")
    folded, weights = prepare(model, variables, shape)
    rounded = round_weights(weights)
    for before, after in zip(*map(jax.tree.leaves, (weights, rounded)), strict=True):
        assert after.dtype == np.float32
        np.testing.assert_array_equal(after, np.float16(before) if before.ndim > 1 else before)
    want = expect(folded, rounded, images)
    got, _ = compute(tmp_path / "page.html", images)
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-4)
    assert np.abs(expect(folded, weights, images) - want).max() > 5e-4  # of the kernels before
    assert np.ptp(want, axis=0).min() > 0.1  # the images are told apart
    count = sum(x.size for x in jax.tree.leaves(weights["params"]))
    assert (tmp_path / "page.html").stat().st_size < 2 * count * 4 / 3 + 200_000


def read_part(page: Path, name: str):
    return json.loads(re.search(f' id="{name}">(.*?)</script>', page.read_text(), re.DOTALL)[1])


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """A page of a small network of grey images, with names that are no HTML."""
    model, shape = flaxcnn.create_model("digits_cnn"), (8, 8, 1)
    variables = draw_variables(model, shape)
    sample = np.zeros(shape, np.uint8)
    sample[1:7, 3:5] = 255
    names = ["</script><b>zero", 'one & "two"', *map(str, range(2, 10))]
    page = Page("<digits>", names, MEAN[:1], STD[:1], samples=[Sample(sample, "</script>")])
    path = tmp_path_factory.mktemp("page") / "digits & more.html"
    export_html(path, model, variables, shape, page)
    return path, model, variables


ANSWERED = """new Promise((resolve) => {
  const look = () => find("best").textContent.includes("%") && !busy
    ? resolve(find("best").textContent) : setTimeout(look, 10);
  look();
})"""


def test_in_a_browser_it_computes_what_jax_does(browser, digits):
    page, model, variables = digits
    images = draw_images(20, (8, 8, 1))
    browser.open(page)
    pixels = base64.b64encode(images.tobytes()).decode()
    got = browser.evaluate(f"""(async () => {{
      const pixels = decode("{pixels}"), answers = [];
      for (let i = 0; i < 20; i++) {{
        answers.push(await classify(pixels.slice(64 * i, 64 * (i + 1))));
      }}
      return answers.map((x) => [...x.logits, ...x.probabilities]);
    }})()""")
    want = expect(model, variables, images)
    logits, probabilities = np.split(np.array(got), 2, axis=1)
    assert np.ptp(want, axis=0).min() > 0.1
    np.testing.assert_allclose(logits, want, rtol=0, atol=1e-4)
    np.testing.assert_allclose(probabilities, jax.nn.softmax(want), rtol=0, atol=1e-5)


@pytest.mark.parametrize("size", [(1100, 900), (360, 740)])
def test_in_a_browser_it_can_be_used(browser, digits, size, tmp_path):
    page, model, variables = digits
    browser.open(page, *size, mobile=size[0] < 500)
    first = browser.evaluate(ANSWERED)  # of the sample
    assert browser.evaluate("document.title") == "<digits>"
    assert browser.evaluate("document.documentElement.scrollWidth") <= size[0]
    assert browser.evaluate("find('maps').children.length") == 32
    names = browser.evaluate(
        "[...document.querySelectorAll('#bars .name')].map((x) => x.textContent)"
    )
    assert names[:2] == ["</script><b>zero", 'one & "two"'] and len(names) == 10
    bars = browser.evaluate(
        "[...document.querySelectorAll('#bars .bar')]"
        ".map((x) => x.firstChild.offsetWidth / x.offsetWidth)"
    )
    assert sum(bars) == pytest.approx(1, abs=0.1)
    # A line that is drawn is one of the data's width that fills the frame's height as theirs does.
    browser.evaluate("find('best').textContent = ''")
    left, top, side = browser.evaluate(
        "(({left, top, width}) => [left, top, width])(find('pad').getBoundingClientRect())"
    )
    x, y = left + 0.2 * side, top + 0.3 * side
    browser.drag((x, y), (x, y + 0.2 * side), (x, y + 0.4 * side))
    drawn = browser.evaluate(
        f"{ANSWERED}.then(() => [...find('seen').getContext('2d').getImageData(0, 0, 8, 8).data])"
    )
    seen = np.array(drawn).reshape(8, 8, 4)[..., 0] / 255
    assert np.flatnonzero(seen.max(1) > 0.2).tolist() == [1, 2, 3, 4, 5, 6]
    assert seen[2:6].sum(1) == pytest.approx(2, abs=0.8)
    assert (seen.sum(0) * np.arange(8)).sum() / seen.sum() == pytest.approx(3.5, abs=0.6)
    # A photograph is brought to size as the run's images were.
    photograph = np.kron(draw_images(1, (6, 9, 3))[0], np.ones((4, 4, 1), np.uint8))
    buffer = io.BytesIO()
    Image.fromarray(photograph).save(buffer, "png")
    dropped = browser.evaluate(f"""(async () => {{
      find("best").textContent = "";
      const bytes = decode("{base64.b64encode(buffer.getvalue()).decode()}");
      const dataTransfer = new DataTransfer();
      dataTransfer.items.add(new File([bytes], "x.png", {{type: "image/png"}}));
      const options = {{dataTransfer, bubbles: true, cancelable: true}};
      document.body.dispatchEvent(new DragEvent("drop", options));
      const best = await {ANSWERED};
      return [best, [...find("seen").getContext("2d").getImageData(0, 0, 8, 8).data]];
    }})()""")
    fitted = fit_image(photograph, (8, 8), "crop", 1)
    seen = np.array(dropped[1]).reshape(8, 8, 4)[..., :1]
    assert np.abs(seen - fitted.astype(int)).max() <= 1
    answer = jax.nn.softmax(expect(model, variables, seen[None].astype(np.uint8)))[0]
    assert dropped[0].endswith(f"{100 * answer.max():.1f} %") and dropped[0] != first
    # Offline, without an error, and nothing but the file itself was asked for.
    methods = [event["method"] for event in browser.events]
    assert "Runtime.exceptionThrown" not in methods
    asked = [
        e["params"]["request"]["url"]
        for e in browser.events
        if e["method"] == "Network.requestWillBeSent"
    ]
    assert [url for url in asked if not url.startswith("blob:")] == [page.resolve().as_uri()]
    browser.screenshot(tmp_path / "page.png")


def test_images_are_brought_to_size_as_when_they_are_read(compute, tmp_path):
    script = tmp_path / "fit.js"
    source = Path(flaxcnn.__file__).parent / "export" / "image.js"
    cases = [
        (shape, size, channels, resize)
        for shape in ((60, 90), (33, 20), (9, 11), (64, 64))
        for size, channels in (((32, 32), 3), ((20, 27), 1))
        for resize in ("crop", "stretch", "pad")
    ]
    images = {shape: draw_images(1, (*shape, 3))[0] for shape, *_ in cases}
    given = [[*shape, images[shape].ravel().tolist(), *rest] for shape, *rest in cases]
    script.write_text(f"""const {{fitImage}} = require({json.dumps(str(source))});
      const answers = {json.dumps(given)}.map(
        ([height, width, rgb, size, channels, resize]) => {{
          const data = new Uint8ClampedArray(4 * width * height).fill(255);
          rgb.forEach((value, i) => {{ data[4 * Math.floor(i / 3) + i % 3] = value; }});
          return Array.from(fitImage({{data, width, height}}, [...size, channels], resize));
        }});
      console.log(JSON.stringify(answers));""")
    finished = subprocess.run(["node", script], capture_output=True, text=True, check=True)
    for (shape, size, channels, resize), got in zip(
        cases, json.loads(finished.stdout), strict=True
    ):
        want = fit_image(images[shape], size, resize, channels).astype(int)
        difference = np.abs(np.array(got).reshape(want.shape) - want)
        assert difference.max() <= 1 and difference.mean() < 0.2, (shape, size, channels, resize)


class Sorts(nn.Module):
    @nn.compact
    def __call__(self, x, *, train):
        return nn.Dense(2)(jnp.sort(x.reshape(1, -1)))


class Half(nn.Module):
    @nn.compact
    def __call__(self, x, *, train):
        return nn.Dense(2)(x.reshape(1, -1).astype(jnp.bfloat16)).astype(jnp.float32)


@pytest.mark.parametrize(
    ("model", "page", "weights", "message"),
    [
        (Sorts(), make_page(2, 1), "auto", "the operation `sort` of Sorts cannot be exported"),
        (Half(), make_page(2, 1), "auto", "computes in bfloat16, and a page in float32"),
        (nn.Dense(3), make_page(3, 1), "int8", "weights is 'int8', and must be auto, float32"),
        (flaxcnn.create_model("mnist_mlp_512"), make_page(7, 1), "auto", "10 outputs, and there"),
    ],
)
def test_what_cannot_be_exported_is_named(model, page, weights, message, tmp_path):
    shape = (4, 4, 1)
    variables = {} if weights == "int8" else draw_variables(model, shape)
    with pytest.raises(UserError, match=message) as raised:
        export_html(tmp_path / "page.html", model, variables, shape, page, weights)
    assert "\n" not in str(raised.value) and not any(tmp_path.iterdir())


def test_a_page_that_is_too_large_is_refused_with_its_size(tmp_path, monkeypatch):
    model, shape = flaxcnn.create_model("mnist_mlp_512"), (8, 8, 1)
    variables = draw_variables(model, shape)
    monkeypatch.setattr("flaxcnn.export.html.LIMIT", 1_200_000)
    page = make_page(10, 1)
    assert export_html(tmp_path / "page.html", model, variables, shape, page) == "float16"
    size = (tmp_path / "page.html").stat().st_size
    monkeypatch.setattr("flaxcnn.export.html.LIMIT", size - 1)
    with pytest.raises(UserError, match=f"would have {size / 1e6:.1f} MB with float16 weights"):
        export_html(tmp_path / "other.html", model, variables, shape, page)
    assert not (tmp_path / "other.html").exists()


def test_a_constant_is_stored_in_16_bits_only_if_that_loses_nothing():
    arrays = [np.float32(x) for x in ([0.1, 0.2, 0.3], [0.5, -2.25, 65504], [1e-7, 1], [1e5, 2])]
    blob, places = pack_constants(arrays)
    assert [place["type"] for place in places] == ["float32", "float16", "float32", "float32"]
    for x, place in zip(arrays, places, strict=True):
        got = np.frombuffer(blob, place["type"], place["size"], place["offset"])
        np.testing.assert_array_equal(got, x)
        assert place["offset"] % got.itemsize == 0


def test_one_output_is_the_second_of_two_classes(browser, tmp_path):
    model, shape = flaxcnn.create_model("mnist_mlp_512", num_classes=1), (4, 4, 1)
    variables = draw_variables(model, shape)
    export_html(tmp_path / "page.html", model, variables, shape, make_page(2, 1))
    images = draw_images(1, shape)
    browser.open(tmp_path / "page.html")
    got = browser.evaluate(
        f"classify(new Uint8Array({images.ravel().tolist()})).then((x) => x.probabilities)"
    )
    positive = jax.nn.sigmoid(expect(model, variables, images))[0, 0]
    np.testing.assert_allclose(got, [1 - positive, positive], atol=1e-5)
    assert browser.evaluate("find('features').hidden")  # no convolution, no maps


WEIGHTS = Path(__file__).parents[3] / "shared/data"


@pytest.mark.slow
def test_pretrained_mobilenet_v2_on_photographs(browser, tmp_path):
    file = WEIGHTS / "weights/mobilenet_v2_1.0_224_q8.safetensors"
    if not file.exists():
        pytest.skip(f"no {file}")
    with tarfile.open(WEIGHTS / "imagenet-samples.tar.gz") as archive:
        archive.extractall(tmp_path, filter="data")
    photographs = sorted((tmp_path / "imagenet-samples").glob("*.jpg"))[:20]
    labels = json.loads((tmp_path / "imagenet-samples/labels.json").read_text())
    model, shape = flaxcnn.create_model("mobilenet_v2", num_classes=1001), (224, 224, 3)
    tensors = flaxcnn.weights.read_tensors(file)
    variables = flaxcnn.weights.convert("mobilenet_v2", tensors, "tflite", num_classes=1001)
    page = Page("MobileNetV2", [str(index - 1) for index in range(1001)], [0.5] * 3, [0.5] * 3)
    assert export_html(tmp_path / "page.html", model, variables, shape, page) == "float16"
    images = np.stack([read_image(x, (224, 224), "crop", 3) for x in photographs])
    folded, weights = prepare(model, variables, shape)
    weights = round_weights(weights)
    want = jax.jit(lambda x: folded.apply(weights, x, train=False))(images / np.float32(127.5) - 1)
    browser.open(tmp_path / "page.html")
    right, milliseconds = 0, []
    for photograph, image, logits in zip(photographs, images, want, strict=True):
        pixels = base64.b64encode(image.tobytes()).decode()
        got = browser.evaluate(
            f"classify(decode('{pixels}'))"
            ".then(({ms, probabilities, logits}) => ({ms, probabilities, logits: [...logits]}))"
        )
        np.testing.assert_allclose(got["logits"], logits, rtol=0, atol=1e-4)
        right += np.argmax(got["probabilities"]) == labels[photograph.name] + 1
        milliseconds.append(got["ms"])
    print(f"{right} of 20 right, {np.median(milliseconds):.0f} ms each")
    assert right >= 16


ZOO = (
    *("airbench94", "cifar_resnet20", "densenet121", "googlenet_lrn", "lenet5_1998", "nin_cifar10"),
    *("mobilenet_v1_0.25_128", "nasnet_a_mobile", "resnet18", "resnet34_a", "resnetv2_50"),
    *("seresnet50", "resnext50_32x4d", "squeezenet1_0_caffe", "xception", "inception_v3_keras"),
)


@pytest.mark.zoo
@pytest.mark.parametrize("name", ZOO)
def test_networks_of_the_zoo(name, compute, tmp_path, monkeypatch):
    monkeypatch.setattr("flaxcnn.export.html.LIMIT", 10**9)
    model, shape = flaxcnn.create_model(name), variant(name).input_shape
    variables, images = draw_variables(model, shape), draw_images(2, shape)
    page = make_page(model.num_classes, shape[-1])
    export_html(tmp_path / "page.html", model, variables, shape, page)
    want = expect(model, variables, images)
    got, _ = compute(tmp_path / "page.html", images)
    size = np.ptp(want, axis=0).max()  # by how much the images differ
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-3 * size)
