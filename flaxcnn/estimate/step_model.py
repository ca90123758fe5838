"""What a training step takes, by a model where no compiler for the chip is at hand."""

import jax

from flaxcnn.analysis.memory_model import abstract_bytes, reckon
from flaxcnn.estimate.step_cost import Step, count_flops, trace_call
from flaxcnn.training.experiment import Experiment


def reckon_step(experiment: Experiment) -> Step:
    """The step on one device, by the model. Its `compile_seconds` are 0."""
    traced, data = trace_call(experiment, jax.devices()[:1])
    state = abstract_bytes(experiment.abstract_state())
    peak, traffic = reckon(traced.jaxpr)
    batch, flops = experiment.config.data.batch_size, count_flops(experiment)
    return Step(batch, state + data + peak, state, data, flops, traffic, 0.0, donated=state)
