"""The command `flaxcnn list`: the networks and every other choice that a config has.

Names, settings and defaults come from the tables and functions that carry the choices out, ranges
from what these say when a setting is wrong.
"""

import argparse
import ast
import difflib
import fnmatch
import inspect
import re
import textwrap
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from flaxcnn.errors import UserError
from flaxcnn.exit_status import DONE
from flaxcnn.training.config_help import describe_fields, format_rows, format_value


def run(args: argparse.Namespace) -> int:
    """Prints the choices."""
    if args.licence and not args.pretrained:
        raise UserError("--licence is of pretrained weights: list --pretrained --licence NAME")
    if args.pretrained:
        print(list_pretrained(args.words, args.licence or "", verbose=args.verbose))
    else:
        print(list_choices(args.words, verbose=args.verbose))
    return DONE


def list_choices(words: Sequence[str], *, verbose: bool = False) -> str:
    """What `flaxcnn list [KIND] [PATTERN]` prints; a first word that is no kind is a pattern.

    Raises UserError for a pattern that nothing matches.
    """
    kind, *rest = words if words and words[0] in KINDS else ("models", *words)
    if len(rest) > 1:
        raise UserError(f"{rest[0]} is no kind of choice; these are: {', '.join(KINDS)}")
    return KINDS[kind](rest[0] if rest else "*", verbose)


def list_pretrained(words: Sequence[str], licence: str = "", *, verbose: bool = False) -> str:
    """What `flaxcnn list --pretrained [PATTERN] [--licence NAME]` prints.

    Sizes with ~ are those of the parameters in float32. Raises UserError if nothing matches.
    """
    from flaxcnn.models._registry import variant
    from flaxcnn.weights.catalogue import find_entry, list_entries

    if len(words) > 1:
        raise UserError(f"{words[1]}: pretrained weights are listed by one pattern")
    entries = list_entries(words[0] if words else "", licence)
    if not entries:
        found = list_entries(words[0]) or [find_entry(words[0])]
        theirs = sorted({entry.licence or "unknown" for entry in found})
        raise UserError(f"{words[0]} has no {licence} weights: {', '.join(theirs)}")
    rows = [("name", "source", "size", "licence", "top-1", "preprocessing")]
    for entry in entries:
        known = variant(entry.model)
        size = f"{entry.size / 1e6:.1f}"
        if not entry.size:
            size = f"~{4 * (known.params + known.statistics) / 1e6:.0f}"
        top1 = f"{entry.top1:.2f}" if entry.top1 else "?"
        licensed = entry.licence or "?"
        name = f"{entry.full_name}" + (f" {entry.source}" if verbose else "")
        rows.append((name, entry.layout, f"{size} MB", licensed, top1, _preprocessing(entry)))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
    return "\n".join(lines)


def _preprocessing(entry: Any) -> str:
    """In a few words, for evaluation: size, share of the crop, interpolation, normalisation."""
    p = entry.preprocessing
    side = p.get("test_input_size", p["input_size"])[1]
    words = [str(side)]
    if "crop_pct" in p:
        words.append(f"crop {p.get('test_crop_pct', p['crop_pct']):.3g}")
    words += [p["interpolation"]] if "interpolation" in p else []
    mean, std = p["mean"][0], p["std"][0]
    names = {(0.485, 0.229): "ImageNet's mean and std", (0.5, 0.5): "-1..1"}
    words.append(names.get((mean, std), "BGR less its mean" if "channels" in p else ""))
    return ", ".join(filter(None, words))


def _choose(names: Iterable[str], pattern: str, what: str) -> list[str]:
    """The names that match a shell pattern, or that a word without * or ? is a part of."""
    names = list(names)
    shell = pattern if set(pattern) & set("*?[") else f"*{pattern}*"
    chosen = [name for name in names if fnmatch.fnmatchcase(name, shell)]
    if not chosen:
        close = difflib.get_close_matches(pattern, names, cutoff=0.5)
        hint = f"did you mean {', '.join(close)}?" if close else f"there are {', '.join(names)}"
        raise UserError(f"no {what} is called {pattern}; {hint}")
    return chosen


def _models(pattern: str, verbose: bool) -> str:
    from flaxcnn.models._registry import ALIASES, VARIANTS, variant

    names = _choose(sorted([*VARIANTS, *ALIASES]), pattern, "network or kind of choice")
    if not verbose:
        return "\n".join(f"{n} -> {ALIASES[n]}" if n in ALIASES else n for n in names)
    width = max(map(len, names))
    lines = [
        f"{'name':<{width}}  {'parameters':>11}  {'statistics':>10}  {'multiply-adds':>14}  "
        f"{'input':<9}  paper"
    ]
    for name in names:
        v = variant(name)
        shape = "x".join(map(str, v.input_shape))
        source = f"{v.paper} ({v.year})" if v.year else v.paper
        source = f"-> {ALIASES[name]}" if name in ALIASES else source
        lines.append(
            f"{name:<{width}}  {v.params:>11,}  {v.statistics:>10,}  {v.macs:>14,}  "
            f"{shape:<9}  {source}"
        )
    return "\n".join(lines)


def _optimizers(pattern: str, verbose: bool) -> str:
    from flaxcnn.training.optim import list_optimizers

    kwargs = list_optimizers()
    chosen = _choose(kwargs, pattern, "optimizer")
    rows = [(name, _join(kwargs[name])) for name in chosen]
    return (
        f"optimizer.name, and what optimizer.kwargs may set, with defaults:\n\n{format_rows(rows)}"
        f"\n\nFor all of them (schedules: `flaxcnn list schedules`):\n\n"
        + _fields("optimizer.", without=("name", "kwargs", "schedule"))
    )


