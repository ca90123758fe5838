import jax.numpy as jnp
import pytest

import flaxcnn
from flaxcnn import models
from flaxcnn.errors import UserError
from flaxcnn.models import MLP, SmallCNN, create_model, list_models, variant


def test_names_are_sorted_and_filtered():
    names = list_models()
    assert names == sorted(names) and len(names) == len(set(names)) >= 15
    assert list_models("lenet*") == ["lenet5_1998", "lenet5_dense", "lenet_caffe"]
    assert list_models("cifar*bn") == ["cifar_cnn_5x5_bn"]
    assert list_models("nothing*") == []


def test_arguments_replace_the_variant_s():
    assert create_model("mnist_mlp_512") == MLP(num_classes=10, hidden=(512, 512))
    model = create_model("mnist_cnn_220k", num_classes=3, dtype=jnp.bfloat16, dropout=0.1)
    assert isinstance(model, SmallCNN)
    assert (model.num_classes, model.dtype, model.dropout) == (3, jnp.bfloat16, 0.1)
    assert model.hidden == (64,)
    assert variant("mnist_cnn_220k").kwargs["num_classes"] == 10


def test_an_unknown_model_is_reported_with_the_closest():
    with pytest.raises(UserError, match=r"^unknown model 'lenet5_dens': did you mean lenet5_dense"):
        create_model("lenet5_dens")
    with pytest.raises(UserError, match=r"^unknown model '\?': see flaxcnn.list_models\(\)$"):
        variant("?")


def test_an_unknown_argument_is_reported_with_the_network_s_own():
    with pytest.raises(UserError) as error:
        create_model("mnist_mlp_512", droput=0.5)
    assert str(error.value) == (
        "model 'mnist_mlp_512' has no argument 'droput': it takes num_classes, hidden, "
        "activation, noise, gaussian_dropout, dropout, dtype, axis_name, kernel_init"
    )


def test_every_network_is_exported():
    for name in list_models():
        network = variant(name).network
        assert getattr(models, network.__name__) is network


def test_package_exports():
    assert flaxcnn.create_model is create_model and flaxcnn.list_models is list_models


def test_lists_become_tuples_so_that_the_network_hashes():
    model = create_model("mnist_mlp_512", hidden=[8, 4])
    assert hash(model) == hash(MLP(num_classes=10, hidden=(8, 4)))
