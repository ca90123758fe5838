import pytest
from ml_collections import ConfigDict

from flaxcnn.errors import UserError
from flaxcnn.training import (
    BalanceConfig,
    Config,
    DataConfig,
    ModelConfig,
    OptimizerConfig,
    ScheduleConfig,
)
from flaxcnn.training.config import normalize
from flaxcnn.training.config_check import check_field, validate
from flaxcnn.training.config_json import differences, from_dict, to_dict


def check(config: Config) -> Config:
    config = normalize(config)
    validate(config)
    return config


def test_dict_round_trip_keeps_every_field():
    config = Config(
        model=ModelConfig(name="x", kwargs=ConfigDict({"dropout": 0.5, "shape": [1, 2]})),
        data=DataConfig(
            split=(0.6, 0.2, 0.2), image_size=(32, 48), balance=BalanceConfig(subsample={3: 0.5})
        ),
        optimizer=OptimizerConfig(schedule=ScheduleConfig(boundaries=(10.0, 20.0))),
        epochs=7,
    )
    restored = from_dict(to_dict(config))
    assert to_dict(restored) == to_dict(config)
    assert restored.data.image_size == (32, 48)
    assert restored.data.balance.subsample.to_dict() == {"3": 0.5}  # a class is known by its name
    assert restored.model.kwargs.dropout == 0.5
    assert restored.epochs == 7


def test_a_field_of_another_version_is_named():
    values = to_dict(Config())
    values["optimizer"]["bias_rate"] = 1.0
    with pytest.raises(UserError, match="another flaxcnn: it has a field optimizer.bias_rate$"):
        from_dict(values)


def test_the_defaults_are_valid_and_plain_kwargs_are_taken():
    check(Config())
    config = check(Config(model=ModelConfig(kwargs={"activation": "tanh"})))
    assert config.model.kwargs.activation == "tanh"


@pytest.mark.parametrize(
    ("path", "value", "line"),
    [
        ("epochs", 0, "epochs must be at least 1, got 0"),
        ("epochs", 1.5, "epochs must be int, got float 1.5"),
        ("parallel", "tpu", "parallel must be one of jit, pmap, got 'tpu'"),
        ("data.resize", "x", "data.resize must be one of crop, stretch, pad, got 'x'"),
        (
            "data.normalization",
            "mean",
            "data.normalization must be auto, data, sample, weights or (mean, std) with a number "
            "for each channel, as ((0.5,), (0.25,)), got 'mean'",
        ),
        ("data.normalization", ((0.5,), (0.0,)), "data.normalization must be auto, data, "),
        ("data.normalization", ((0.5,), (1.0, 1.0)), "data.normalization must be auto, data, "),
        ("data.normalization", ((), ()), "data.normalization must be auto, data, sample, w"),
        ("data.normalization", 3, "data.normalization must be auto, data, sample, weights or "),
        ("data.batch_size", "64", "data.batch_size must be int, got str '64'"),
        ("data.image_size", ("a",), "data.image_size must hold numbers only, got ('a',)"),
        ("optimizer.accumulate", 5, "optimizer.accumulate must divide data.batch_size: 5 does not"),
        ("optimizer.lookahead.every", -1, "optimizer.lookahead.every must be at least 0, got -1"),
        ("optimizer.ema_decay", 1.0, "optimizer.ema_decay must be in [0, 1), got 1.0"),
        ("data.views", (("flop",),), "data.views[0] ('flop',): there is no flop; there are crops"),
        ("data.views", 3, "data.views must be tuple, got int 3"),
        ("data.augment_classes", (1.5,), "data.augment_classes must hold names only, got (1.5,)"),
        ("data.augment_classes", "cat", "data.augment_classes must be tuple, got str 'cat'"),
        ("data.augment_classes", ("cat",), "data.augment_classes says for which classes data.aug"),
        (
            "data.balance.sampler",
            "even",
            "data.balance.sampler must be one of natural, bal",
        ),
        (
            "data.balance.repeat_threshold",
            0.0,
            "data.balance.repeat_threshold must be in (0",
        ),
        (
            "data.balance.subsample",
            ConfigDict({"cat": 0.0}),
            "data.balance.subsample.cat must be a share",
        ),
        (
            "data.balance.subsample",
            ConfigDict({"cat": 1.1}),
            "data.balance.subsample.cat must be a share",
        ),
        (
            "data.balance.subsample",
            ConfigDict({"cat": "x"}),
            "data.balance.subsample.cat must be a share",
        ),
        (
            "data.balance.expand",
            ConfigDict({"cat": 0}),
            "data.balance.expand.cat must be a number",
        ),
        (
            "data.balance.expand",
            ConfigDict({"cat": 0.5}),
            "data.balance.expand.cat must be a number",
        ),
        ("loss.class_weights", "x", "loss.class_weights must be one of none, balanced, effective"),
        ("loss.effective_beta", 1.0, "loss.effective_beta must be in [0, 1), got 1.0"),
        ("model.kwargs", ConfigDict({"f": print}), "the config must hold plain values only"),
        ("optimizer.schedule", "step", "optimizer.schedule is now optimizer.schedule.name"),
        (
            "optimizer.clip",
            1.0,
            "optimizer.clip is a section of the config: set optimizer.clip.nor",
        ),
        ("optimizer.clip_norm", 1.0, "optimizer.clip_norm is now optimizer.clip.norm"),
        ("data.bach_size", 3, "the config has no field data.bach_size; did you mean data.batch_si"),
    ],
)
def test_a_wrong_value_is_told_in_one_line(path, value, line):
    config = Config()
    *parents, name = path.split(".")
    holder = config
    for parent in parents:
        holder = getattr(holder, parent)
    setattr(holder, name, value)
    with pytest.raises(UserError) as caught:
        check(config)
    assert str(caught.value).startswith(line)
    assert "\n" not in str(caught.value)


