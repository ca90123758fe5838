"""What a run will cost: against numbers worked out by hand, and arrays whose size is known."""

import dataclasses
import importlib.util
from types import SimpleNamespace

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from flaxcnn.data import tfds_source
from flaxcnn.errors import UserError
from flaxcnn.estimate import tpu_compile as tpu
from flaxcnn.estimate.chips import CHIPS, NAMES, Chip, find_chip, present_chip
from flaxcnn.estimate.estimate import assess, estimate_config, parse_duration
from flaxcnn.estimate.step_cost import (
    Step,
    abstract_bytes,
    at_batch,
    choose_batches,
    compile_step,
    count_flops,
)
from flaxcnn.estimate.step_model import reckon, reckon_step
from flaxcnn.estimate.unread import forget_images, make_unread, open_unread
from flaxcnn.training import Config, DataConfig, ModelConfig, OptimizerConfig, environment
from flaxcnn.training.experiment import Experiment
from flaxcnn.training.parts import load_data


def make_experiment(images: int = 96, **optimizer) -> Experiment:
    """A dense network 64 -> 512 -> 512 -> 10 on black images of 8x8."""
    config = Config(
        model=ModelConfig(name="mnist_mlp_512"),
        data=DataConfig(source="none", batch_size=16),
        optimizer=OptimizerConfig(**optimizer),
        steps_per_call=2,
    )
    labels = {"train": np.arange(images) % 10, "validation": np.arange(20) % 10}
    dataset = make_unread("none", tuple("0123456789"), (8, 8, 1), labels)
    return Experiment(config, dataset, Experiment(config, dataset).facts)


@pytest.fixture(scope="module")
def experiment() -> Experiment:
    return make_experiment(name="adam", ema_decay=0.9)


@pytest.fixture(scope="module")
def step(experiment) -> Step:
    return compile_step(experiment, jax.devices()[:1])


def test_the_table_of_chips():
    """Each rate once more as its maker's page has it; and where they come from."""
    expected = {  # TFLOP/s in bfloat16, GB/s, GB
        "v5e": (197, 819, 16),
        "v6e": (918, 1638, 32),
        "v4": (275, 1200, 32),
        "h100": (989, 3350, 80),
        "a100": (312, 1555, 40),
        "t4": (8.1, 320, 16),
    }
    assert tuple(expected) == tuple(CHIPS) and NAMES == (*expected, "cpu")
    for name, (teraflops, bandwidth, memory) in expected.items():
        chip = find_chip(name)
        assert (chip.flops["bfloat16"], chip.bandwidth) == (teraflops * 1e12, bandwidth * 1e9)
        assert 0 < chip.flops["float32"] <= chip.flops["bfloat16"]
        assert 0.7 * memory * 1e9 < chip.memory <= memory * 2**30
        assert "2026" in chip.source
        assert (chip.topology is None) == (chip.platform != "tpu")
    assert present_chip().platform == find_chip("cpu").platform == "cpu"


@pytest.mark.parametrize(
    ("text", "seconds"), [("80m", 4800), ("1h30m", 5400), ("45s", 45), ("1.5h", 5400)]
)
def test_a_duration(text, seconds):
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "80", "m", "0m", "-5m", "30m1h", "80 m", "80min"])
def test_what_is_no_duration(text):
    with pytest.raises(UserError, match="--session must be a time such as 80m"):
        parse_duration(text)


def judge(steps, *, images=1000, accumulate=1, memory=180.0, session=None):
    """An estimate for a chip of 1 TFLOP/s and 1 GB/s, of 3 epochs of 7 steps."""
    chip = Chip("x", "X", "gpu", "x", {"float32": 1e12}, 1e9, memory, "")
    experiment = SimpleNamespace(
        config=Config(epochs=3, optimizer=OptimizerConfig(accumulate=accumulate)),
        plan=SimpleNamespace(steps_per_epoch=7),
        draws=range(images),
    )
    return assess(experiment, chip, steps, method="compiled", session=session)  # pyright: ignore


def test_the_roofline():
    found = judge([Step(10, 100.0, 1.0, 1.0, 4e12, 5e9, 1.0)], session=70.0)
    assert (found.arithmetic_seconds, found.traffic_seconds, found.step_seconds) == (4, 5, 5)
    assert (found.epoch_seconds, found.run_seconds, found.session_epochs) == (35, 105, 2)
    assert found.fits and found.largest_batch is None
    assert judge([Step(10, 100.0, 1.0, 1.0, 6e12, 5e9, 1.0)]).step_seconds == 6


