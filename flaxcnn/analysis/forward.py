"""A network's forward pass as equations: the output of every layer can be read, or changed.

The pass is traced once to a jaxpr, and that is evaluated equation by equation. So nothing has to be
known of the network: a ReLU is where the maximum of something and zero is taken, in `nn.relu`,
`nn.relu6` and `jnp.maximum(x, 0)` alike, and what a stage puts out is found as what a layer does.
"""

import difflib
import fnmatch
import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import traverse_util
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Var, jaxpr_as_fun
from jax.extend.core import Literal as Constant

from flaxcnn.compat import called_jaxpr
from flaxcnn.errors import UserError

Array = jax.Array
Rule = Literal["gradient", "guided", "deconvolution"]
OUTPUT = "output"  # the name of what the network itself returns


class Forward:
    """The traced forward pass of a Linen module on images [N, H, W, C].

    In inference, unless `rngs`, the keys of its random streams, are given: then in training.

    Attributes:
      layers: the variable of each layer's output by the layer's path ("stage1_block1/expand"), and
        of each stage's ("stage1") and the network's ("output"), in order of computation. Of a layer
        that is called again, "PATH#2", ...
      last_maps: the last variable of maps [N, h, w, C] larger than 1x1, or None: what the
        classifier averages or flattens.
    """

    def __init__(
        self, model: nn.Module, variables: Any, images: Any, rngs: dict[str, Any] | None = None
    ) -> None:
        """Traces; `variables` and `images` may be abstract."""
        if getattr(model, "remat", False):  # which would hide layers in calls of their own
            model = model.clone(remat=False)
        names: list[str] = []

        def apply(variables: Any, images: Any) -> list[Array]:
            outputs, state = model.apply(
                variables,
                images,
                capture_intermediates=True,
                rngs=rngs,
                mutable=["intermediates"] if rngs is None else ["intermediates", "batch_stats"],
                **takes_train(model, rngs is not None),
            )
            found = _name_arrays(outputs, state["intermediates"])
            names.extend(found)
            return list(found.values())

        self.name = type(model).__name__
        self.program = jax.make_jaxpr(apply)(variables, images)
        self.inputs = jax.tree.leaves((variables, images))
        jaxpr = self.program.jaxpr
        made = {var: i for i, eqn in enumerate(jaxpr.eqns) for var in eqn.outvars}
        named = [
            (name, var)
            for name, var in zip(names, jaxpr.outvars, strict=True)
            if not isinstance(var, Constant) and var in made
        ]
        # Several names may have one variable: the module that holds the others comes after them.
        named.sort(key=lambda item: (made[item[1]], item[0] == OUTPUT, -item[0].count("/")))
        self.layers: dict[str, Any] = dict(named)
        maps: Any = reversed(made)
        self.last_maps: Any = next(
            (var for var in maps if _are_maps(var.aval.shape, images.shape[0])), None
        )

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of each layer's output."""
        return {name: var.aval.shape for name, var in self.layers.items()}

    def find(self, name: str) -> Any:
        """The variable of a layer. Raises UserError with the nearest names if there is none."""
        if name not in self.layers:
            raise UserError(f"{self.name} has no layer {name!r}: {_near(name, self.layers)}")
        return self.layers[name]

    def find_logits(self) -> Any:
        """The variable of the scores [N, classes]. Raises UserError for another kind of output."""
        logits = self.layers.get(OUTPUT)
        if logits is None or len(logits.aval.shape) != 2:
            raise UserError(f"{self.name} does not return scores [N, classes]")
        return logits

    def match(self, names: Sequence[str]) -> list[str]:
        """The layers of these names or shell patterns, in order of computation.

        Raises UserError for one that no layer matches.
        """
        chosen = set()
        for name in names:
            found = fnmatch.filter(self.layers, name)
            chosen.update(found or [name] * bool(self.find(name)))
        return [name for name in self.layers if name in chosen]

    def run(
        self,
        wanted: Sequence[Var],
        rule: Rule = "gradient",
        changes: Mapping[Var, Callable[[Array], Array]] | None = None,
    ) -> list[Array]:
        """The values of the variables `wanted`; what passes back through ReLUs obeys `rule`.

        `changes` are functions that a variable's value goes through before it is used.
        """
        rectify = functools.partial(_rectify, rule)
        jaxpr, changes = self.program.jaxpr, changes or {}
        known = dict(zip(jaxpr.constvars, self.program.consts, strict=True))
        known |= zip(jaxpr.invars, self.inputs, strict=True)
        _evaluate(jaxpr, known, rectify, changes)
        return [known[var] for var in wanted]


