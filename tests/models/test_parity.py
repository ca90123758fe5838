"""Every network of the zoo computes what an independent implementation computes.

The golden outputs are those of torchvision, timm and Keras (tests/reference/make.py). The weights
are drawn alike on both sides, by their names there.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from draw import draw_images, draw_weight
from flax import traverse_util
from networks import CLASSES, REFERENCES

from flaxcnn.models import create_model
from flaxcnn.models.network import Outputs
from flaxcnn.weights.convert import convert, list_sources

each_reference = pytest.mark.parametrize(
    "reference", REFERENCES, ids=lambda r: f"{r.model}{r.case}-{r.layout}"
)


def prepare(reference):
    """Our network, its variables converted from drawn weights, their names, and the images."""
    kwargs = {"num_classes": CLASSES, **reference.kwargs}
    model = create_model(reference.model, **kwargs)
    sources = list_sources(reference.model, model, reference.layout)
    tensors = {}
    for source in sources.values():
        fan_in = int(np.prod(source.shape[:-1]))
        for name, shape in source.their_shapes.items():
            tensors[name] = draw_weight(name, shape, fan_in, *reference.scale)
    variables = convert(reference.model, tensors, reference.layout, **kwargs)
    images = draw_images(reference.batch, reference.side, reference.side, 3)
    return model, variables, sources, images


@each_reference
def test_logits(reference):
    model, variables, _, images = prepare(reference)
    logits = jax.jit(functools.partial(model.apply, train=False))(variables, images)
    expected = np.load(reference.path)["logits"]
    assert np.abs(expected).max() > 1e-3 and np.ptp(expected) > 1e-3
    assert relative_error(logits, expected) < 1e-4


@each_reference
def test_one_training_step(reference):
    """The loss, every gradient, and the statistics of every BatchNorm."""
    if not reference.training:
        pytest.skip("the same blocks are compared in training in another depth or resolution")
    model, variables, sources, images = prepare(reference)
    labels = jnp.arange(reference.batch)
    zeros = jax.tree.map(jnp.zeros_like, variables.get("batch_stats", {}))

    @jax.jit
    def step(params):
        def loss_fn(params):
            outputs, updates = model.apply(
                {"params": params, "batch_stats": zeros},
                images,
                train=True,
                mutable=["batch_stats"],
                rngs={"dropout": jax.random.key(0)},
            )
            if not isinstance(outputs, Outputs):
                outputs = Outputs(outputs, ())
            cross_entropy = optax.softmax_cross_entropy_with_integer_labels
            loss = cross_entropy(outputs.logits, labels).mean()
            for logits in outputs.auxiliary:
                loss += reference.auxiliary_weight * cross_entropy(logits, labels).mean()
            return loss, updates.get("batch_stats", {})

        (loss, statistics), gradients = jax.value_and_grad(loss_fn, has_aux=True)(params)
        norms = jax.tree.map(jnp.linalg.norm, jax.tree.map(jnp.ravel, (gradients, statistics)))
        return loss, norms

    loss, (gradients, statistics) = step(variables["params"])
    golden = np.load(reference.path)
    np.testing.assert_allclose(loss, golden["loss"], rtol=1e-4)
    compare(by_source({"params": gradients}, sources), golden["gradients"])
    flat = by_source({"batch_stats": statistics}, sources)
    for key, endings in (("means", ("mean",)), ("variances", ("var", "variance"))):
        kept = {n: v / (1 - reference.momentum) for n, v in flat.items() if n.endswith(endings)}
        compare(kept, golden[key])


def by_source(tree, sources):
    return {
        sources[path].name: float(leaf) for path, leaf in traverse_util.flatten_dict(tree).items()
    }


def compare(ours, expected):
    """Norms by source name against those in the order of sorted names."""
    assert len(ours) == len(expected)
    for name, value in zip(sorted(ours), expected, strict=True):
        tolerance = 1e-3 * value + 1e-6 * expected.max()
        assert abs(ours[name] - value) <= tolerance, f"{name}: {ours[name]} for {value}"


def relative_error(ours, expected):
    return np.abs(np.asarray(ours) - expected).max() / np.abs(expected).max()
