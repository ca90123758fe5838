"""Every network of the zoo gives the logits that an independent implementation gives.

The golden outputs are those of torchvision, timm and Keras (tests/reference/make.py). The weights
are drawn alike on both sides, by their names there.
"""

import functools

import jax
import numpy as np
from parity import each_reference, prepare, relative_error


@each_reference
def test_logits(reference):
    model, variables, _, images = prepare(reference)
    logits = jax.jit(functools.partial(model.apply, train=False))(variables, images)
    expected = np.load(reference.path)["logits"]
    assert np.abs(expected).max() > 1e-3 and np.ptp(expected) > 1e-3
    assert relative_error(logits, expected) < 1e-4
