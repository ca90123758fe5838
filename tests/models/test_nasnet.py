"""NASNet-A: the authors' border in NumPy, drop-path, the auxiliary classifier."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from drawn import draw_network, evaluate
from numpy_layers import avg_pool, batch_norm, conv2d, dense, global_avg_pool, max_pool, relu

from flaxcnn.errors import UserError
from flaxcnn.models import create_model
from flaxcnn.models._network import Outputs

SMALL = {"cells": 2, "features": 192, "stem_features": 8, "num_classes": 5}


class InNumpy:
    """NASNet-A as TF-slim has it, whose pools and convolutions leave the border out."""

    def __init__(self, variables):
        self.params, self.statistics = variables["params"], variables["batch_stats"]

    def __call__(self, x, cells, skip):
        seen = [self.norm("stem_bn", conv2d(x, self.params["stem_conv"]["kernel"], stride=2))]
        kinds = ["r", "r", *"n" * cells, "r", *"n" * cells, "r", *"n" * cells]
        names = ["stage1_reduce", "stage2_reduce"]
        names += [f"stage2_cell{i + 1}" for i in range(cells)]
        for stage in (3, 4):
            names += [f"stage{stage}_reduce"]
            names += [f"stage{stage}_cell{i + 1}" for i in range(cells)]
        for index, (kind, name) in enumerate(zip(kinds, names, strict=True)):
            x = seen[-1]
            older = seen[max(len(seen) - 2, 0)]
            if skip and index > 2 and kinds[index - 1] == "r":
                older = seen[-3]  # the reducing cell's own older input
            h = relu(x)
            h = self.norm(f"{name}/current_bn", self.conv(f"{name}/current_conv", h))
            p = self.fit(name, older, x) if index else x
            seen.append(self.normal(name, h, p) if kind == "n" else self.reducing(name, h, p))
        head = self.params["classifier"]
        return dense(global_avg_pool(relu(seen[-1])), head["kernel"], head["bias"])

    def fit(self, name, older, x):
        older = relu(older)
        if older.shape[1] == x.shape[1]:
            return self.norm(f"{name}/previous_bn", self.conv(f"{name}/previous_conv", older))
        rows = np.zeros_like(older)
        rows[:, :-1, :-1] = older[:, 1:, 1:]
        halves = [
            self.conv(f"{name}/previous_conv{i}", y[:, ::2, ::2])
            for i, y in ((1, older), (2, rows))
        ]
        return self.norm(f"{name}/previous_bn", np.concatenate(halves, -1))

    def normal(self, name, h, p):
        pair = functools.partial(self.pair, name)
        mean = functools.partial(avg_pool, size=3, stride=1, padding=1, count_padding=False)
        sums = [
            pair("block1_left", h) + pair("block1_right", p),
            pair("block2_left", p) + pair("block2_right", p),
            mean(h) + p,
            2 * mean(p),
            pair("block5_left", h) + h,
        ]
        return np.concatenate([p, *sums], -1)

    def reducing(self, name, h, p):
        pair = functools.partial(self.pair, name, stride=2)
        border = same(h, 3, 2)
        first = pair("block1_left", h) + pair("block1_right", p)
        second = max_pool(h, 3, 2, border) + pair("block2_right", p)
        third = avg_pool(h, 3, 2, border, count_padding=False) + pair("block3_right", p)
        fourth = avg_pool(first, 3, 1, 1, count_padding=False) + second
        fifth = self.pair(name, "block5_left", first) + max_pool(h, 3, 2, border)
        return np.concatenate([second, third, fourth, fifth], -1)

    def pair(self, cell, name, x, stride=1):
        path = f"{cell}/{name}"
        for i, step in ((1, stride), (2, 1)):
            x = relu(x)
            kernel = self.get(self.params, f"{path}/depthwise{i}")["kernel"]
            border = same(x, kernel.shape[0], step)
            x = conv2d(x, kernel, stride=step, padding=border, groups=x.shape[-1])
            x = self.norm(f"{path}/bn{i}", self.conv(f"{path}/pointwise{i}", x))
        return x

    def conv(self, path, x):
        return conv2d(x, self.get(self.params, path)["kernel"])

    def norm(self, path, x):
        affine, moments = self.get(self.params, path), self.get(self.statistics, path)
        return batch_norm(x, **affine, **moments, epsilon=1e-3)

    @staticmethod
    def get(tree, path):
        return functools.reduce(lambda t, key: t[key], path.split("/"), tree)


def same(x, size, stride):
    """TensorFlow's border: outputs are ceil(side / stride), the odd pixel below and right."""
    pads = []
    for side in x.shape[1:3]:
        total = max((-(-side // stride) - 1) * stride + size - side, 0)
        pads.append((total // 2, total - total // 2))
    return tuple(pads)


# What the large form skips is all that differs; without, Keras' form is compared in test_parity.py.
@pytest.mark.parametrize(
    "name",
    [pytest.param("nasnet_a_mobile_slim", marks=pytest.mark.zoo), "nasnet_a_large_slim"],
)
def test_the_authors_form_is_that_of_numpy(name):
    images = np.random.default_rng(1).normal(size=(2, 53, 48, 3)).astype(np.float32)
    model, variables = draw_network(name, images, **SMALL)
    logits = evaluate(model, variables, images)
    expected = InNumpy(variables)(images, cells=2, skip=model.skip_reduction)
    assert np.ptp(expected) > 0.1
    assert np.abs(logits - expected).max() < 1e-4 * np.abs(expected).max()


def test_the_border_is_seen_in_three_ways():
    images = np.random.default_rng(1).normal(size=(1, 31, 35, 3)).astype(np.float32)
    model, variables = draw_network(
        "nasnet_a_mobile", images, **SMALL, out_indices=(1,), features_only=True
    )
    maps = {
        border: evaluate(model.clone(border=border), variables, images)[0]
        for border in ("none", "zeros", "zeros_in_averages")
    }
    assert maps["none"].shape[1:3] == (8, 9)
    for border, other in (("none", "zeros"), ("zeros", "zeros_in_averages")):
        different = np.abs(maps[border] - maps[other]).max((0, 3)) > 1e-6
        assert different.any() and not different[2:-2, 2:-2].any()


def test_auxiliary_classifier():
    model = create_model("nasnet_a_mobile", **SMALL, auxiliary=True, drop_path=0.3)
    images = jnp.ones((2, 67, 67, 3))

    def run(images):
        keys = {"params": jax.random.key(0), "dropout": jax.random.key(1)}
        logits, variables = model.init_with_output(keys, images, train=False)
        outputs, _ = model.apply(
            variables, images, train=True, rngs={"dropout": keys["dropout"]}, mutable="batch_stats"
        )
        return logits, variables, outputs

    logits, variables, outputs = jax.eval_shape(run, images)
    assert logits.shape == (2, 5)
    assert isinstance(outputs, Outputs)
    (other,) = outputs.auxiliary
    assert (other.shape, other.dtype) == (outputs.logits.shape, jnp.float32)
    head = variables["params"]["auxiliary"]
    assert head["conv2"]["kernel"].shape == (1, 1, 128, 768)
    with pytest.raises(UserError, match="NASNet needs images of at least 67x67"):
        jax.eval_shape(run, jnp.ones((2, 66, 67, 3)))


def test_width_that_does_not_divide_is_refused():
    model = create_model("nasnet_a_mobile", features=1000)
    with pytest.raises(UserError, match="features is 1000, and must be a multiple of 96"):
        jax.eval_shape(
            lambda x: model.init(jax.random.key(0), x, train=False), jnp.ones((1, 32, 32, 3))
        )
