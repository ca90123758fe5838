import math
import os
from fractions import Fraction
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from flaxcnn.errors import UserError
from flaxcnn.tasks.task import Metric
from flaxcnn.training import checkpoint
from flaxcnn.training.checkpoint import Checkpoints, SavedCheckpoints
from flaxcnn.training.state import TrainState, hash_tree

TX = optax.adam(1e-3)
ACCURACY, LOSS = Metric("accuracy", "max", "%"), Metric("loss", "min")


def make_state(step: int) -> TrainState:
    rng = np.random.default_rng(step)
    params = {"dense": {"kernel": jnp.asarray(rng.normal(size=(64, 32)), jnp.float32)}}
    return TrainState(
        step=jnp.int32(step),
        params=params,
        batch_stats={"norm": {"mean": jnp.full(3, step, jnp.float32)}},
        opt_state=TX.init(params),
        ema=None,
        slow=None,
        key=jax.random.key(7),
    )


ABSTRACT = jax.eval_shape(lambda: make_state(0))


@pytest.fixture
def open_checkpoints(tmp_path):
    opened = []

    def open_one(keep_last=2, keep_best=1, monitor=ACCURACY, keep_every=0):
        folder = tmp_path / "checkpoints"
        opened.append(Checkpoints(folder, keep_last, keep_best, monitor, keep_every))
        return opened[-1]

    yield open_one
    for checkpoints in opened:
        checkpoints.close()


def save(checkpoints, step, value, *, validated=True, monitor=ACCURACY):
    history = [{"step": step, monitor.name: value}]
    checkpoints.save(step, make_state(step), history, validated=validated)


def damage(directory: Path, step: int, how) -> None:
    """Changes the largest file of the checkpoint, where the arrays are."""
    files = [f for f in (directory / str(step)).rglob("*") if f.is_file()]
    how(max(files, key=lambda f: f.stat().st_size))


def test_a_restored_state_has_the_same_bits_key_and_history(open_checkpoints):
    checkpoints = open_checkpoints()
    save(checkpoints, 5, 0.25)
    checkpoints.wait()
    step, state, history = open_checkpoints().restore_latest(ABSTRACT)
    assert (step, history) == (5, [{"step": 5, "accuracy": 0.25}])
    assert hash_tree(state) == hash_tree(make_state(5))
    np.testing.assert_array_equal(
        jax.random.bits(jax.random.fold_in(state.key, 3)),
        jax.random.bits(jax.random.fold_in(jax.random.key(7), 3)),
    )


def test_a_state_of_a_version_that_had_fewer_parts(open_checkpoints, monkeypatch):
    checkpoints = open_checkpoints()
    saver = checkpoints._checkpointer
    write = saver.save_checkpointables

    def write_old(step, parts, **kwargs):
        old = {k: v for k, v in vars(parts["state"]).items() if k not in ("mask", "leaders")}
        return write(step, {"state": old}, **kwargs)

    monkeypatch.setattr(saver, "save_checkpointables", write_old)
    save(checkpoints, 5, 0.25)
    checkpoints.wait()
    _, state, _ = open_checkpoints().restore_latest(ABSTRACT)
    assert hash_tree(state) == hash_tree(make_state(5))
    assert state.mask is None and state.leaders is None


def test_a_row_added_while_a_save_is_being_written_is_not_in_it(open_checkpoints):
    """It would be there twice after a resume, and count twice for plateau and early stopping."""
    checkpoints, history = open_checkpoints(keep_last=9), []
    for step in range(1, 6):
        history.append({"step": step, "accuracy": 0.5})
        checkpoints.save(step, make_state(step), history, validated=False)
    checkpoints.wait()
    restored = [open_checkpoints(keep_last=9).restore(step, ABSTRACT)[1] for step in range(1, 6)]
    assert [len(rows) for rows in restored] == [1, 2, 3, 4, 5]


def test_what_was_saved_is_not_what_the_next_step_makes_of_the_buffers(open_checkpoints):
    """Saving is asynchronous and steps donate their state."""
    checkpoints = open_checkpoints()
    state = make_state(1)
    expected = hash_tree(state)
    checkpoints.save(1, state, [], validated=False)
    overwrite = jax.jit(lambda s: s.replace(params=jax.tree.map(jnp.zeros_like, s.params)),
                        donate_argnums=0)  # fmt: skip
    jax.block_until_ready(overwrite(state))
    checkpoints.wait()
    assert hash_tree(checkpoints.restore(1, ABSTRACT)[0]) == expected


