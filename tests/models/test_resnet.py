"""ResNets without a public port against NumPy, and Keras' biases."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util
from numpy_layers import batch_norm, conv2d, dense, global_avg_pool, max_pool, relu

from flaxcnn.errors import UserError
from flaxcnn.models import create_model
from flaxcnn.weights.convert import convert, export

DEPTHS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3)}
# Blocks per stage; the shortcut where the shape changes, and where it does not; the stem.
NETWORKS = {
    "plain18": (DEPTHS[18], None, None, "imagenet"),
    "plain34": (DEPTHS[34], None, None, "imagenet"),
    "resnet34_a": (DEPTHS[34], "zeros", "identity", "imagenet"),
    "resnet34_c": (DEPTHS[34], "projection", "projection", "imagenet"),
    "cifar_resnet20": ((3, 3, 3), "zeros", "identity", "cifar"),
    "cifar_resnet32": ((5, 5, 5), "zeros", "identity", "cifar"),
    "cifar_resnet44": ((7, 7, 7), "zeros", "identity", "cifar"),
    "cifar_resnet56": ((9, 9, 9), "zeros", "identity", "cifar"),
    "cifar_resnet110": ((18, 18, 18), "zeros", "identity", "cifar"),
}


def forward(variables, images, depths, changing, unchanging, stem):
    """He et al. 2015, Table 1, Figure 5 left and section 4.2, in NumPy."""
    leaves = {kind: traverse_util.flatten_dict(tree) for kind, tree in variables.items()}

    def normalize(x, *path):
        scale, bias = (leaves["params"][(*path, leaf)] for leaf in ("scale", "bias"))
        mean, var = (leaves["batch_stats"][(*path, leaf)] for leaf in ("mean", "var"))
        return batch_norm(x, scale, bias, mean, var, 1e-5)

    def kernel(*path):
        return leaves["params"][(*path, "kernel")]

    if stem == "imagenet":
        x = conv2d(images, kernel("stem_conv"), stride=2, padding=3)
        x = max_pool(relu(normalize(x, "stem_bn")), 3, 2, padding=1)
    else:
        x = relu(normalize(conv2d(images, kernel("stem_conv"), padding=1), "stem_bn"))
    for stage, depth in enumerate(depths, 1):
        for number in range(1, depth + 1):
            block = f"stage{stage}_block{number}"
            stride = 2 if stage > 1 and number == 1 else 1
            y = conv2d(x, kernel(block, "conv1"), stride=stride, padding=1)
            y = relu(normalize(y, block, "bn1"))
            y = conv2d(y, kernel(block, "conv2"), padding=1)
            y = normalize(y, block, "bn2")
            kind = unchanging if x.shape == y.shape else changing
            if kind == "projection":
                x = conv2d(x, kernel(block, "shortcut_conv"), stride=stride)
                y += normalize(x, block, "shortcut_bn")
            elif kind == "identity":
                y += x
            elif kind == "zeros":
                channels = x.shape[-1]  # doubled, the old ones in the middle
                y[..., channels // 2 : channels // 2 + channels] += x[:, ::2, ::2]
            x = relu(y)
    classifier = variables["params"]["classifier"]
    return dense(global_avg_pool(x), classifier["kernel"], classifier["bias"])


def draw_variables(model, images, gain):
    shapes = jax.eval_shape(lambda x: model.init(jax.random.key(0), x, train=False), images)
    rng = np.random.default_rng(0)
    flat = {}
    for path, leaf in traverse_util.flatten_dict(shapes).items():
        if path[-1] == "kernel":
            deviation = (gain / np.prod(leaf.shape[:-1])) ** 0.5
            flat[path] = deviation * rng.standard_normal(leaf.shape)
        elif path[-1] in ("scale", "var"):
            flat[path] = rng.uniform(0.8, 1.2, leaf.shape)
        else:
            flat[path] = 0.1 * rng.standard_normal(leaf.shape)
    flat = {path: value.astype(np.float32) for path, value in flat.items()}
    return traverse_util.unflatten_dict(flat)


def list_cases() -> list:
    """Each network, and in the form that is run by default the blocks that differ, less often."""
    short = {"plain18": None, "cifar_resnet20": None}
    short |= {"resnet34_a": (1, 2, 1, 1), "resnet34_c": (1, 2, 1, 1)}
    cases = [pytest.param(name, depths, id=name) for name, depths in short.items()]
    deep = [name for name in NETWORKS if short.get(name, ()) is not None]
    return cases + [
        pytest.param(name, None, id=f"{name}-whole", marks=pytest.mark.zoo) for name in deep
    ]


@pytest.mark.parametrize(("name", "depths"), list_cases())
def test_equals_numpy(name, depths):
    height, width = (38, 33) if NETWORKS[name][-1] == "imagenet" else (20, 17)
    images = np.random.default_rng(1).standard_normal((2, height, width, 3)).astype(np.float32)
    shape = {} if depths is None else {"depths": depths}
    model = create_model(name, num_classes=10, **shape)
    variables = draw_variables(model, images, gain=2 if name.startswith("plain") else 1)
    logits = jax.jit(functools.partial(model.apply, train=False))(variables, images)
    whole, *form = NETWORKS[name]
    expected = forward(variables, images, depths or whole, *form)
    assert np.ptp(expected) > 0.1
    assert np.abs(logits - expected).max() < 1e-4 * np.abs(expected).max()


def test_keras_biases_are_taken_off_the_means():
    model = create_model("resnet50_v1", num_classes=10)
    images = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    variables = draw_variables(model, images, gain=1)
    tensors = export("resnet50_v1", variables, "keras", num_classes=10)
    biases = [name for name in tensors if name.endswith("conv/bias")]
    assert len(biases) == 53 and not any(tensors[name].any() for name in biases)
    again = convert("resnet50_v1", tensors, "keras", num_classes=10)
    jax.tree.map(np.testing.assert_array_equal, again, variables)
    tensors["conv3_block1_0_conv/bias"] = np.arange(512, dtype=np.float32)
    mean = convert("resnet50_v1", tensors, "keras", num_classes=10)["batch_stats"]
    kept = variables["batch_stats"]["stage2_block1"]["shortcut_bn"]["mean"]
    expected = kept - tensors["conv3_block1_0_conv/bias"]
    np.testing.assert_array_equal(mean["stage2_block1"]["shortcut_bn"]["mean"], expected)
    del tensors["conv1_conv/bias"]
    with pytest.raises(UserError, match="missing conv1_conv/bias$"):
        convert("resnet50_v1", tensors, "keras", num_classes=10)


def test_smallest_images():
    for kwargs, side in (({}, 1), ({"ceil_pool": True}, 3)):
        model = create_model("resnet18", **kwargs)

        def init(images, model=model):
            return model.init(jax.random.key(0), images, train=False)

        jax.eval_shape(init, jnp.zeros((1, side, side, 3)))
        if side > 1:
            with pytest.raises(UserError, match="ResNet needs images of at least 3x3"):
                jax.eval_shape(init, jnp.zeros((1, side, side - 1, 3)))


def test_drop_path_drops_branches_of_later_blocks_more_often():
    model = create_model("cifar_resnet20", drop_path=0.5)
    images = np.random.default_rng(1).standard_normal((64, 8, 8, 3)).astype(np.float32)
    variables = draw_variables(model, images, gain=1)
    _, sown = jax.jit(
        lambda: model.apply(
            variables,
            images,
            train=True,
            rngs={"dropout": jax.random.key(0)},
            mutable=["batch_stats", "intermediates"],
            capture_intermediates=lambda module, _: (module.name or "").endswith("_drop"),
        )
    )()
    dropped = [
        float((np.asarray(branch["__call__"][0]) == 0).all((1, 2, 3)).mean())
        for name, branch in sorted(sown["intermediates"].items())
        if name.endswith("_drop")
    ]
    assert len(dropped) == 9 and dropped[0] == 0
    assert 0 < dropped[3] < 0.5 and 0.3 < dropped[-1] < 0.7
    assert np.mean(dropped[:3]) < np.mean(dropped[3:6]) < np.mean(dropped[6:])