def test_the_largest_batch_is_on_a_line():
    """100 bytes at 10 and 60 at 5: 20 and 8 an example, so that 180 are enough for 20."""
    steps = [Step(batch, memory, 0, 0, 1, 1, 1) for batch, memory in ((10, 100.0), (5, 60.0))]
    assert judge(steps).largest_batch == 20
    assert judge(steps, memory=8020.0).largest_batch == 1000  # all images of an epoch
    assert judge(steps, memory=8020.0, images=2000).largest_batch == 1000
    assert judge(steps, memory=8380.0, images=2000).largest_batch == 1000  # 1045, in two digits
    assert judge(steps, accumulate=8).largest_batch == 16
    too_small = judge(steps, memory=70.0)
    assert (too_small.fits, too_small.largest_batch) == (False, 6)
    flat = judge([steps[0], dataclasses.replace(steps[1], memory=100.0)])
    assert flat.largest_batch is None and "the same at 5 and 10" in flat.largest_batch_by


def test_two_batches_are_compiled(experiment):
    assert choose_batches(experiment, 1) == [16, 8]
    assert choose_batches(at_batch(experiment, 24, accumulate=8), 1) == [24, 8]
    assert choose_batches(at_batch(experiment, 16), 8) == [16, 8]
    assert choose_batches(at_batch(experiment, 16), 16) == [16, 32]
    assert choose_batches(at_batch(experiment, 64), 64) == [64]  # there are 96 images


def test_the_memory_of_a_dense_network(experiment, step):
    weights = 64 * 512 + 512 + 512 * 512 + 512 + 512 * 10 + 10
    words = 4 * weights  # weights, their average, and Adam's two
    # The step, the schedule's and Adam's counts, and a key of two words.
    assert step.state == pytest.approx(4 * words, abs=64)
    assert step.state == sum(
        8 if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x.nbytes
        for x in jax.tree.leaves(experiment.initial_state())
    )
    assert step.data == 96 * 64 + 96 * 4 + 2 * 16 * 4  # pixels, labels, two steps' indices
    assert step.donated == pytest.approx(step.state, rel=0.01)
    gradients, activations = 4 * weights, 4 * 16 * (64 + 2 * 512 + 10)
    assert step.memory is not None and step.traffic is not None
    assert 0 < step.memory - step.state - step.data < 2 * (gradients + activations)
    assert step.traffic > 2 * step.state  # read and written


def test_the_flops_of_a_dense_network(experiment, step):
    """Forward, gradients of kernels and of inputs but the first; two FLOPs a multiply-add."""
    products = 2 * 16 * (2 * 64 * 512 + 3 * (512 * 512 + 512 * 10))
    per_weight = step.state / 4  # Adam, the average: a few operations for each of their numbers
    assert products < step.flops < products + 8 * per_weight


def test_micro_batches_are_counted(experiment):
    divided = at_batch(experiment, 16, accumulate=4)
    assert count_flops(divided) == count_flops(experiment)
    whole, parts = reckon_step(experiment), reckon_step(divided)
    # The kernels are read four times, and four gradients are kept and averaged.
    assert 1 < parts.traffic / whole.traffic < 4


def test_the_model_of_a_small_program():
    shapes = (6, 5), (5, 70), (70, 3)
    x, w, v = (jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes)
    hidden, out = 4 * 6 * 70, 4 * 6 * 3
    weights = 4 * (5 * 70 + 70 * 3)

    def network(x, w, v):
        return jax.nn.relu(x @ w) @ v

    peak, traffic = reckon(jax.jit(network).trace(x, w, v).jaxpr)
    assert peak == hidden  # the ReLU takes nothing
    assert traffic == 4 * 6 * 5 + weights + 2 * hidden + out

    def twice(x, w, v):  # two large arrays meet: their sum is written
        a, b = x @ w, jnp.sin(x) @ w
        return (a + b) @ v, a

    peak, _ = reckon(jax.jit(twice).trace(x, w, v).jaxpr)
    assert peak == 2 * hidden  # b and the sum; a is a result

    def loop(x, w, v):  # of three steps: one is counted; of the five within it each
        def body(c, _):
            return jax.lax.scan(lambda c, _: (network(x, w, v) + c, None), c, None, 5)[0], None

        return jax.lax.scan(body, jnp.zeros((6, 3)), None, 3)[0]

    _, looped = reckon(jax.jit(loop).trace(x, w, v).jaxpr)
    assert 5 * traffic <= looped <= 5 * (traffic + 3 * out)

    def chosen(x, w, v):  # by the platform, unknown here: the default
        return jax.lax.platform_dependent(x, w, v, tpu=lambda x, *_: x[:, :3], default=network)

    assert reckon(jax.jit(chosen).trace(x, w, v).jaxpr) == (hidden, traffic)