def takes_train(model: nn.Module, train: bool = False) -> dict[str, Any]:
    """`{"train": train}` if the module has that argument, else nothing."""
    has_train = "train" in inspect.signature(model.__call__).parameters
    return {"train": train} if has_train else {}


def _near(name: str, layers: Mapping[str, Any]) -> str:
    near = [layer for layer in layers if name.lower() in layer.lower()][:5]
    near = near or difflib.get_close_matches(name, layers, 5, 0.5) or list(layers)[:5]
    return f"did you mean {', '.join(near)}?"


def _name_arrays(outputs: Any, intermediates: Any) -> dict[str, Any]:
    """What `capture_intermediates` and `run_stages` kept, by names of layers; "output" is last."""
    found = {}
    kept: dict[Any, Any] = traverse_util.flatten_dict(dict(intermediates))  # pyright: ignore
    for path, calls in kept.items():
        path = path[:-1] if path[-1] == "__call__" else path
        for i, value in enumerate(calls if isinstance(calls, tuple) else (calls,)):
            name = "/".join(path) + (f"#{i + 1}" if i else "")
            if path == ("stages",):  # the stages of a network that has them
                found |= {stage: x for stage, x in value.items() if stage not in found}
            elif path and hasattr(value, "shape"):
                found[name] = value
    leaves = jax.tree.leaves(outputs)
    return found | ({OUTPUT: leaves[0]} if leaves else {})


def _are_maps(shape: tuple[int, ...], batch: int) -> bool:
    return len(shape) == 4 and shape[0] == batch and min(shape[1:3]) > 1


def _evaluate(
    jaxpr: Jaxpr,
    known: dict[Any, Any],
    rectify: Callable[[Array], Array],
    changes: Mapping[Var, Callable[[Array], Array]],
) -> None:
    """Evaluates the equations; adds the value of each variable to `known`."""

    def read(atom: Any) -> Any:
        return atom.val if isinstance(atom, Constant) else known[atom]

    for equation in jaxpr.eqns:
        rectified, called = _rectified(equation), _called(equation)
        if rectified is not None:
            results = [rectify(read(rectified))]
        elif called is not None and _has_relu(called.jaxpr):
            inner = dict(zip(called.jaxpr.constvars, called.consts, strict=True))
            inner |= zip(called.jaxpr.invars, map(read, equation.invars), strict=True)
            _evaluate(called.jaxpr, inner, rectify, {})
            results = [
                atom.val if isinstance(atom, Constant) else inner[atom]
                for atom in called.jaxpr.outvars
            ]
        else:
            inputs = list(dict.fromkeys(x for x in equation.invars if not isinstance(x, Constant)))
            part = jaxpr.replace(
                constvars=(), invars=inputs, outvars=equation.outvars, eqns=[equation]
            )
            results = jaxpr_as_fun(ClosedJaxpr(part, ()))(*map(read, inputs))
        for var, value in zip(equation.outvars, results, strict=True):
            known[var] = changes[var](value) if var in changes else value


def _rectified(equation: JaxprEqn) -> Any:
    """The operand that an equation takes the maximum of with zero, or None."""
    if equation.primitive.name != "max":
        return None
    for operand, other in (equation.invars, equation.invars[::-1]):
        if isinstance(other, Constant) and not isinstance(operand, Constant):
            if np.ndim(other.val) == 0 and other.val == 0:
                return operand
    return None


def _called(equation: JaxprEqn) -> ClosedJaxpr | None:
    if equation.primitive.name == "custom_jvp_call":
        return equation.params["call_jaxpr"]
    return called_jaxpr(equation)


def _has_relu(jaxpr: Jaxpr) -> bool:
    return any(
        _rectified(equation) is not None
        or ((called := _called(equation)) is not None and _has_relu(called.jaxpr))
        for equation in jaxpr.eqns
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _rectify(rule: Rule, x: Array) -> Array:
    return jnp.maximum(x, 0)


def _rectify_forward(rule: Rule, x: Array) -> tuple[Array, Array]:
    return jnp.maximum(x, 0), x > 0


def _rectify_backward(rule: Rule, positive: Array, dy: Array) -> tuple[Array]:
    """The gradient passes where x > 0; guided, where also it is positive itself.

    In a deconvnet only the second counts (Zeiler and Fergus 2014).
    """
    if rule != "gradient":
        dy = jnp.maximum(dy, 0)
    return (dy if rule == "deconvolution" else jnp.where(positive, dy, 0),)


_rectify.defvjp(_rectify_forward, _rectify_backward)
