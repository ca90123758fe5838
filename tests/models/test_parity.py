"""Every network of the zoo computes what an independent implementation computes.

The golden outputs are those of torchvision, timm and Keras (tests/reference/make.py). The weights
are drawn alike on both sides, by their names there. Of a network of each kind one training step is
compared, too: the loss, the gradients, and the statistics of each BatchNorm.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from networks import REFERENCES
from parity import by_source, compare, find_sources, prepare, relative_error

from flaxcnn.models._network import Outputs


def check_logits(reference):
    model, variables, _, images = prepare(reference.path)
    logits = jax.jit(functools.partial(model.apply, train=False))(variables, images)
    with np.load(reference.path) as golden:
        expected = golden["logits"]
    assert np.abs(expected).max() > 1e-3 and np.ptp(expected) > 1e-3
    assert relative_error(logits, expected) < 1e-4


def check_training_step(reference):
    """The loss, every gradient, and the statistics of every BatchNorm."""
    model, variables, sources, images = prepare(reference.path)
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
    with np.load(reference.path) as file:
        golden = dict(file)
    np.testing.assert_allclose(loss, golden["loss"], rtol=1e-4)
    compare(by_source({"params": gradients}, sources), golden["gradients"])
    flat = by_source({"batch_stats": statistics}, sources)
    for key, endings in (("means", ("mean",)), ("variances", ("var", "variance"))):
        kept = {n: v / (1 - reference.momentum) for n, v in flat.items() if n.endswith(endings)}
        compare(kept, golden[key])


def list_cases() -> list:
    """The two checks of a network one after the other: they share its weights."""
    cases = []
    for reference in REFERENCES:
        checks = [("logits", check_logits, reference.is_deep)]
        if reference.training:
            checks += [("training", check_training_step, reference.has_long_step)]
        for kind, check, is_long in checks:
            marks = [pytest.mark.zoo] if is_long else []
            case_id = f"{reference.path.stem}-{kind}"
            cases.append(pytest.param(check, reference, id=case_id, marks=marks))
    return cases


@pytest.mark.parametrize(("check", "reference"), list_cases())
def test_network(check, reference):
    check(reference)


@pytest.mark.parametrize(
    "reference", [r for r in REFERENCES if r.is_second_layout], ids=lambda r: r.path.stem
)
def test_names_and_shapes_of_a_second_layout(reference):
    """The values would be those that another layout of the network is compared with above."""
    _, sources = find_sources(reference)
    tensors = [
        f"{name} {shape}"
        for source in sources.values()
        for name, shape in source.their_shapes.items()
    ]
    with np.load(reference.path) as golden:
        assert sorted(tensors) == golden["tensors"].tolist()
