"""Normalisation: over the batch, and over adjacent channels."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax.typing import Dtype, Initializer
from jax import lax

from flaxcnn.errors import UserError
from flaxcnn.layers.channels import broadcast_channels, sum_per_channel
from flaxcnn.layers.dtypes import mean_dtype, promote
from flaxcnn.layers.norm_product import product_moments, scale_product
from flaxcnn.layers.pool import refuse_complex

Array = jax.Array


class BatchNorm(nn.Module):
    """Batch normalisation (Ioffe and Szegedy 2015), the values of `flax.linen.BatchNorm`.

    Normalises each channel of [N, *size, C] by the mean and variance over the batch, or by their
    running averages, then multiplies by `scale` and adds `bias`, both `param_dtype` [C]. `momentum`
    is the share of the running averages that is kept (1 - momentum in PyTorch); like Flax's, the
    running variance averages the biased variance of each batch, where PyTorch takes the unbiased
    one, n / (n - 1) times as large for n values per channel. Inside `pmap` or `shard_map`, the
    batch is that of all devices along `axis_name`, or of each of `axis_index_groups`. A batch
    without values leaves the running averages as they are, and is normalised by them.

    Takes what Flax's takes by keyword. What differs: with `use_fast_variance`, mean and variance
    are those of the differences from the running mean, as E[x^2] - E[x]^2 loses all digits of a
    deviation that is far smaller than the mean. So does this, for as long as the running mean is
    far from the batch's; false goes over the batch twice, which is always right (docs/adr/0011).
    The result is float32 unless `dtype` is another, and None promotes input and parameters, as is
    Flax's default; `axis` is one axis, and the order of the attributes is another. Statistics are
    computed in float32 at least, unless `force_float32_reductions` is false.
    """

    use_running_average: bool | None = None
    momentum: float = 0.99
    epsilon: float = 1e-5
    dtype: Dtype | None = jnp.float32
    use_bias: bool = True
    use_scale: bool = True
    bias_init: Initializer = nn.initializers.zeros_init()
    scale_init: Initializer = nn.initializers.ones_init()
    axis_name: str | None = None
    axis: int = -1
    param_dtype: Dtype = jnp.float32
    axis_index_groups: Any = None
    use_fast_variance: bool = True
    force_float32_reductions: bool = True

    @nn.compact
    def __call__(
        self,
        x: Array,
        use_running_average: bool | None = None,
        *,
        mask: Array | None = None,
        product: tuple[Array, Array] | None = None,
    ) -> Array:
        """Maps [N, *size, C] to the same shape; updates `batch_stats` where they are mutable.

        `use_running_average` may be given here instead of as an attribute. `mask`, boolean and
        broadcast to the shape of x, marks the values that count in the statistics; all devices
        along `axis_name` count theirs together, where Flax averages the means of the devices.
        `product` says that x is the product of images [N, H, W, K] and a kernel [K, C], which must
        be so: then a TPU in training need not keep x (`norm_product.py`).
        Raises UserError if `use_running_average` is given twice or not at all.
        """
        if (self.use_running_average is None) == (use_running_average is None):
            times = "not given" if use_running_average is None else "given twice"
            raise UserError(f"BatchNorm: use_running_average is {times} (attribute, argument)")
        x = jnp.asarray(x)
        if mask is not None:
            mask = jnp.moveaxis(jnp.broadcast_to(mask, x.shape).astype(bool), self.axis, -1)
        x = jnp.moveaxis(x, self.axis, -1)
        dtype = self._result_dtype(x)
        running = bool(self.use_running_average or use_running_average)
        channels, scale = x.shape[-1:], None
        if self.use_scale:
            scale = self.param("scale", self.scale_init, channels, self.param_dtype)
        if product is None or running or not self._is_product(x, product[0], mask):
            mean, variance = self._statistics(x, mask, running)
            y = self._normalise(x, mean, variance, scale)
        else:
            y = self._normalise_product(x, *product, scale)
        if self.use_bias:
            bias = self.param("bias", self.bias_init, channels, self.param_dtype)
            y = y + broadcast_channels(bias.astype(y.dtype), x)
        return jnp.moveaxis(y.astype(dtype), -1, self.axis)

    def _result_dtype(self, x: Array) -> Dtype:
        dtype = self.dtype
        if dtype is None:
            parameters = [self.param_dtype] if self.use_scale or self.use_bias else []
            dtype = promote(x.dtype, *parameters)
            if not jnp.issubdtype(dtype, jnp.inexact):
                dtype = jnp.float32
        if jnp.iscomplexobj(x) and not jnp.issubdtype(dtype, jnp.complexfloating):
            raise UserError("BatchNorm: complex values need dtype=None or a complex dtype")
        return dtype

    def _normalise(self, x: Array, mean: Array, variance: Array, scale: Array | None) -> Array:
        wide = promote(x.dtype, variance.dtype, self.param_dtype)
        y = x.astype(wide) - broadcast_channels(mean.astype(wide), x)
        return y * broadcast_channels(self._factor(variance, scale, wide), x)

    def _factor(self, variance: Array, scale: Array | None, dtype: Dtype) -> Array:
        factor = lax.rsqrt(variance + self.epsilon).astype(dtype)
        return factor if scale is None else factor * scale.astype(dtype)

    def _is_product(self, x: Array, images: Array, mask: Array | None) -> bool:
        """Whether `_normalise_product` does what is asked for, and pays."""
        divided = jax.typeof(x).sharding.mesh.explicit_axes or getattr(jax.typeof(x), "vma", ())
        plain = mask is None and self.axis_name is None and self.use_fast_variance and not divided
        return plain and 4 * images.shape[-1] <= x.shape[-1] and 0 not in x.shape

    def _normalise_product(
        self, x: Array, images: Array, kernel: Array, scale: Array | None
    ) -> Array:
        """As `_statistics` and `_normalise`, on a TPU without reading x."""
        kept = self._kept(x)
        wide = promote(x.dtype, kept[1].value.dtype)

        def of_maps(x, images, kernel, centre, scale):
            mean, variance = self._moments(x.astype(wide), centre, None, None)
            return self._normalise(x, mean, variance, scale), mean, variance

        def of_product(x, images, kernel, centre, scale):
            mean, variance = product_moments(images, kernel)
            factor = self._factor(variance, scale, jnp.float32)
            y = scale_product(images, kernel, factor)
            return (
                y.astype(promote(wide, self.param_dtype)),
                mean.astype(wide),
                variance.astype(wide),
            )

        operands = x, images, kernel, self._centre(kept, wide), scale
        y, *news = lax.platform_dependent(*operands, tpu=of_product, default=of_maps)
        self._keep(kept, news, None)
        return y

    def _kept(self, x: Array) -> tuple[Any, Any]:
        """The variables of the running averages."""
        dtype = jnp.dtype(jnp.float32 if self.force_float32_reductions else self.param_dtype)
        dtype_of_mean = promote(dtype, jnp.complex64) if jnp.iscomplexobj(x) else dtype
        mean = self.variable("batch_stats", "mean", jnp.zeros, x.shape[-1:], dtype_of_mean)
        return mean, self.variable("batch_stats", "var", jnp.ones, x.shape[-1:], dtype)

    def _centre(self, kept: tuple[Any, Any], dtype: Dtype) -> Array:
        # Averages that have overflowed once must not spread to all later batches.
        mean = kept[0].value
        return jnp.where(jnp.isfinite(mean), mean, 0).astype(dtype)

    def _statistics(self, x: Array, mask: Array | None, running: bool) -> tuple[Array, Array]:
        """Mean and variance to normalise by: those kept, or the batch's, which are averaged."""
        kept = self._kept(x)
        if running or 0 in x.shape:
            return kept[0].value, kept[1].value
        count = None if mask is None else self._sum(mask.astype(jnp.float32))
        x = x.astype(promote(x.dtype, kept[1].value.dtype))
        return self._keep(kept, self._moments(x, self._centre(kept, x.dtype), mask, count), count)

    def _keep(
        self, kept: tuple[Any, Any], news: Sequence[Array], count: Array | None
    ) -> tuple[Array, Array]:
        """Averages the batch's mean and variance; returns what to normalise by."""
        results = []
        for old, new in zip(kept, news, strict=True):
            before, share = old.value, self.momentum
            average = share * before + (1 - share) * new.astype(before.dtype)
            if count is not None:  # a channel without values stays as it is
                average = jnp.where(count > 0, average, before)
                new = jnp.where(count > 0, new, before.astype(new.dtype))
            if not self.is_initializing():
                old.value = average
            results.append(new)
        return results[0], results[1]

    def _moments(
        self, x: Array, centre: Array, mask: Array | None, count: Array | None
    ) -> tuple[Array, Array]:
        """Mean and biased variance per channel: of a constant c, E[|x - c|^2] - |E[x - c]|^2.

        The nearer c is to the mean, the fewer digits cancel. The `centre` that the caller knows is
        there before the batch is: both sums are then taken as the batch is made.
        """

        def average(values: Array) -> Array:
            if mask is None or count is None:
                return self._across(sum_per_channel(values) / (values.size // values.shape[-1]))
            return self._sum(jnp.where(mask, values, 0)) / jnp.maximum(count, 1)

        if not self.use_fast_variance:
            centre = average(x)
        centre = lax.stop_gradient(centre)
        differences = x - broadcast_channels(centre, x)
        offset, squares = average(differences), average(_square(differences))
        return centre + offset, jnp.maximum(squares - _square(offset), 0)

    def _sum(self, values: Array) -> Array:
        return self._across(sum_per_channel(values), lax.psum)

    def _across(self, values: Array, reduce: Callable[..., Array] = lax.pmean) -> Array:
        """Reduces over the devices, except in `init`, which may be outside of `pmap`."""
        if self.axis_name is None or self.is_initializing():
            return values
        return reduce(values, self.axis_name, axis_index_groups=self.axis_index_groups)


class FrozenBatchNorm(nn.Module):
    """BatchNorm by its running averages, and with a scale and a bias that are not trained either.

    All four are in `batch_stats`, [C] each, and never change: `torchvision.ops.FrozenBatchNorm2d`,
    as detectors have it whose batches are too small for statistics.
    """

    epsilon: float = 1e-5
    dtype: Dtype = jnp.float32
    use_scale: bool = True

    @nn.compact
    def __call__(self, x: Array, *, product: Any = None) -> Array:
        """Maps [N, *size, C] to the same shape; `product` is there for BatchNorm's sake."""
        shape = x.shape[-1:]
        start = {"mean": jnp.zeros, "var": jnp.ones, "bias": jnp.zeros}
        start |= {"scale": jnp.ones} if self.use_scale else {}
        kept = {n: self.variable("batch_stats", n, make, shape).value for n, make in start.items()}
        factor = lax.rsqrt(kept["var"] + self.epsilon) * kept.get("scale", 1.0)
        shift = kept["bias"] - kept["mean"] * factor
        y = x.astype(factor.dtype) * broadcast_channels(factor, x) + broadcast_channels(shift, x)
        return y.astype(self.dtype)


def _square(x: Array) -> Array:
    return (x * x.conj()).real if jnp.iscomplexobj(x) else x * x


def local_response_norm(
    x: Array,
    *,
    size: int = 5,
    k: float = 2.0,
    alpha: float = 1e-4,
    beta: float = 0.75,
    divide_alpha: bool = False,
) -> Array:
    """Divides each channel by (k + alpha * sum of squares of `size` adjacent channels) ** beta.

    Takes [..., C] with the defaults of its paper (Krizhevsky et al. 2012, section 3.3). Caffe and
    PyTorch divide alpha by `size` (`divide_alpha=True`) and start from k=1. The window is centred
    and cut off at the first and last channel; an even one reaches further down, as in PyTorch. Half
    precision and integers are computed in float32, and integers stay so. Raises UserError unless
    `size` >= 1, and for complex values.
    """
    if size < 1:
        raise UserError(f"local_response_norm: size is {size}, and must be at least 1")
    refuse_complex(x, "local_response_norm")
    if divide_alpha:
        alpha /= size
    wide = x.astype(promote(x.dtype, jnp.float32))
    scale = k + alpha * _sum_of_adjacent(wide * wide, size)
    return (wide * _negative_power(scale, beta)).astype(mean_dtype(x))


def _sum_of_adjacent(x: Array, size: int) -> Array:
    """Sums windows of channels as a product with a band of ones (docs/adr/0012)."""
    channel = np.arange(x.shape[-1])
    offset = channel[:, None] - channel
    band = (-(size // 2) <= offset) & (offset <= (size - 1) // 2)
    return jnp.dot(x, jnp.asarray(band, x.dtype), precision=lax.Precision.HIGHEST)


def _negative_power(x: Array, beta: float) -> Array:
    if beta == 0.75:  # everyone's choice, and faster by roots (docs/adr/0012)
        root = lax.rsqrt(x)
        return root * jnp.sqrt(root)
    return x**-beta
