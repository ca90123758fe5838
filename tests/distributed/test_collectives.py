"""What devices exchange in a step, read from the compiled program."""

import sys
from pathlib import Path

import jax
import pytest

from flaxcnn.estimate.step_cost import trace_call
from flaxcnn.training import load_config
from flaxcnn.training.experiment import open_experiment

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def test_collectives_are_found_in_a_programs_text(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    from scaling import count_collectives

    text = """
    %a = (f32[4]{0}, bf16[2,3]{1,0}, /*index=2*/f32[]) all-reduce(%x, %y, %z), channel_id=2
    %b = f32[4]{0} get-tuple-element(%a), index=0, metadata={op_name="all-reduce"}
    ROOT %c = s32[8,2]{1,0} all-gather-start(%b), dimensions={0}
    %d = f32[5]{0} all-reduce(%c)
    """
    assert count_collectives(text) == {"all-reduce": [16 + 12 + 4, 20], "all-gather": [64]}
    sys.modules.pop("scaling")


@pytest.mark.slow
def test_a_step_sums_gradients_once_and_batch_statistics(config, monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    from scaling import count_collectives

    experiment = open_experiment(load_config(config))
    traced, _ = trace_call(experiment, jax.devices())
    found = count_collectives(traced.lower().compile().as_text())
    state = experiment.abstract_state()
    sizes = (sum(x.size for x in jax.tree.leaves(t)) for t in (state.params, state.batch_stats))
    parameters, statistics = (4 * size for size in sizes)
    assert found.keys() == {"all-reduce"}
    # Two for each of two BatchNorms, forwards and backwards; the gradients in one more, or with
    # a BatchNorm's. Those of a BatchNorm's scale or bias are sums that its backward pass needs too.
    assert len(found["all-reduce"]) <= 1 + 2 * 2
    metrics = 4 * 3
    most = parameters + 2 * statistics + metrics
    assert most - statistics <= sum(found["all-reduce"]) <= most
    sys.modules.pop("scaling")
