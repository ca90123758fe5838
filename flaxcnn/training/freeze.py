"""What of a network stays as it is while the rest is trained.

`optimizer.freeze` is a regular expression over the paths of parameters and statistics, such as
`stage1_block1/bn1/scale`. It has to match from the start of a path to the end of a word in it:
`stem|stage[1-3]` is about `stem_bn/bias` and `stage1_block1/...`, and `conv1` not about `conv10`;
`(?!classifier).*` is about all but the classifier. What it matches is no input of the gradient, so
that XLA leaves out its backward pass, and nothing else of the optimizer sees it.
"""

import contextlib
import fnmatch
import re
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import Any

import flax.linen as nn

from flaxcnn.errors import UserError
from flaxcnn.layers import BatchNorm


class Freeze:
    """What `optimizer.freeze` holds, and of the statistics also what `optimizer.rates` gives 0."""

    def __init__(self, pattern: str = "", rates: Mapping[str, float] = MappingProxyType({})):
        self._pattern = pattern
        self._expression = compile_pattern(pattern)
        self._still = [name for name, rate in rates.items() if rate == 0]

    def holds(self, path: str) -> bool:
        """Whether a parameter has no gradient."""
        return bool(self._pattern) and self._expression.match(path) is not None

    def holds_statistic(self, path: str) -> bool:
        """Whether a running average stays, and is what its BatchNorm normalises by."""
        return self.holds(path) or any(fnmatch.fnmatchcase(path, name) for name in self._still)

    def trained(self, params: Any) -> Any:
        """The part of the parameters that is trained."""
        return select(params, lambda path: not self.holds(path)) if self._pattern else params

    def moving(self, batch_stats: Any) -> Any:
        """The part of the statistics that training moves."""
        if not self._pattern and not self._still:
            return batch_stats
        return select(batch_stats, lambda path: not self.holds_statistic(path))

    @contextlib.contextmanager
    def hold_statistics(self) -> Iterator[None]:
        """Makes each BatchNorm called inside use and keep its averages, if they are held.

        Its mode is an attribute, which the network has chosen; so it is another for this call.
        """
        if not self._pattern and not self._still:
            yield
            return

        def call(next_call: Any, args: Any, kwargs: Any, context: Any) -> Any:
            module: Any = context.module
            normalises = isinstance(module, BatchNorm | nn.BatchNorm)
            if context.method_name != "__call__" or not normalises:
                return next_call(*args, **kwargs)
            if not self.holds_statistic("/".join((*module.path, "mean"))):
                return next_call(*args, **kwargs)
            chosen = module.use_running_average
            object.__setattr__(module, "use_running_average", True)  # a module is frozen by Flax
            try:
                return next_call(args[0], **{**kwargs, "use_running_average": None})
            finally:
                object.__setattr__(module, "use_running_average", chosen)

        with nn.intercept_methods(call):
            yield

    def check(self, params: Any) -> None:
        """Raises UserError if the pattern matches no parameter, or every one."""
        if not self._pattern:
            return
        names = list_paths(params)
        held = [name for name in names if self.holds(name)]
        if not held:
            raise UserError(
                f"optimizer.freeze={self._pattern!r} matches no parameter; they are called like "
                + ", ".join(names[:4])
            )
        if len(held) == len(names):
            raise UserError(
                f"optimizer.freeze={self._pattern!r} matches every parameter: nothing is trained"
            )


def compile_pattern(pattern: str) -> re.Pattern[str]:
    """`optimizer.freeze` as an expression whose `match` says what it holds.

    Raises UserError for what is no regular expression.
    """
    try:
        re.compile(pattern)  # alone: a bracket that is left open would take in what follows
        return re.compile(rf"(?:{pattern})(?![0-9A-Za-z])")
    except re.error as error:
        raise UserError(f"optimizer.freeze={pattern!r} is no regular expression: {error}") from None


NOTHING_HELD = Freeze()


def select(tree: Mapping[str, Any], keep: Callable[[str], bool], prefix: str = "") -> Any:
    """The leaves of nested dicts whose path `keep` wants, "stem/kernel"; no dict is left empty."""
    kept = {}
    for name, node in tree.items():
        path = f"{prefix}{name}"
        if not isinstance(node, Mapping):
            if keep(path):
                kept[name] = node
        elif inner := select(node, keep, f"{path}/"):
            kept[name] = inner
    return kept


def select_kernels(params: Mapping[str, Any]) -> Any:
    """The leaves that are called `kernel`."""
    return select(params, lambda path: path.rpartition("/")[2] == "kernel")


def overlay(tree: Any, part: Any) -> Any:
    """`tree` with the leaves of `part`, some of it or all, in their places."""
    if not isinstance(part, Mapping):
        return part
    return {**tree, **{name: overlay(tree[name], node) for name, node in part.items()}}


def list_paths(tree: Any) -> list[str]:
    """The paths of the leaves, "stem/kernel"."""
    paths = []
    select(tree, lambda path: paths.append(path) or False)
    return paths