def _schedules(pattern: str, verbose: bool) -> str:
    from flaxcnn.training.schedules import SCHEDULES

    chosen = _choose(SCHEDULES, pattern, "schedule")
    rows = [(name, _defaults("optimizer.schedule.", SCHEDULES[name])) for name in chosen]
    return (
        "optimizer.schedule.name, and the fields of optimizer.schedule that it uses, with "
        f"defaults:\n\n{format_rows(rows)}\n\nThese fields, and those of all schedules (the peak "
        "is optimizer.learning_rate):\n\n" + _fields("optimizer.schedule.", without=("name",))
    )


def _losses(pattern: str, verbose: bool) -> str:
    from flaxcnn.tasks.losses import LOSSES, loss_settings

    rows = [
        (name, _defaults("loss.", loss_settings(name)), _summary(LOSSES[name]))
        for name in _choose(LOSSES, pattern, "loss")
    ]
    return (
        "loss.name, the fields of loss that it uses, with defaults, and what it is:\n\n"
        f"{format_rows(rows)}\n\nThese fields, and those of all losses:\n\n"
        + _fields("loss.", without=("name",))
    )


def _augmentations(pattern: str, verbose: bool) -> str:
    from flaxcnn.data.augment.pipeline import MAKERS

    head = """\
data.augment is a list of entries, as [("flip",), ("rotate", 15, {"p": 0.5})]: a name, its settings
in order, and in a dict at the end settings by name. What changes one image and keeps its size also
takes p, the probability that it is done.

"""
    chosen = _choose(MAKERS, pattern, "augmentation")
    return head + "\n".join(_entry(name, MAKERS[name]) for name in chosen)


def _views(pattern: str, verbose: bool) -> str:
    from flaxcnn.data.augment.views import MAKERS

    head = """\
data.views is a list of entries, as [("shift", 1), ("flip",)], which combine as a product.

"""
    chosen = _choose(MAKERS, pattern, "view")
    return head + "\n".join(_entry(name, MAKERS[name]) for name in chosen)


def _configs(pattern: str, verbose: bool) -> str:
    from flaxcnn.training.config_file import list_files, read_docstring

    files = {("train", n): file for n, file in list_files("config").items()}
    files |= {("study", n): file for n, file in list_files("study").items()}
    chosen = _choose((name for _, name in files), pattern, "config or study")
    return format_rows(
        [
            (f"flaxcnn {command} {name}", read_docstring(file).strip().partition("\n")[0])
            for (command, name), file in files.items()
            if name in chosen
        ]
    )


KINDS: dict[str, Callable[[str, bool], str]] = {
    "models": _models,
    "optimizers": _optimizers,
    "schedules": _schedules,
    "losses": _losses,
    "augmentations": _augmentations,
    "views": _views,
    "configs": _configs,
}


def _join(settings: dict[str, Any]) -> str:
    return ", ".join(f"{name}={format_value(value)}" for name, value in settings.items())


def _fields(prefix: str, without: Sequence[str]) -> str:
    """The fields whose name begins with `prefix`, but for fields and sections of it."""
    rows = [
        row
        for row in describe_fields(prefix)
        if row[0].removeprefix(prefix).split(".")[0] not in without
    ]
    return format_rows([(f"{name}={value}", comment) for name, value, comment in rows])


def _defaults(prefix: str, names: Iterable[str]) -> str:
    defaults = {name: value for name, value, _ in describe_fields(prefix)}
    return ", ".join(f"{name}={defaults[prefix + name]}" for name in names)


def _summary(function: Callable[..., Any]) -> str:
    """The first sentence or line of a docstring."""
    return (inspect.getdoc(function) or "").partition("\n")[0]


def _entry(name: str, make: Callable[..., Any]) -> str:
    """An entry of a policy: its settings with defaults, what it does, what each setting may be."""
    settings = inspect.signature(make).parameters.values()
    shown = [
        s.name if s.default is s.empty else f"{s.name}={format_value(s.default)}" for s in settings
    ]
    rules = "; ".join(f"{setting}: {rule}" for setting, rule in _find_rules(make).items())
    lines = [f"{name}({', '.join(shown)})"]
    for text in filter(None, (_summary(make), rules)):
        lines += textwrap.wrap(text, 100, initial_indent="    ", subsequent_indent="    ")
    return "\n".join(lines)


def _find_rules(make: Callable[..., Any]) -> dict[str, str]:
    """What each setting must be, in the words in which `make` refuses another value.

    One setting at a time is made wrong; those without a default are at the end of their range.
    """
    parameters = inspect.signature(make).parameters
    right = {name: p.default for name, p in parameters.items() if p.default is not p.empty}
    rules = {}
    for name in parameters:
        needed = dict.fromkeys(parameters.keys() - right.keys(), 1)
        try:
            make(**right | needed | {name: (None, None)})
        except UserError as error:
            match = re.match(r"\w+(\[0\])? must be (.+), got ", str(error))
            assert match is not None, error
            rules[name] = f"a pair (low, high), each {match[2]}" if match[1] else match[2]
            if lowest := re.search(r"(\S+)\.\.", match[2]):
                right.setdefault(name, ast.literal_eval(lowest[1]))
    return rules
