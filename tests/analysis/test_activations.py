import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from flaxcnn.analysis.activations import activations, first_filters, layer_shapes
from flaxcnn.errors import UserError
from flaxcnn.models import ResNet, create_model, init

SHAPE = (8, 8, 3)


class Plain(nn.Module):
    """A network that knows nothing of flaxcnn: one layer is called twice, there is no `train`."""

    @nn.compact
    def __call__(self, x):
        layer = nn.Conv(3, (3, 3), name="twice")
        x = jax.nn.relu(layer(layer(x)))
        return nn.Dense(2, name="head")(x.mean((1, 2)))


def test_outputs_are_flax_own():
    model, x = Plain(), jnp.asarray(np.random.RandomState(0).randn(2, *SHAPE), jnp.float32)
    variables = model.init(jax.random.key(0), x)
    _, state = model.apply(variables, x, capture_intermediates=True)
    first, second = state["intermediates"]["twice"]["__call__"]
    found = activations(model, variables, x)
    assert list(found) == ["twice", "twice#2", "head", "output"]
    np.testing.assert_allclose(found["twice"], first, atol=1e-6)
    np.testing.assert_allclose(found["twice#2"], second, atol=1e-6)
    np.testing.assert_allclose(found["output"], state["intermediates"]["__call__"][0], atol=1e-6)
    assert list(activations(model, variables, x, ["t*2"])) == ["twice#2"]
    with pytest.raises(UserError, match="Plain has no layer 'twicw': did you mean twice"):
        activations(model, variables, x, ["twicw"])


@pytest.mark.parametrize("remat", [False, True])
def test_stages_are_those_of_features_only(remat):
    model = create_model("cifar_resnet20", remat=remat)
    variables = jax.eval_shape(
        lambda x: model.init(jax.random.key(0), x, train=False), jnp.zeros((1, 32, 32, 3))
    )
    shapes = layer_shapes(model, variables, (32, 32, 3))
    maps = jax.eval_shape(
        lambda v: model.clone(features_only=True).apply(v, jnp.zeros((1, 32, 32, 3)), train=False),
        variables,
    )
    names = [name for name in shapes if "/" not in name and name.startswith("st")]
    stages = [name for name in names if "_" not in name]
    assert stages == ["stem", "stage1", "stage2", "stage3"]
    assert [shapes[name] for name in stages] == [x.shape[1:] for x in maps]
    assert shapes["stage2_block1/conv1"] == (16, 16, 32)
    assert isinstance(model, ResNet) and list(shapes)[-1] == "output"


def test_first_filters():
    model, x = Plain(), jnp.zeros((1, *SHAPE))
    variables = jax.eval_shape(model.init, jax.random.key(0), x)
    variables["params"]["twice"]["kernel"] = np.ones((3, 3, 3, 3))
    name, kernel = first_filters(model, variables, SHAPE)
    assert name == "twice"
    np.testing.assert_array_equal(kernel, variables["params"]["twice"]["kernel"])
    mlp = create_model("mnist_mlp_512", hidden=(2,))
    with pytest.raises(UserError, match="MLP has no convolution"):
        first_filters(mlp, init(mlp, jax.random.key(0), (2, 2, 1)), (2, 2, 1))
