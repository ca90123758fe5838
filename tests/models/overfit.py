"""Training on four images until they are known by heart."""

import jax
import jax.numpy as jnp
import optax

from flaxcnn.models import create_model


def overfit(task, images, targets, *, steps=300, rate=3e-3, model=None):
    """The mean loss after so many steps of Adam, and the outputs in training mode."""
    model = model or create_model("mnist_mlp_512", num_classes=task.num_outputs(), hidden=(64,))
    key = jax.random.key(0)
    images = jnp.asarray(images)
    variables = model.init({"params": key, "dropout": key}, images, train=False)
    tx = optax.adam(rate)
    targets = jax.tree.map(jnp.asarray, targets)

    def loss_of(params, key):
        outputs = model.apply(
            {**variables, "params": params},
            images,
            train=True,
            rngs={"dropout": key},
            mutable=["batch_stats"],
        )[0]
        return task.losses(outputs, targets).mean(), outputs

    @jax.jit
    def train(params):
        def step(carry, key):
            params, state = carry
            (loss, outputs), gradient = jax.value_and_grad(loss_of, has_aux=True)(params, key)
            updates, state = tx.update(gradient, state)
            return (optax.apply_updates(params, updates), state), (loss, outputs)

        carry, (losses, outputs) = jax.lax.scan(
            step, (params, tx.init(params)), jax.random.split(key, steps)
        )
        return losses[-1], jax.tree.map(lambda x: x[-1], outputs)

    return train(variables["params"])
