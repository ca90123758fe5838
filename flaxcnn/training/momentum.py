"""The warning that BatchNorm's running averages are too slow for a short run."""

import contextlib
import math
from collections.abc import Iterator

from flax import linen as nn

from flaxcnn.layers import BatchNorm

_LARGEST_SHARE = 0.1  # of their initial values that averages may still hold at the end


@contextlib.contextmanager
def record_momentum() -> Iterator[dict[str, float]]:
    """The momentum of each BatchNorm, ours or Flax's, that is called or traced inside.

    By the path of its running mean, as "stem_bn/mean".
    """
    found = {}

    def record(call, args, kwargs, context):
        if context.method_name == "__call__" and isinstance(
            context.module, BatchNorm | nn.BatchNorm
        ):
            found["/".join((*context.module.path, "mean"))] = context.module.momentum
        return call(*args, **kwargs)

    with nn.intercept_methods(record):
        yield found


def judge_momentum(momentum: float, updates: int, model: nn.Module) -> str | None:
    """Says that averages which keep the share `momentum` in each of `updates` stay behind.

    None if they hold at most a tenth of their initial values at the end. Names the field of the
    config that lowers it, where `model` has such an argument.
    """
    share = momentum**updates
    if share <= _LARGEST_SHARE:
        return None
    advice = "use a network with a smaller momentum"
    if momentum < 1:
        advice = f"train for {math.ceil(math.log(_LARGEST_SHARE) / math.log(momentum))} steps"
    for field in ("momentum", "norm_momentum"):
        if hasattr(model, field):
            lower = min(0.9, math.floor(100 * _LARGEST_SHARE ** (1 / updates)) / 100)
            advice = f"set --config.model.kwargs.{field}={lower:g}, or {advice}"
    return (
        f"BatchNorm keeps {momentum:g} of its averages per step: after the {updates} steps of this "
        f"run they are still {share:.0%} their initial values, and validation, which uses them, "
        f"lags behind training: {advice}"
    )
