"""How `flaxcnn train` understands its arguments; test_main.py runs it."""

import dataclasses

import pytest

from flaxcnn.commands.train import parse, train
from flaxcnn.errors import UserError
from flaxcnn.training import Config, config_file, load_config
from flaxcnn.training.config import fields


@pytest.mark.parametrize(
    "arguments",
    [
        "mnist_cnn --config.epochs=3",
        "--config.epochs 3 mnist_cnn --workdir runs/mnist_cnn",
        "--workdir runs/mnist_cnn mnist_cnn --config.epochs 3",
        "--config.epochs=3 --config mnist_cnn",
        "-config=mnist_cnn -config.epochs 3",
    ],
)
def test_a_name_and_flags_in_any_order_and_form(arguments, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # no clone, and no configs/ in sight
    config, workdir, _ = parse(arguments.split())
    assert (config.model.name, config.epochs) == ("mnist_cnn_220k", 3)
    assert workdir == "runs/mnist_cnn"


def test_every_kind_of_field_can_be_given():
    config, *_ = parse(
        [
            "digits",
            '--config.data.balance.subsample={"3": 0.5}',
            "--config.data.image_size",
            "(16, 8)",
            "--config.optimizer.learning_rate=1e-3",
            "--config.optimizer.kwargs.b2=0.95",
            "--config.optimizer.schedule.warmup_epochs=5",
            "--config.run.keep_last=3",
            "--config.model.kwargs.flag",
            "--config.data.augment=(('flip',), ('rotate', 15))",
        ]
    )
    assert config.data.balance.subsample.to_dict() == {"3": 0.5}
    assert config.data.image_size == (16, 8)
    assert config.optimizer.learning_rate == 1e-3
    assert config.optimizer.kwargs.to_dict() == {"b2": 0.95}
    assert (config.optimizer.schedule.warmup_epochs, config.run.keep_last) == (5.0, 3)
    assert config.model.kwargs.flag is True
    assert config.data.augment == (("flip",), ("rotate", 15))
    assert config.epochs == 30  # as the config has it


def test_without_arguments_it_is_digits_and_a_file_is_a_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config, workdir, added = parse([])
    assert added is None
    assert (config.data.source, workdir) == ("digits", "runs/digits")
    (tmp_path / "digits.py").write_text(
        "from flaxcnn.training import Config\ndef get_config():\n    return Config(epochs=7)\n"
    )
    assert parse(["digits.py"])[0].epochs == 7  # and not flaxcnn's own of that name
    assert parse(["digits"])[0].epochs == 30


def test_the_folder_within_the_package_comes_before_the_clone(tmp_path, monkeypatch):
    names = ("flaxcnn/configs", "configs")
    for number, name in enumerate(names):
        (tmp_path / name / "studies").mkdir(parents=True)
        (tmp_path / name / "both.py").write_text(
            f"from flaxcnn.training import Config\nget_config = lambda: Config(seed={number})"
        )
    (tmp_path / "configs" / "studies" / "sizes.py").write_text("")
    monkeypatch.setattr(config_file, "_FOLDERS", [tmp_path / name for name in names])
    assert load_config("both").seed == 0
    assert list(config_file.list_files()) == ["both"]
    assert config_file.find_file("sizes", "study") == tmp_path / "configs/studies/sizes.py"
    with pytest.raises(UserError, match="^sizes is a study: `flaxcnn study sizes`$"):
        load_config("sizes")
    with pytest.raises(UserError, match="^no config is called x: there are both$"):
        load_config("x")


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("mnist_cn", "no config is called mnist_cn: did you mean mnist_cnn, "),
        ("configs/mnist_cnn", "no config is called configs/mnist_cnn: did you mean mnist_cnn, "),
        ("configs/digits.py", "configs/digits.py: no such file; flaxcnn's own is `flaxcnn train"),
        ("mine", "no config is called mine: did you mean the file mine.py?"),
        ("", "no config is called : there are "),
    ],
)
def test_an_unknown_name_lists_the_closest(name, line, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").touch()
    with pytest.raises(UserError) as error:
        parse([name])
    assert str(error.value).startswith(line)


def test_help_has_every_field_with_its_default_and_what_it_means(capsys):
    assert train(["mnist_cnn", "--help"]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("usage: flaxcnn train [CONFIG] [--workdir DIR] [--config.FIELD=VALUE")
    assert all(len(line) <= 100 for line in shown.splitlines())
    lines = {line.partition("=")[0]: line for line in shown.splitlines()}
    for name, value in fields(Config()):
        assert lines[name].startswith(f"{name}={value!r}" if value else f"{name}=")
        assert len(lines[name].split("  ")) > 1 or name == "epochs", f"{name} has no comment"
    for part in dataclasses.fields(Config):
        assert part.name in shown
