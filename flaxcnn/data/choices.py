"""The legal values of fields of `data`, for the config, the flags and what carries them out."""

RESIZE = ("crop", "stretch", "pad")  # how an image of other proportions reaches `image_size`
ON_BAD_IMAGE = ("error", "skip")
FEEDERS = ("auto", "resident", "streaming")
SAMPLERS = ("natural", "balanced", "sqrt", "repeat_factor")
NORMALIZATION = ("auto", "data", "sample", "weights")  # or given, as (mean, std)
