"""8-bit weights with a scale: NAME.weight_q, .weight_scale and .weight_zero_point."""

import numpy as np

from flaxcnn.errors import UserError

Array = np.ndarray

PARTS = ("weight_q", "weight_scale", "weight_zero_point")


def dequantize(tensors: dict[str, Array]) -> dict[str, Array]:
    """Makes float32 NAME.weight = (weight_q - zero_point) * scale; other tensors stay.

    Scale and zero point are one number or, as in TFLite, one for each of the first axis.
    """
    layers = [name.removesuffix(".weight_q") for name in tensors if name.endswith(".weight_q")]
    result = {
        name: tensor for name, tensor in tensors.items() if name.rpartition(".")[2] not in PARTS
    }
    for layer in layers:
        for part in PARTS:
            if f"{layer}.{part}" not in tensors:
                raise UserError(f"it has {layer}.weight_q, and no {layer}.{part}")
        steps, scale, zero = (tensors[f"{layer}.{part}"] for part in PARTS)
        column = (-1,) + (1,) * (steps.ndim - 1)
        if steps.dtype not in (np.uint8, np.int8) or steps.ndim == 0:
            raise UserError(f"{layer}.weight_q holds {steps.dtype}, and not 8-bit numbers")
        if {scale.size, zero.size} - {1, len(steps)}:
            raise UserError(f"{layer} has {scale.size} scales for {len(steps)} channels")
        whole = steps.astype(np.int32) - zero.astype(np.int32).reshape(column)
        result[f"{layer}.weight"] = whole.astype(np.float32) * scale.reshape(column)
    return result