@pytest.mark.parametrize(
    ("monitor", "values", "kept", "best"),
    [
        (ACCURACY, [0.1, 0.9, 0.5, 0.6, 0.7], [2, 4, 5], 2),
        (ACCURACY, [0.9, 0.9, 0.5, 0.6, 0.7], [2, 4, 5], 2),  # of equals the later
        (LOSS, [0.3, 0.1, 0.2, 0.4, 0.5], [2, 4, 5], 2),
        (LOSS, [0.3, 0.4, math.nan], [1, 2, 3], 1),  # NaN is never best
        (ACCURACY, [math.nan, 0.1, math.nan], [2, 3], 2),
    ],
)
def test_the_last_and_the_best_are_kept(open_checkpoints, monitor, values, kept, best):
    checkpoints = open_checkpoints(monitor=monitor)
    for step, value in enumerate(values, start=1):
        save(checkpoints, step, value, monitor=monitor)
    checkpoints.wait()
    assert checkpoints.steps == kept
    assert checkpoints.best_step() == best


@pytest.mark.parametrize(
    ("every", "kept"),
    [
        (5, [6, 10, 16, 20, 22]),  # the first at or after 5, 10, 15, 20
        (Fraction(22, 5), [6, 10, 14, 18, 22]),  # 4.4, 8.8, 13.2, 17.6, 22
        (100, [22]),
    ],
)
def test_the_first_after_each_multiple_is_kept(open_checkpoints, every, kept):
    checkpoints = open_checkpoints(keep_last=1, keep_best=0, keep_every=every)
    for step in range(2, 23, 2):
        save(checkpoints, step, 0.5)
    checkpoints.wait()
    assert checkpoints.steps == kept


def test_the_hash_is_given_before_there_is_a_checkpoint(open_checkpoints):
    checkpoints, given = open_checkpoints(), []
    checkpoints.save(
        1,
        make_state(1),
        [],
        validated=False,
        on_hash=lambda sha256: given.append((sha256, checkpoints.steps)),
    )
    checkpoints.wait()
    assert given == [(hash_tree(make_state(1)), [])] and checkpoints.steps == [1]


def test_a_checkpoint_that_was_not_validated_is_never_the_best(open_checkpoints):
    checkpoints = open_checkpoints(keep_last=3)
    save(checkpoints, 1, 0.5)
    save(checkpoints, 2, 0.5, validated=False)
    checkpoints.wait()
    assert checkpoints.best_step() == 1


def truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def flip_bits(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 0xFF
    file.write_bytes(content)


# orbax closes its event loop while reads of the damaged files are still under way.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("how", [truncate, flip_bits, Path.unlink])
def test_a_damaged_newest_checkpoint_is_reported_and_the_one_before_used(
    open_checkpoints, tmp_path, capsys, how
):
    checkpoints = open_checkpoints()
    save(checkpoints, 1, 0.1)
    save(checkpoints, 2, 0.2)
    checkpoints.wait()
    damage(tmp_path / "checkpoints", 2, how)
    step, state, _ = open_checkpoints().restore_latest(ABSTRACT)
    assert step == 1
    assert hash_tree(state) == hash_tree(make_state(1))
    assert "checkpoint 2 is damaged" in capsys.readouterr().err


def test_a_checkpoint_that_lost_its_metadata_is_damaged(open_checkpoints, tmp_path, capsys):
    checkpoints = open_checkpoints()
    save(checkpoints, 1, 0.1)
    save(checkpoints, 2, 0.2)
    checkpoints.wait()
    (tmp_path / "checkpoints" / "2" / "_CHECKPOINT_METADATA").unlink()
    assert open_checkpoints().restore_latest(ABSTRACT)[0] == 1
    assert "checkpoint 2 is damaged" in capsys.readouterr().err


def test_a_damaged_checkpoint_is_overwritten_when_the_run_gets_there(open_checkpoints, tmp_path):
    checkpoints = open_checkpoints()
    save(checkpoints, 1, 0.1)
    save(checkpoints, 2, 0.2)
    checkpoints.wait()
    damage(tmp_path / "checkpoints", 2, truncate)
    again = open_checkpoints()
    save(again, 2, 0.2)
    again.wait()
    assert again.restore_latest(ABSTRACT)[0] == 2


def test_a_checkpoint_of_another_layout_is_refused_and_not_taken_for_damaged(open_checkpoints):
    """Else the run would start anew and overwrite it."""
    checkpoints = open_checkpoints()
    save(checkpoints, 1, 0.1)
    checkpoints.wait()
    grown = ABSTRACT.replace(slow=ABSTRACT.params)
    for restore in (open_checkpoints().restore_latest, lambda a: open_checkpoints().restore(1, a)):
        with pytest.raises(UserError, match="checkpoint 1 was written by another version"):
            restore(grown)


# orbax closes its event loop while reads of the damaged files are still under way.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_the_best_is_read_and_if_damaged_the_next_best(open_checkpoints, tmp_path, capsys):
    checkpoints = open_checkpoints(keep_last=3)
    for step, value in enumerate([0.3, 0.2, 0.4], start=1):
        save(checkpoints, step, value, monitor=LOSS)
    checkpoints.wait()
    saved = SavedCheckpoints(tmp_path / "checkpoints", LOSS)
    assert saved.restore_best(ABSTRACT)[0] == 2
    damage(tmp_path / "checkpoints", 2, Path.unlink)
    assert saved.restore_best(ABSTRACT)[0] == 1
    assert "checkpoint 2 is damaged" in capsys.readouterr().err


def test_reading_changes_nothing_beside_a_run_that_saves(open_checkpoints, tmp_path):
    """A reader once removed what the run was writing, and the run ended with an error."""
    folder = tmp_path / "checkpoints"
    assert SavedCheckpoints(folder, ACCURACY).restore_latest(ABSTRACT) is None
    assert not folder.exists()
    checkpoints = open_checkpoints(keep_last=1, keep_best=0)
    for step in range(1, 9):
        save(checkpoints, step, 0.1)
        found = SavedCheckpoints(folder, ACCURACY).restore_latest(ABSTRACT)
        assert found is None or found[0] in (step - 1, step)
    checkpoints.wait()
    unfinished = folder / "9.orbax-checkpoint-tmp" / "state"
    unfinished.mkdir(parents=True)
    names = sorted(os.listdir(folder))
    assert SavedCheckpoints(folder, ACCURACY).restore_best(ABSTRACT)[0] == 8
    assert sorted(os.listdir(folder)) == names
    again = open_checkpoints()
    save(again, 10, 0.1)  # the next run in the folder removes it
    again.wait()
    assert not unfinished.exists()


def test_a_checkpoint_that_a_run_replaces_meanwhile_is_not_called_damaged(
    open_checkpoints, tmp_path, monkeypatch, capsys
):
    checkpoints = open_checkpoints(keep_last=1)
    save(checkpoints, 1, 0.1)
    checkpoints.wait()
    saved, restore = SavedCheckpoints(tmp_path / "checkpoints", ACCURACY), Checkpoints.restore

    def replace_and_restore(self, step, abstract):
        if step == 1:
            save(checkpoints, 2, 0.2)
            checkpoints.wait()
        return restore(self, step, abstract)

    monkeypatch.setattr(SavedCheckpoints, "restore", replace_and_restore)
    assert saved.restore_latest(ABSTRACT)[0] == 2
    assert capsys.readouterr().err == ""


def test_a_folder_may_have_any_name(tmp_path, monkeypatch):
    """To orbax [] was a pattern: it left parts out of what it saved."""
    name = "~a run[lr=0.1]*?"
    monkeypatch.chdir(tmp_path)
    Path("link").symlink_to(tmp_path)
    for folder in (Path(name), tmp_path / "link" / name):
        checkpoints = Checkpoints(folder / "checkpoints", 1, 1, ACCURACY)
        for step, value in enumerate([0.1, 0.9, 0.2, 0.3], start=1):
            save(checkpoints, step, value)
        checkpoints.close()
        assert sorted(os.listdir(folder / "checkpoints")) == ["2", "4"]
        again = Checkpoints(folder / "checkpoints", 1, 1, ACCURACY)
        assert again.best_step() == 2
        assert hash_tree(again.restore_latest(ABSTRACT)[1]) == hash_tree(make_state(4))
        again.close()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_unreadable_checkpoints_are_no_fresh_start(open_checkpoints, tmp_path, capsys):
    checkpoints, folder = open_checkpoints(), tmp_path / "checkpoints"
    save(checkpoints, 1, 0.1)
    save(checkpoints, 2, 0.2)
    checkpoints.wait()
    (folder / "40").mkdir()
    (folder / "7 (copy)").mkdir()
    (folder / "1" / "metrics" / "metrics").write_text("{")
    again = open_checkpoints(keep_last=1)
    assert again.restore_latest(ABSTRACT)[0] == 2
    assert "checkpoint 40 is damaged" in capsys.readouterr().err
    save(again, 3, 0.1)  # not best, not the last by its number: but the last that is whole
    again.wait()
    assert open_checkpoints().restore_latest(ABSTRACT)[0] == 3
    for step in (2, 3):
        damage(folder, step, truncate)
    for read in (open_checkpoints().restore_latest, open_checkpoints().restore_best):
        with pytest.raises(UserError, match=r"no checkpoint in .* can be read \(2, 3, 40, 7 "):
            read(ABSTRACT)


def test_what_cannot_be_a_checkpoint_is_no_fresh_start_either(open_checkpoints, tmp_path):
    checkpoints = open_checkpoints()
    (tmp_path / "checkpoints" / ".DS_Store").touch()
    assert checkpoints.restore_latest(ABSTRACT) is None
    (tmp_path / "checkpoints" / "copy of 9").mkdir()
    with pytest.raises(UserError, match=r"can be read \(copy of 9\): bring one back"):
        checkpoints.restore_latest(ABSTRACT)


def test_what_goes_wrong_in_the_background_is_raised_once(open_checkpoints, monkeypatch):
    checkpoints = open_checkpoints()
    monkeypatch.setattr(checkpoint, "hash_tree", lambda state: 1 / 0)
    save(checkpoints, 1, 0.1)
    with pytest.raises(ZeroDivisionError):
        save(checkpoints, 2, 0.1)
    checkpoints.close()
