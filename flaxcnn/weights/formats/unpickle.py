"""A pickle machine that runs nothing: containers, numbers, text, and calls that are allow-listed.

pickletools, the standard library's disassembler, takes the opcodes apart. Of protocols 2 to 5 those
are known that `torch.save` writes (its own reader with `weights_only=True` knows the same); the
functions that a pickle names stand for functions of ours, and whatever else it names is refused.
"""

import pickletools
from collections.abc import Callable, Mapping
from typing import IO, Any

from flaxcnn.errors import UserError

MAX_OPCODES = 500_000  # 32 for each tensor: NASNet-A Large has 50,000, with Adam's state 150,000


class Global:
    """What a pickle names: `value` is what stands for it here."""

    def __init__(self, name: str, value: Any) -> None:
        self.name, self.value = name, value


class Opaque:
    """An object that holds no weights, such as a namespace of arguments: nothing is known of it."""


def unpickle(
    file: IO[bytes], allowed: Mapping[str, Any], load: Callable[[Any], Any] | None = None
) -> Any:
    """Reads one pickle from where `file` is.

    `allowed` has by their names ("collections.OrderedDict") what a pickle may name: functions that
    are called instead, `Opaque`, or values. `load` is called for persistent ids.

    Raises UserError for other names, opcodes and keys, and ValueError, TypeError or IndexError for
    what is no pickle.
    """
    machine = _Machine(allowed, load)
    for count, (opcode, argument, _) in enumerate(pickletools.genops(file)):
        if opcode.name == "STOP":
            return machine.stack.pop()
        if count >= MAX_OPCODES:
            raise UserError(f"its pickle has more than {MAX_OPCODES} opcodes")
        machine.run(opcode.name, argument)
    raise ValueError("pickle without STOP")


class _Machine:
    def __init__(self, allowed: Mapping[str, Any], load: Callable[[Any], Any] | None) -> None:
        self.allowed, self.load = allowed, load
        self.stack: list[Any] = []
        self.below: list[list[Any]] = []  # the stacks under each mark
        self.memo: dict[int, Any] = {}

    def run(self, opcode: str, argument: Any) -> None:
        stack = self.stack
        if opcode in _PUSHED:
            stack.append(argument)
        elif opcode in _CONSTANTS:
            stack.append(_CONSTANTS[opcode])
        elif opcode in _MADE:
            stack.append(_MADE[opcode]())
        elif opcode in ("BINPUT", "LONG_BINPUT"):
            self.memo[argument] = stack[-1]
        elif opcode == "MEMOIZE":
            self.memo[len(self.memo)] = stack[-1]
        elif opcode in ("BINGET", "LONG_BINGET"):
            if argument not in self.memo:
                raise ValueError(f"no memo {argument}")
            stack.append(self.memo[argument])
        elif opcode == "MARK":
            self.below.append(stack)
            self.stack = []
        elif opcode in _LENGTHS:
            values = self._take(_LENGTHS[opcode])
            stack.append(tuple(values))
        elif opcode in _METHODS:
            _METHODS[opcode](self, argument)
        elif opcode not in ("PROTO", "FRAME"):
            raise UserError(f"its pickle has the opcode {opcode}, which no file of weights has")

    def _take(self, count: int) -> list[Any]:
        if count > len(self.stack):
            raise IndexError("pickle with an empty stack")
        values = self.stack[len(self.stack) - count :]
        del self.stack[len(self.stack) - count :]
        return values

    def _take_to_mark(self) -> list[Any]:
        values, self.stack = self.stack, self.below.pop()
        return values

    def _tuple(self, _: Any) -> None:
        values = tuple(self._take_to_mark())
        self.stack.append(values)

    def _append(self, _: Any) -> None:
        self._extend(self._take(1))

    def _appends(self, _: Any) -> None:
        self._extend(self._take_to_mark())

    def _extend(self, values: list[Any]) -> None:
        target = self.stack[-1]
        if isinstance(target, list):
            target.extend(values)
        elif not isinstance(target, Opaque):
            raise TypeError("pickle that appends to no list")

    def _set_item(self, _: Any) -> None:
        self._update(self._take(2))

    def _set_items(self, _: Any) -> None:
        self._update(self._take_to_mark())

    def _update(self, values: list[Any]) -> None:
        target = self.stack[-1]
        if isinstance(target, dict):
            fill_dict(target, zip(values[::2], values[1::2], strict=True))
        elif not isinstance(target, Opaque):
            raise TypeError("pickle that sets items of no dict")

    def _global(self, argument: str) -> None:
        self._name(argument.replace(" ", ".", 1))

    def _stack_global(self, _: Any) -> None:
        module, name = self._take(2)
        self._name(f"{module}.{name}" if isinstance(name, str) else "an object")

    def _name(self, name: str) -> None:
        if name not in self.allowed:
            raise UserError(
                f"it names {name[:100]}, which is not part of a file of tensors, and is not run; "
                "save the network's state_dict() alone"
            )
        self.stack.append(Global(name, self.allowed[name]))

    def _call(self, _: Any) -> None:
        function, arguments = self._take(2)
        if not (isinstance(function, Global) and callable(function.value)):
            raise TypeError("pickle that calls what is no function")
        if not isinstance(arguments, tuple):
            raise TypeError("pickle that calls without a tuple of arguments")
        if function.value is Opaque:
            arguments = ()
        self.stack.append(function.value(*arguments))

    def _build(self, _: Any) -> None:
        self._take(1)  # attributes, such as the `_metadata` of a state dict
        if not self.stack:
            raise IndexError("pickle with an empty stack")

    def _load(self, _: Any) -> None:
        (identifier,) = self._take(1)
        if self.load is None:
            raise UserError("its pickle refers to data outside of it")
        self.stack.append(self.load(identifier))


def fill_dict(target: dict[Any, Any], items: Any) -> None:
    """Adds (key, value) pairs whose keys are text, numbers or None.

    The hash of a tuple of tuples could take for ever.
    """
    for key, value in items:
        if not isinstance(key, (str, int, float, type(None))):
            raise UserError(f"its pickle has a dict with a {type(key).__name__} as a key")
        target[key] = value


_PUSHED = {
    *("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT"),
    *("BINUNICODE", "SHORT_BINUNICODE", "BINSTRING", "SHORT_BINSTRING"),  # the last two: Python 2
    *("BINBYTES", "SHORT_BINBYTES"),
}
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_MADE = {"EMPTY_DICT": dict, "EMPTY_LIST": list, "EMPTY_SET": Opaque}
_LENGTHS = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_METHODS: dict[str, Callable[[_Machine, Any], None]] = {
    "TUPLE": _Machine._tuple,
    "APPEND": _Machine._append,
    "APPENDS": _Machine._appends,
    "ADDITEMS": _Machine._appends,
    "SETITEM": _Machine._set_item,
    "SETITEMS": _Machine._set_items,
    "GLOBAL": _Machine._global,
    "STACK_GLOBAL": _Machine._stack_global,
    "REDUCE": _Machine._call,
    "NEWOBJ": _Machine._call,
    "BUILD": _Machine._build,
    "BINPERSID": _Machine._load,
}