def test_an_unknown_chip_is_refused():
    with pytest.raises(UserError, match="--chip must be one of v5e, v6e, .*, got 'v9'"):
        estimate_config(Config(), chip_name="v9")


def test_libtpu_of_another_jax_is_refused(experiment, monkeypatch):
    """Colab's crashes when it compiles ahead of time."""
    versions = {"libtpu": "0.0.21.1", "jax": "0.7.2"}
    pins = environment.Requirement("libtpu==0.0.23.*")
    monkeypatch.setattr(environment, "_version", versions.get)
    monkeypatch.setattr(
        environment, "_requirements", lambda owner: {"libtpu": pins} if owner == "jax" else {}
    )
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    with pytest.raises(UserError, match=r"--chip v5e: libtpu 0.0.21.1 is not made for jax 0.7.2"):
        tpu.compile_for_tpu(experiment, CHIPS["v5e"], [16])


def test_where_libtpu_cannot_say_it_the_reason_is_given(experiment, monkeypatch, tmp_path):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    steps, notes = tpu.compile_for_tpu(experiment, CHIPS["v5e"], [16])
    assert not steps and "the extra `tpu` brings it" in notes[0]
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    monkeypatch.setattr(tpu, "judge_libtpu", lambda: None)
    child = tmp_path / "python"
    monkeypatch.setattr(tpu.sys, "executable", str(child))
    for script, limit, reason in (
        ("kill -SEGV $$", 60, "libtpu ended with status -11"),
        ("echo no topology >&2; exit 1", 60, "libtpu ended with status 1: no topology"),
        ("exec sleep 60", 0.2, "libtpu was stopped after 0 s"),
    ):
        child.write_text(f"#!/bin/sh\n{script}\n")
        child.chmod(0o755)
        steps, notes = tpu.compile_for_tpu(experiment, CHIPS["v5e"], [16], limit)
        assert not steps and len(notes) == 1 and notes[0].startswith(reason)


@pytest.mark.slow
def test_a_step_is_compiled_for_a_tpu(experiment):
    """By libtpu, where it is installed; it pads arrays to tiles and counts the same arguments."""
    if importlib.util.find_spec("libtpu") is None or environment.judge_libtpu():
        pytest.skip("needs the libtpu that the installed jax pins (the extra `tpu`)")
    steps, notes = tpu.compile_for_tpu(experiment, CHIPS["v5e"], [16, 8])
    assert not notes and [step.batch_size for step in steps] == [16, 8]
    for step in steps:
        assert step.traffic and step.memory and step.memory > step.state


@pytest.mark.parametrize("divided", [False, True])
def test_a_folder_is_divided_as_for_training_and_not_decoded(tmp_path, divided):
    for split in ("train", "test") if divided else ("",):
        for name, count in (("cat", 13), ("dog", 7)):
            folder = tmp_path / split / name
            folder.mkdir(parents=True)
            for index in range(count):
                cv2.imwrite(str(folder / f"{index}.png"), np.full((4, 4, 3), index, np.uint8))
    data = DataConfig(source=f"folder:{tmp_path}", image_size=(4, 4), channels=3, batch_size=4)
    data.balance.subsample = ConfigDict({"cat": 0.5})
    config = Config(data=data)
    loaded = load_data(config)
    for image in tmp_path.rglob("*.png"):
        image.write_bytes(b"")
    opened = open_unread(config)
    assert opened.class_names == loaded.class_names and opened.image_shape == loaded.image_shape
    assert opened.splits.keys() == loaded.splits.keys()
    for name, split in loaded.splits.items():
        np.testing.assert_array_equal(opened.splits[name].strata, split.strata)


def test_a_set_that_is_not_prepared_is_known_by_what_is_published(monkeypatch):
    header = tuple("0123456789"), (28, 28, 1), {}
    monkeypatch.setattr(tfds_source, "read_header", lambda name, image_format: header)
    config = Config(data=DataConfig(source="tfds:mnist", validation=0.05))
    splits = open_unread(config).splits
    assert {name: len(split) for name, split in splits.items()} == {
        "train": 57_000,
        "validation": 3000,
        "test": 10_000,
    }
    config.data.source = "tfds:stones"
    with pytest.raises(UserError, match="tfds:stones is not prepared here"):
        open_unread(config)


def test_images_are_forgotten():
    dataset = load_data(Config())
    train = forget_images(dataset).splits["train"]
    images, labels = train.load(np.arange(5))
    assert images.shape == (1, 8, 8, 1) and labels.shape == (1,)
    assert len(train) == len(dataset.splits["train"])
    assert abstract_bytes((images, labels)) == 64 + 4
