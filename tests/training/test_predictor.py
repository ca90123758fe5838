"""A predictor: any number of images, any thread, published weights and files."""

import json
import tarfile
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax
import numpy as np
import pytest
from photographs import WEIGHTS
from scipy import stats

import flaxcnn
from flaxcnn.commands.main import main
from flaxcnn.errors import UserError
from flaxcnn.tasks.classification import Classification
from flaxcnn.training.predictor import Predictor
from flaxcnn.weights import Preprocessing
from flaxcnn.weights import preprocessing as preprocessing_module

MEAN, STD = (0.5, 0.25, 0.1), (0.5, 1.0, 2.0)
NAMES = tuple("abcdefghij")


class Slow:
    """A jitted function that notes the batches it is compiled for, and lets other threads in."""

    def __init__(self, function):
        self.function, self.batches = function, []

    def lower(self, variables, images):
        self.batches.append(len(images))
        time.sleep(0.1)
        return self.function.lower(variables, images)


@pytest.fixture(scope="module")
def network():
    model = flaxcnn.create_model("cifar_resnet20", depths=(1,))
    return model, flaxcnn.init(model, jax.random.key(0), (8, 8, 3))


def make(network, **kwargs):
    preprocessing = Preprocessing((8, 8), MEAN, STD, 1.0)
    return Predictor(*network, preprocessing, Classification(NAMES), **kwargs)


def draw(count):
    return np.random.default_rng(count).integers(0, 256, (count, 8, 8, 3), np.uint8)


def test_threads_compile_each_batch_size_once(network):
    predictor = make(network, batch_size=8)
    predictor._answer = slow = Slow(predictor._answer)
    counts = [1, 3, 4, 5, 8, 9, 21] * 2
    with ThreadPoolExecutor(7) as pool:
        answers = list(pool.map(lambda count: predictor(draw(count)), counts))
    assert sorted(slow.batches) == [1, 4, 8]
    model, variables = network
    apply = jax.jit(lambda x: jax.nn.softmax(model.apply(variables, x, train=False)))
    for count, answer in zip(counts, answers, strict=True):
        assert answer.shape == (count, 10)
        padded = np.zeros((21, 8, 8, 3), np.float32)
        padded[:count] = (np.float32(draw(count)) / 255 - MEAN) / STD
        np.testing.assert_allclose(answer, apply(padded)[:count], atol=1e-5)


def test_floats_are_0_to_1(network):
    predictor, images = make(network), draw(2)
    scaled = np.float64(images) / 255
    np.testing.assert_allclose(predictor(scaled), predictor(images), atol=1e-5)
    preprocessing_module._warn_of_range.cache_clear()
    with pytest.warns(UserWarning, match="far above 1"):
        predictor(np.float32(images))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        predictor(np.float32(images))  # once
    for wrong, line in [
        (draw(2)[0], r"must be \[N, 8, 8, 3\], got \[8, 8, 3\]: `read` brings files"),
        (draw(2)[:0], r"got \[0, 8, 8, 3\]"),
        (np.int32(images), "must be uint8, or floats in 0..1, got int32"),
    ]:
        with pytest.raises(UserError, match=line):
            predictor(wrong)
    with pytest.raises(UserError, match="batch_size must be at least 1"):
        make(network, batch_size=0)


def test_what_predict_needs_is_one_line(tmp_path, capsys):
    for arguments, line in [
        ([], "--workdir RUN is missing: the folder of a run of `flaxcnn train`; or --weights"),
        (["--workdir", "a", "--weights", "b"], "--workdir is a run: --model and --weights are for"),
        (["--weights", "nobody.none"], "no pretrained weights are called 'nobody.none'"),
    ]:
        assert main(["predict", *arguments, "photo.jpg"]) == 2
        said = capsys.readouterr().err
        assert line in said and said.count("\n") == 1


# Right of the 96 photographs in ../shared/data/weights/README.txt, of which 48 are here.
@pytest.mark.parametrize(
    ("name", "top1", "top5"),
    [
        ("mobilenet_v1_0.25_128", 45, 72),
        pytest.param("mobilenet_v2_1.00_224", 86, 92, marks=pytest.mark.slow),
        pytest.param("squeezenet1_0_caffe", 62, 85, marks=pytest.mark.slow),
    ],
)
def test_published_weights_on_photographs(name, top1, top5, shared, tmp_path, capsys):
    with tarfile.open(shared / "data" / "imagenet-samples.tar.gz") as archive:
        members = [member for member in archive if member.isfile()]
        content = {Path(m.name).name: archive.extractfile(m).read() for m in members}
    labels = json.loads(content["labels.json"])
    for photo in labels:
        (tmp_path / photo).write_bytes(content[photo])
    weights = str(shared / "data" / "weights" / WEIGHTS[name].file)
    command = ["predict", "--model", name, "--weights", weights, "--json", str(tmp_path)]
    assert main(command) == 0
    results = json.loads(capsys.readouterr().out)
    assert len(results) == 48

    names = flaxcnn.weights.labels.class_names("imagenet1k")
    right = np.zeros(5, int)
    for result in results:
        expected = names[labels[Path(result["image"]).name]]
        right += [entry["class"] == expected for entry in result["top"]]
        assert len(result["top"]) == 5
    assert abs(right[0] - top1 / 2) <= 3 and abs(right.sum() - top5 / 2) <= 3, right

    if name == "mobilenet_v1_0.25_128":
        predictor = flaxcnn.load(weights, name)
        assert predictor.task.class_names == ("background", *names)
        probabilities = predictor(predictor.read(results[0]["image"])[None])[0]
        entropy = stats.entropy(np.float64(probabilities))
        assert results[0]["entropy"] == pytest.approx(entropy, rel=1e-3)
        assert main([*command[:-2], results[0]["image"]]) == 0
        *_, last = capsys.readouterr().out.splitlines()
        assert last == f"  entropy {entropy:.2f} of 6.91"
