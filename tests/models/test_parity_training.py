"""One training step of a network of each kind is that of an independent implementation.

As in test_parity: the loss, the gradients, and the statistics of each BatchNorm.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from parity import by_source, compare, each_training_reference, prepare

from flaxcnn.models.network import Outputs


@each_training_reference
def test_one_training_step(reference):
    """The loss, every gradient, and the statistics of every BatchNorm."""
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