def test_numbers_serve_as_names_of_classes():
    config = Config()
    config.data.balance.expand = ConfigDict({3: 9})  # as a flag sets it
    config = check(config)
    assert config.data.balance.expand.to_dict() == {"3": 9}


def test_copies_and_a_sampler_exclude_each_other():
    data = DataConfig(balance=BalanceConfig(expand={"cat": 9}, sampler="balanced"))
    with pytest.raises(
        UserError, match=r"^data\.balance\.expand and data\.balance\.sampler='balanced' both say"
    ):
        check(Config(data=data))


def test_augmentation_of_some_classes_leaves_out_what_concerns_all():
    data = DataConfig(augment=(("flip",), ("mixup", 0.2)), augment_classes=("cat",))
    line = r"^data\.augment\[1\] \('mixup', 0\.2\): cannot be for data\.augment_classes only"
    with pytest.raises(UserError, match=line):
        check(Config(data=data))


def test_an_int_serves_as_float():
    given = Config(optimizer=OptimizerConfig(learning_rate=1))
    config = check(given)
    assert config.optimizer.learning_rate == 1.0
    assert isinstance(config.optimizer.learning_rate, float)
    assert type(given.optimizer.learning_rate) is int  # the caller's own stays as it is


def test_a_normalized_config_is_a_copy_that_stays_as_it_is():
    given = Config(
        model=ModelConfig(kwargs=ConfigDict({"inner": {"size": 3}})),
        data=DataConfig(views=[["shift", 1]], augment_classes=[8, "9"], image_size=[4, 4]),
    )
    config = normalize(given)
    assert config.data.views == (("shift", 1),)
    assert (config.data.augment_classes, config.data.image_size) == (("8", "9"), (4, 4))
    assert normalize(config) == config
    config.model.kwargs.inner.size = 5
    config.optimizer.clip.norm = 1.0
    assert (given.model.kwargs.inner.size, given.optimizer.clip.norm) == (3, 0.0)


def test_a_misspelt_field_is_named_with_the_nearest_one():
    check_field("optimizer.learning_rate")
    check_field("model.kwargs.anything")
    check_field("data.balance.subsample.cat")
    with pytest.raises(
        UserError, match="""write --config.data.balance.subsample='{"T-shirt/top": ...}'"""
    ):
        check_field("data.balance.subsample.T-shirt/top")
    with pytest.raises(UserError, match="no field optimzer.learning_rate; did you mean optimizer"):
        check_field("optimzer.learning_rate")
    with pytest.raises(UserError, match="no field model.name.x"):
        check_field("model.name.x")


@pytest.mark.parametrize(
    ("path", "line"),
    [
        ("optimizer.schedule", "^optimizer.schedule is now optimizer.schedule.name$"),
        ("checkpoint", "^checkpoint.every_steps is now run.save_every_steps, checkpoint.keep_last"),
        ("data.subsample.cat", "^data.subsample.cat is now data.balance.subsample.cat$"),
        ("optimizer.schedule.powr", "did you mean optimizer.schedule.power"),
        ("data", "^data is a section of the config: set data.source, "),
    ],
)
def test_an_old_name_and_a_section_are_explained(path, line):
    with pytest.raises(UserError, match=line):
        check_field(path)


def test_differences_name_each_field():
    before, after = Config(epochs=3), Config(epochs=4)
    after.model.kwargs.rate = 0.5
    assert differences(to_dict(before), to_dict(after)) == [
        "epochs: 3 -> 4",
        "model.kwargs.rate: 'absent' -> 0.5",
    ]
