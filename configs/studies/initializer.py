"""Initialiser and activation: a perceptron of six hidden layers on MNIST

784-100-100-100-100-100-100-10 with plain SGD at a rate of 0.1, batches of 64, 8 epochs, 3,000 of
the training images held out for the validation curve. Biases start at zero. The uniform kernels of
a layer with n inputs and m outputs have the variance 2 / (n + m) (Glorot and Bengio 2010), 2 / n
(He et al. 2015), 1 / n (LeCun et al. 1998), or, "0.05", that of -0.05 to 0.05 for any n and m.

With zeros nothing is learned: behind tanh and ReLU only the last biases have a gradient, and behind
sigmoids all units of a layer stay equal. Six layers of sigmoids learn with He's kernels alone, the
largest, and after a plateau: each makes the gradient about three times smaller, and with smaller
kernels more (docs/looking_inside.md has a picture). With tanh and ReLU the four others all learn:
LeCun's, Glorot's and He's lie within half a point, about the spread of the seeds; those of 0.05,
too small for 100 inputs, begin with a plateau too, of one epoch and of three, and are behind by
0.9 of a point or more.
"""

from ml_collections import ConfigDict

from flaxcnn.study import Study
from flaxcnn.training import Config, DataConfig, ModelConfig, OptimizerConfig, ScheduleConfig

INITIALIZERS = {
    "Glorot": "glorot_uniform",
    "He": "he_uniform",
    "LeCun": "lecun_uniform",
    "0.05": "random_uniform",
    "zeros": "zeros",
}


def get_study() -> Study:
    """Three activations with five initialisers each, everything else equal."""
    config = Config(
        model=ModelConfig(name="mnist_mlp_512", kwargs=ConfigDict({"hidden": (100,) * 6})),
        data=DataConfig(source="tfds:mnist", validation=0.05),
        optimizer=OptimizerConfig(
            name="sgd", learning_rate=0.1, schedule=ScheduleConfig("constant")
        ),
        epochs=8,
    )
    cases = {
        f"{activation}, {name}": {
            "model.kwargs.activation": activation,
            "model.kwargs.kernel_init": initializer,
        }
        for activation in ("sigmoid", "tanh", "relu")
        for name, initializer in INITIALIZERS.items()
    }
    return Study(config, cases=cases, quick={"epochs": 1})
