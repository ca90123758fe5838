"""`flaxcnn compress`, with retraining and without, and what is made of the file."""

import json

import numpy as np
import pytest
from flax import traverse_util
from PIL import Image

import flaxcnn
from flaxcnn.commands.main import main
from flaxcnn.training import Config, train
from flaxcnn.training.inference import load_run
from flaxcnn.weights import read_tensors


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("compress") / "run"
    config = Config(epochs=3, steps_per_call=20)
    config.model.name, config.model.kwargs.hidden = "mnist_mlp_512", (24, 12)
    train(config, folder)
    return folder


def compress(out, *arguments) -> int:
    return main(["compress", *map(str, arguments), str(out)])


def kernels(tensors):
    return {name: t for name, t in tensors.items() if name.endswith("kernel")}


@pytest.mark.slow
def test_a_run_is_pruned_shared_and_predicted_with(run, tmp_path, capsys):
    out = tmp_path / "out.fcz"
    assert compress(out, "--workdir", run, "--bits", 3, "--sparsity", 0.5) == 0
    text = capsys.readouterr().out
    assert f"{out}: {out.stat().st_size:,} bytes" in text and "accuracy 0." in text
    tensors = read_tensors(out)
    found = kernels(tensors)
    assert set(found) == {f"params/{name}/kernel" for name in ("fc1", "fc2", "classifier")}
    assert all(len(np.unique(tensor[tensor != 0])) <= 8 for tensor in found.values())
    zeros = sum(int((tensor == 0).sum()) for tensor in found.values())
    assert zeros == round(0.5 * sum(tensor.size for tensor in found.values()))
    # What the run has learnt that is neither pruned nor shared.
    theirs = load_run(run).variables["params"]["fc1"]["bias"]
    np.testing.assert_array_equal(tensors["params/fc1/bias"], theirs)

    images = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 1), np.uint8)
    predictor, original = flaxcnn.load(out), flaxcnn.load(run)
    assert predictor.task.class_names == original.task.class_names
    original_model = load_run(run).model
    original_kernels = {"params": traverse_util.unflatten_dict(
        {name.removeprefix("params/"): tensor for name, tensor in tensors.items()}, sep="/"
    )}  # fmt: skip
    logits = original_model.apply(original_kernels, original.preprocessing(images), train=False)
    expected = np.exp(logits - logits.max(1, keepdims=True))
    expected /= expected.sum(1, keepdims=True)
    np.testing.assert_allclose(predictor(images), expected, rtol=1e-5)

    Image.fromarray(images[0, :, :, 0]).save(tmp_path / "a.png")
    assert main(["predict", "--weights", str(out), "--json", str(tmp_path / "a.png")]) == 0
    (answer,) = json.loads(capsys.readouterr().out)
    assert answer["top"][0]["probability"] == pytest.approx(expected[0].max(), rel=1e-4)


@pytest.mark.zoo
def test_retraining_keeps_zeros_and_codebooks(run, tmp_path, capsys):
    out = tmp_path / "out.fcz"
    how = ("--workdir", run, "--bits", 2, "--sparsity", "0.5,0.9", "--retrain", 1, "--finetune", 1)
    assert compress(out, *how, "--json") == 0
    result = json.loads(capsys.readouterr().out.strip().split("\n")[-1])
    assert result["bytes"] == out.stat().st_size
    stages = [
        load_run(tmp_path / "out.stages" / name, "last").variables["params"]
        for name in ("pruned1", "pruned2", "shared")
    ]
    first, second, shared = (kernels(traverse_util.flatten_dict(s, sep="/")) for s in stages)
    for name, kernel in kernels(read_tensors(out)).items():
        name = name.removeprefix("params/")
        np.testing.assert_array_equal(kernel, shared[name])
        assert len(np.unique(kernel[kernel != 0])) <= 4
        np.testing.assert_array_equal(kernel != 0, second[name] != 0)
        assert not ((np.asarray(first[name]) == 0) & (kernel != 0)).any()
    content = out.read_bytes()
    assert compress(out, *how, "--json") == 0  # the runs are there
    assert out.read_bytes() == content


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--workdir", "none", "a.bin"), "is a file called *.fcz"),
        (("--workdir", "none", "missing/a.fcz"), "there is no folder missing"),
        (("--workdir", "none", "--sparsity", "much", "a.fcz"), "--sparsity must be shares"),
        (("--workdir", "none", "--weights", "w", "a.fcz"), "--workdir is a run"),
        (("--weights", "w", "--retrain", "1", "a.fcz"), "need --workdir RUN"),
        (("a.fcz",), "--workdir RUN is missing"),
    ],
)
def test_mistakes(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["compress", *arguments]) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
