"""Runs that start with weights: what is taken, how their images are read, what is recorded."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file

from flaxcnn.errors import UserError
from flaxcnn.models import create_model
from flaxcnn.training.config import Config, DataConfig, ModelConfig, OptimizerConfig, normalize
from flaxcnn.training.config_check import validate
from flaxcnn.training.experiment import make_experiment
from flaxcnn.training.facts import Facts, describe_reading
from flaxcnn.training.start import Match, Source, Start, match_variables
from flaxcnn.training.weights_spec import Spec, absolute_weights, parse_spec
from flaxcnn.training.workdir import Workdir
from flaxcnn.weights import export

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # torchvision's


def shapes(name, image_shape, **kwargs):
    model = create_model(name, **kwargs)
    images = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    return model, jax.eval_shape(lambda x: model.init(jax.random.key(0), x, train=False), images)


def names(paths):
    return {path[1] for path in paths}


def test_vgg_grows_as_in_its_paper():
    """Simonyan 2014, Table 1: B has a second convolution in blocks 1 and 2, D a third in 3 to 5."""
    (_, a), (b_model, b), (d_model, d) = (
        shapes(name, (224, 224, 3), num_classes=10) for name in ("vgg11", "vgg13", "vgg16")
    )
    grown = match_variables(b_model, (224, 224, 3), b, a, "A", partial=True)
    assert names(grown.new) == {"stage1_conv2", "stage2_conv2"} and not grown.unused
    again = match_variables(d_model, (224, 224, 3), d, b, "B", partial=True)
    assert names(again.new) == {f"stage{i}_conv3" for i in (3, 4, 5)} and not again.unused
    with pytest.raises(UserError, match="A is not of this network: missing stage1_conv2/.*partial"):
        match_variables(b_model, (224, 224, 3), b, a, "A")


def test_a_head_for_other_classes_is_new_and_anything_else_that_differs_refused():
    model, ours = shapes("digits_cnn", (8, 8, 1), num_classes=3)
    _, theirs = shapes("digits_cnn", (8, 8, 1), num_classes=10)
    match = match_variables(model, (8, 8, 1), ours, theirs, "that")
    assert set(match.new) == {("params", "classifier", leaf) for leaf in ("kernel", "bias")}
    line = match.describe("digits_cnn", Start("that"), ("a", "b", "c"))
    assert line.startswith("digits_cnn starts with that; ") and "new: classifier/" in line
    _, other = shapes("digits_cnn", (8, 8, 3), num_classes=10)
    with pytest.raises(UserError, match="that is not of this network: .* has shape .* and not"):
        match_variables(model, (8, 8, 1), ours, other, "that")
    with pytest.raises(UserError, match="that has no parameter of the network's name and shape"):
        match_variables(model, (8, 8, 1), ours, {"params": {}}, "that", partial=True)


def test_a_kept_head_of_other_classes_is_said():
    start, match = Start("that", class_names=("dog", "cat")), Match((), (), ())
    assert "its classes are dog, cat, and the data's cat, dog" in match.describe(
        "m", start, ("cat", "dog")
    )
    assert match.describe("m", start, ("dog", "cat")) == "m starts with that"


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    """A folder of two classes of images of several sizes, and the weights of a ResNet-20."""
    root, rng = tmp_path_factory.mktemp("start"), np.random.default_rng(0)
    for name in ("cat", "dog"):
        (root / "photos" / name).mkdir(parents=True)
        for index in range(10):
            pixels = rng.integers(0, 256, (48, 40 + index, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / "photos" / name / f"{index}.png")
    _, abstract = shapes("cifar_resnet20", (32, 32, 3), num_classes=10)
    variables = jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32), abstract)
    save_file(export("cifar_resnet20", variables, "torchvision"), root / "resnet20.safetensors")
    return root, variables


def make_config(root, **data) -> Config:
    data = {"source": f"folder:{root}/photos", "normalization": "weights", "batch_size": 8} | data
    return normalize(
        Config(
            model=ModelConfig("cifar_resnet20", weights=f"file:{root}/resnet20.safetensors"),
            data=DataConfig(**data),
            optimizer=OptimizerConfig(freeze="(?!classifier).*"),
        )
    )


def test_a_run_starts_with_a_file_reads_as_it_wants_and_resumes_without_it(
    photographs, tmp_path, capsys
):
    root, variables = photographs
    config, folder = make_config(root), Workdir(tmp_path / "run")
    folder.make()
    experiment = make_experiment(config, folder)
    facts = Facts.read(folder)
    np.testing.assert_allclose((facts.mean, facts.std), (MEAN, STD), rtol=1e-6)
    assert facts.image_shape == [32, 32, 3] and len(facts.weights["sha256"]) == 64
    state = experiment.initial_state()
    assert "starts with" in (line := capsys.readouterr().err) and "new: classifier/" in line
    stem = variables["params"]["stem_conv"]["kernel"]
    np.testing.assert_array_equal(state.params["stem_conv"]["kernel"], stem)
    assert state.params["classifier"]["kernel"].shape == (64, 2)
    # Pillow's own bilinear resizing to 32 / crop share, and the centre.
    split = experiment.dataset.splits["train"]
    name = next(iter(experiment.dataset.files["train"]))
    file = Image.open(root / "photos" / name)
    width = int(32 * file.width / file.height) if file.width > file.height else 32
    height = 32 if file.width > file.height else int(32 * file.height / file.width)
    resized = np.asarray(file.resize((width, height), Image.Resampling.BILINEAR))
    top, left = round((height - 32) / 2), round((width - 32) / 2)
    image = split.load(np.arange(1))[0][0]
    np.testing.assert_array_equal(image, resized[top : top + 32, left : left + 32])
    # Once it has begun, the file is needed for step 0 alone.
    moved = root / "moved.safetensors"
    (root / "resnet20.safetensors").rename(moved)
    again = make_experiment(config, folder)
    assert again.facts == facts and again.dataset.splits["train"].load(np.arange(1))[0][0].shape
    np.testing.assert_array_equal(again.dataset.splits["train"].load(np.arange(1))[0][0], image)
    with pytest.raises(UserError, match="no such file"):
        again.initial_state()
    tampered = bytearray(moved.read_bytes())
    tampered[-1] ^= 1
    (root / "resnet20.safetensors").write_bytes(tampered)
    again = make_experiment(config, folder)
    with pytest.raises(UserError, match=r"^model.weights: .* is not what the run has started with"):
        again.initial_state()
    moved.rename(root / "resnet20.safetensors")


def test_what_the_config_says_of_images_comes_before_the_weights(photographs, tmp_path):
    root, variables = photographs
    config = make_config(root, image_size=(36, 40), resize="stretch", channels=1)
    folder = Workdir(tmp_path / "run")
    folder.make()
    experiment = make_experiment(config, folder)
    assert experiment.dataset.image_shape == (36, 40, 1)
    reading = describe_reading(config, Facts.read(folder))
    assert (reading.image_size, reading.resize) == ((36, 40), "stretch")
    assert reading.mean == pytest.approx([np.mean(MEAN)], rel=1e-6)
    # The first kernel is summed over its channels, as timm does.
    kernel = experiment.initial_state().params["stem_conv"]["kernel"]
    whole = variables["params"]["stem_conv"]["kernel"]
    np.testing.assert_allclose(kernel, whole.sum(2, keepdims=True), rtol=1e-5, atol=1e-6)


def test_the_words_of_model_weights(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert parse_spec("a1_in1k") == Spec("a1_in1k")
    assert parse_spec("run:a,b,checkpoint=last,partial=true") == Spec("run:a,b", "last", True)
    assert parse_spec("file:x.h5,layout=keras").source == "file:x.h5,layout=keras"
    assert parse_spec("tv_in1k,into=backbone") == Spec("tv_in1k", partial=True, into="backbone")
    assert absolute_weights("run:a") == f"run:{tmp_path}/a"
    assert absolute_weights("hf://a/b") == "hf://a/b"


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ("run:", "names no weights"),
        ("run:a,partial=1", "partial must be true or false, got '1'"),
        ("run:a,checkpoint=2", "checkpoint must be best or last, got '2'"),
        ("tv_in1k,checkpoint=last", "checkpoint is of a run:WORKDIR"),
        ("run:previous", "is of a stage"),
        ("", "data.normalization=weights needs model.weights"),
    ],
)
def test_wrong_words_are_refused(weights, message):
    config = Config(model=ModelConfig(weights=weights), data=DataConfig(normalization="weights"))
    with pytest.raises(UserError, match=message):
        validate(normalize(config))


def test_a_classifier_goes_below_a_network_for_another_task():
    """Names of MobileNetV2; of VGG-16 the first dense layer is a convolution of a 7x7 map."""
    fcn, ours = shapes("fcn8s", (64, 64, 3), num_classes=3, backbone="mobilenet_v2")
    _, below = shapes("mobilenet_v2", (64, 64, 3))
    match = match_variables(fcn, (64, 64, 3), ours, fcn.adopt(below), "it", partial=True)
    assert {path[1] for path in match.new} == {"score32", "score16", "score8"}
    assert {path[2] for path in match.unused} == {"head_conv", "head_bn", "classifier"}
    rng = np.random.default_rng(0)
    maps, kernel = rng.normal(size=(7, 7, 4)), rng.normal(size=(196, 5))
    dense = {"fc1": {"kernel": kernel, "bias": np.zeros(5)}, "stage1_conv1": {}}
    params = create_model("fcn8s_vgg16").adopt({"params": dense})["params"]
    assert set(params) == {"backbone", "fc1"} and set(params["backbone"]) == {"stage1_conv1"}
    scored = np.einsum("hwc,hwcf->f", maps, params["fc1"]["kernel"])
    np.testing.assert_allclose(scored, maps.reshape(-1) @ kernel)


def test_only_a_network_with_a_backbone_takes_weights_into_it():
    config = Config(model=ModelConfig(name="resnet18", weights="tv_in1k,into=backbone"))
    with pytest.raises(UserError, match="resnet18 has no backbone"):
        Source(config)
    with pytest.raises(UserError, match="into must be backbone, got 'head'"):
        parse_spec("tv_in1k,into=head")
