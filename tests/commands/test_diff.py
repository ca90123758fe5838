"""`flaxcnn diff`: what two runs, or two traces, differ in first, and why."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from orbax.checkpoint import v1 as ocp

from flaxcnn.audit import diff, record
from flaxcnn.audit.replay import open_run
from flaxcnn.audit.trace import load_trace
from flaxcnn.audit.ulps import NOT_A_NUMBER, compare, ulp_distance
from flaxcnn.commands.main import main
from flaxcnn.errors import UserError
from flaxcnn.training import (
    Config,
    DataConfig,
    ModelConfig,
    OptimizerConfig,
    RunConfig,
    ScheduleConfig,
    train,
)
from flaxcnn.training.state import hash_layout, hash_tree
from flaxcnn.training.workdir import Workdir

RATE = 0.05


def make_config(rate: float = RATE, **fields) -> Config:
    """Two epochs of 4 steps, in calls of 2; layers that do not end in the order of their names."""
    schedule = ScheduleConfig(name="constant")
    optimizer = OptimizerConfig(learning_rate=rate, schedule=schedule, kwargs={"momentum": 0.9})
    return Config(
        model=ModelConfig("mnist_mlp_512", kwargs={"hidden": (8,)}),
        data=DataConfig("digits", batch_size=320, validation=0.0),
        optimizer=optimizer,
        run=RunConfig(keep_last=2, keep_best=0),
        epochs=2,
        steps_per_call=2,
        **fields,
    )


@pytest.fixture(scope="module")
def run_of(tmp_path_factory):
    """The folder of a run of some fields, trained once."""
    folder, done = tmp_path_factory.mktemp("runs"), {}

    def run(**fields):
        name = "".join(f"{k}={v}" for k, v in fields.items()) or "a"
        if name not in done:
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr("flaxcnn.training.loop.report_run", lambda *_: None)
                patch.setattr("flaxcnn.training.workdir.Workdir.read", _read_if_there)
                train(make_config(**fields), folder / name)
            done[name] = folder / name
        return done[name]

    return run


_READ = Workdir.read


def _read_if_there(self, name):
    return _READ(self, name) if self.has(name) else {}


# Distances, against NumPy's own neighbours.


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, jnp.bfloat16])
def test_the_distance_is_the_number_of_steps_to_the_next_float(dtype):
    rng = np.random.default_rng(0)
    start = np.concatenate([rng.normal(size=5), [0.0, -0.0, 1.0, -1.0, 1e-7]]).astype(dtype)
    x = start
    for steps in range(4):
        np.testing.assert_array_equal(ulp_distance(start, x), np.full(10, steps))
        x = np.nextafter(x, np.array(np.inf, dtype))  # across zero, and powers of two


def test_distances_across_the_whole_range_and_of_nan():
    a = np.array([0.0, np.inf, -np.inf, np.nan, np.nan, 1.0])
    b = np.array([-0.0, np.finfo(np.float64).max, np.inf, np.nan, 1.0, 1.0 + np.spacing(1.0)])
    # All doubles but NaNs: 2047 exponents of 2**52 each, on both sides of zero.
    infinities = 2 * 2047 * 2**52
    assert ulp_distance(a, b).tolist() == [0, 1, infinities, 0, NOT_A_NUMBER, 1]
    with pytest.raises(TypeError, match="one type"):
        ulp_distance(a[:1], b[:1].astype(np.float32))


def test_two_types_are_compared_in_the_coarser_one():
    a = np.array([1.0, 1.001, 3.0], np.float32)
    assert compare("x", a, a.astype(jnp.bfloat16)) is None  # rounding is no difference
    moved = np.array([1.0, 1.001, 3.0 + 2**-6], np.float32)  # the next bfloat16: 8 bits
    found = compare("x", moved, a.astype(jnp.bfloat16))
    assert found is not None
    assert (found.differing, found.max_ulps, found.where) == (1, 1, (2,))
    found = compare("x", np.float32([0.0]), np.float32([-0.0]))
    assert found is not None and (found.differing, found.max_ulps) == (1, 0)
    assert "shape" in compare("x", np.zeros((2, 3)), np.zeros((2, 4))).note


# A trace.


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """The file of the first two steps, and the batch that the first one sees."""
    file = tmp_path_factory.mktemp("traces") / "a.npz"
    record(make_config(), file)
    return file


def test_a_trace_is_what_numpy_computes_of_its_own_arrays(recorded):
    trace, about = load_trace(recorded)
    assert about["first_step"] == 0 and about["config"]["seed"] == 0
    names = [name.split("/", 1)[1] for name in trace if name.startswith("0/")]
    dense, classifier = "fc1", "classifier"
    order = [f"activation/{dense}", f"activation/{classifier}", "output", "metric/loss"]
    order += [f"gradient/{classifier}/kernel", f"gradient/{dense}/kernel"]
    assert [name for name in names if name in order] == order
    x, output = (trace[f"0/{name}"].astype(np.float64) for name in ("input", "output"))
    x = x.reshape(len(x), -1)
    hidden = x @ trace[f"0/parameter/{dense}/kernel"] + trace[f"0/parameter/{dense}/bias"]
    np.testing.assert_allclose(trace[f"0/activation/{dense}"], hidden, rtol=1e-4, atol=1e-5)
    # The first step of momentum is one of plain gradient descent.
    for name in (f"{dense}/kernel", f"{classifier}/bias"):
        after = trace[f"0/parameter/{name}"] - RATE * trace[f"0/gradient/{name}"]
        np.testing.assert_allclose(trace[f"1/parameter/{name}"], after, rtol=1e-5, atol=1e-7)
    # Cross-entropy: the gradient of the logits is softmax - one-hot, and their sums are labels.
    softmax = np.exp(output) / np.exp(output).sum(1, keepdims=True)
    counts = 320 * (softmax.mean(0) - trace[f"0/gradient/{classifier}/bias"])
    np.testing.assert_allclose(counts, np.round(counts), atol=1e-3)
    assert round(counts.sum()) == 320


def test_bfloat16_and_float32_part_in_the_first_layer(recorded, tmp_path, capsys):
    record(make_config(precision="bfloat16"), tmp_path / "b.npz", steps=1)
    assert load_trace(tmp_path / "b.npz")[0]["0/activation/fc1"].dtype == jnp.bfloat16
    assert main(["diff", str(recorded), str(tmp_path / "b.npz"), "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert found["step"] == 0 and found["differences"][0]["name"] == "0/activation/fc1"
    assert found["cause"] == "config precision: 'float32' -> 'bfloat16'"
    assert main(["diff", str(recorded), str(tmp_path / "b.npz"), "--tolerance", "0.1"]) == 0
    assert capsys.readouterr().out.endswith("NO DIFFERENCE\n")


def test_arrays_of_a_port(recorded, tmp_path, capsys):
    """A file with some arrays only, which says nothing about itself."""
    trace, _ = load_trace(recorded)
    port = {name: trace[name] for name in ("0/input", "0/activation/fc1", "0/output")}
    port["0/activation/fc1"] = port["0/activation/fc1"].copy()
    port["0/activation/fc1"][3, 2] *= 1.001
    np.savez(tmp_path / "port.npz", **port)
    assert main(["diff", str(recorded), str(tmp_path / "port.npz")]) == 1
    shown = capsys.readouterr().out
    assert "first difference: step 0, 0/activation/fc1 (1 of 3 arrays differ)" in shown
    assert "in 0/activation/fc1[3, 2]: " in shown
    with pytest.raises(UserError, match="no array of the same name"):
        np.savez(tmp_path / "other.npz", conv1=np.zeros(3))
        diff(recorded, tmp_path / "other.npz")


# Runs.


def test_a_run_and_its_copy_do_not_differ(run_of, tmp_path, capsys):
    copy = shutil.copytree(run_of(), tmp_path / "b")
    assert main(["diff", str(run_of()), str(copy)]) == 0
    assert "state: the same bits up to step 8\nNO DIFFERENCE\n" in capsys.readouterr().out


def test_two_seeds_part_before_the_first_step(run_of, capsys):
    assert main(["diff", str(run_of()), str(run_of(seed=1))]) == 1
    shown = capsys.readouterr().out
    assert "state: other bits at step 0\n" in shown
    assert "first difference: step 0, parameter/fc1/kernel" in shown
    assert "likely cause: config seed: 0 -> 1\n" in shown


def test_another_rate_parts_in_the_first_update(run_of):
    found = diff(run_of(), run_of(rate=0.04))
    assert (found.agreed, found.differed, found.step) == (0, 4, 0)
    assert {d.name.split("/")[1] for d in found.differences} == {"params"}
    assert found.cause == "config optimizer.learning_rate: 0.05 -> 0.04"


def test_a_weight_that_somebody_moved_by_one_unit(run_of, tmp_path):
    copy = shutil.copytree(run_of(), tmp_path / "b")
    run = open_run(copy)
    state, history = run.restore(8)
    params = jax.tree.map(np.array, state.params)
    kernel = params["fc1"]["kernel"]
    kernel[20, 5] = np.nextafter(kernel[20, 5], np.float32(9))
    state = state.replace(params=params, key=jax.random.key_data(state.key))
    shutil.rmtree(copy / "saved" / "8")
    hashes = {"sha256": hash_tree(state), "layout": hash_layout(state)}
    with ocp.training.Checkpointer(str(copy / "saved")) as checkpointer:
        checkpointer.save_checkpointables(
            8, {"state": state}, force=True, custom_metadata={"history": history, **hashes}
        )
    found = diff(run_of(), copy)
    assert (found.agreed, found.differed, found.step) == (4, 8, 7)
    (difference,) = found.differences
    assert (difference.name, difference.where) == ("state/params/fc1/kernel", (20, 5))
    assert (difference.differing, difference.max_ulps) == (1, 1)
    assert "done again here from step 4 to 8, training gives the bits of A" in found.notes
    assert found.cause.startswith("the state of B at step 8 is not what its training gives")


def test_other_threads_are_the_cause_where_nothing_else_differs(run_of, tmp_path):
    copy = shutil.copytree(run_of(), tmp_path / "b")
    shutil.rmtree(copy / "saved" / "8")
    sessions = Workdir(copy).read("environment")
    threads = sessions[0]["threads"]
    sessions[0]["threads"] = threads + 1
    Workdir(copy).write("environment", sessions)
    file = Workdir(copy).metrics
    file.write_text(file.read_text().replace(open_run(copy).hashes[8], 64 * "0"))
    found = diff(run_of(), copy)
    assert (found.agreed, found.differed, found.step, found.same) == (4, 8, None, False)
    assert found.cause == f"environment CPU threads {threads} -> {threads + 1}"
    assert any(f"--record b.npz {copy} --start 4" in note for note in found.notes)


def test_what_cannot_be_compared_is_told_in_one_line(run_of, recorded, tmp_path):
    with pytest.raises(UserError, match="there is no run and no file"):
        diff(recorded, tmp_path / "nothing")
    with pytest.raises(UserError, match="must both be runs, or both be files"):
        diff(recorded, run_of())
    with pytest.raises(UserError, match="has no checkpoint of step 3; there are 0, 4, 8"):
        record(run_of(), tmp_path / "x.npz", start=3)
    (tmp_path / "text.npz").write_text("no arrays")
    with pytest.raises(UserError, match=r"is no .npz file"):
        diff(recorded, tmp_path / "text.npz")
    assert main(["diff", str(recorded)]) == 2
