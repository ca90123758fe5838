"""BatchNorm of a 1x1 convolution's outputs, from the convolution's inputs (docs/adr/0016).

The moments of y = x W follow from those of x: E[y] = E[x] W and Var[y] = diag(W' Cov[x] W), and
what is normalised is x (W f) + b. So y itself need not be in memory, neither in the forward pass
nor in the backward pass, which is a product of the outputs' gradient and one of x. It pays on a
TPU, whose steps are bound by what they move, and where y has more channels than x.
"""

import jax
import jax.numpy as jnp
from jax import lax

from flaxcnn.layers.channels import broadcast_channels

Array = jax.Array

_HIGHEST = lax.Precision.HIGHEST


def product_moments(x: Array, kernel: Array) -> tuple[Array, Array]:
    """Mean and biased variance [F] of x [N, *size, C] times a kernel [C, F], in float32."""
    places = tuple(range(x.ndim - 1))
    count = x.size // x.shape[-1]
    mean = x.astype(jnp.float32).sum(places) / count
    squares = lax.dot_general(
        x, x, ((places, places), ((), ())), _HIGHEST, preferred_element_type=jnp.float32
    )
    covariance = squares / count - mean[:, None] * mean[None]
    kernel = kernel.astype(jnp.float32)
    spread = jnp.dot(covariance, kernel, precision=_HIGHEST)
    variance = jnp.maximum((kernel * spread).sum(0), 0)
    return jnp.dot(mean, kernel, precision=_HIGHEST), variance


def scale_product(x: Array, kernel: Array, factor: Array) -> Array:
    """(x - E[x]) W f: what `product_moments` are the moments of, centred and scaled per channel.

    The mean is that of the rounded W f, so that it is zero also in half precision.
    """
    scaled = (kernel * factor.astype(jnp.float32)[None]).astype(x.dtype)
    y = lax.conv_general_dilated(
        x, scaled[None, None], (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    mean = x.astype(jnp.float32).mean(tuple(range(x.ndim - 1)))
    shift = jnp.dot(mean, scaled.astype(jnp.float32), precision=_HIGHEST)
    return y - broadcast_channels(shift.astype(y.dtype), y)
