"""Files that pretend to be weights: what an attacker, a broken disk or a mistake makes of them."""

import io
import json
import lzma
import re
import struct
import warnings
import zipfile
from typing import NamedTuple

import h5py
import numpy as np


class Name(NamedTuple):
    """What a pickle names, "module name"."""

    text: str


class Call(NamedTuple):
    function: Name
    arguments: tuple


class Refer(NamedTuple):
    """A persistent id."""

    identifier: tuple


class Code(NamedTuple):
    """Opcodes as they are."""

    content: bytes


def encode(value) -> bytes:
    """The opcodes that put a value on the stack."""
    match value:
        case Code(content):
            return content
        case Name(text):
            return b"c" + text.replace(" ", "\n").encode() + b"\n"
        case Call(function, arguments):
            return encode(function) + encode(arguments) + b"R"
        case Refer(identifier):
            return encode(identifier) + b"Q"
        case None | True | False:
            return {None: b"N", True: b"\x88", False: b"\x89"}[value]
        case int():
            content = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
            return b"\x8a" + bytes([len(content)]) + content
        case str():
            return b"X" + struct.pack("<I", len(value.encode())) + value.encode()
        case tuple():
            return b"(" + b"".join(map(encode, value)) + b"t"
        case list():
            return b"](" + b"".join(map(encode, value)) + b"e"
        case dict():
            return b"}(" + b"".join(encode(x) for pair in value.items() for x in pair) + b"u"
    raise TypeError(value)


def pickled(value) -> bytes:
    return b"\x80\2" + encode(value) + b"."


def rebuild(
    offset=0, shape=(2, 2), strides=(2, 1), elements=4, key="0", kind="torch FloatStorage", **more
):
    identifier = ("storage", Name(kind), key, "cpu", elements, *more.get("rest", ()))
    arguments = (Refer(identifier), offset, shape, strides, False, Code(b"}"))
    return Call(Name("torch._utils _rebuild_tensor_v2"), arguments)


def archive(content, records=(("a/data/0", bytes(16)),), compression=zipfile.ZIP_STORED) -> bytes:
    """A zip archive as torch.save writes it, around the pickle `content`."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as out, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of names that are there twice
        out.writestr("a/data.pkl", content)
        for name, data in records:
            out.writestr(name, data)
    return file.getvalue()


def saved(value, **kwargs) -> bytes:
    return archive(pickled({"weight": value}), **kwargs)


def stream(value, little_endian=True, keys=("0",), storages=None) -> bytes:
    system = pickled({"protocol_version": 1001, "little_endian": little_endian})
    storages = struct.pack("<q", 4) + bytes(16) if storages is None else storages
    head = pickled(0x1950A86A20F9469CFC6C) + pickled(1001) + system
    return head + pickled({"weight": value}) + pickled(list(keys)) + storages


def patch(content: bytes, signature: bytes, offset: int, new: bytes) -> bytes:
    """Overwrites bytes after the last `signature`."""
    place = content.rindex(signature) + offset
    return content[:place] + new + content[place + len(new) :]


def safe(header, data=bytes(16), length=None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def entry(begin=0, end=16, shape=(2, 2), dtype="F32"):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}


def keras(fill) -> bytes:
    """A Keras file with a layer `conv`, to whose group and file `fill` does something."""
    content = io.BytesIO()
    with h5py.File(content, "w") as file:
        file.attrs["layer_names"] = [b"conv"]
        group = file.create_group("conv")
        group.attrs["weight_names"] = [b"conv/kernel:0"]
        fill(file, group)
    return content.getvalue()


def _link(link):
    return lambda file, group: group.__setitem__("kernel:0", link)


def _outside(file, group):
    group.create_dataset("kernel:0", (4,), "f4", external=[("/etc/passwd", 0, 16)])


def _virtual(file, group):
    layout = h5py.VirtualLayout((4,), "f4")
    layout[:] = h5py.VirtualSource("/tmp/other.h5", "x", (4,))
    group.create_virtual_dataset("kernel:0", layout)


def _large(file, group):
    group.create_dataset("kernel:0", (2**40,), "f4", chunks=(2**10,))


def _bomb(file, group):
    group.create_dataset("kernel:0", data=np.zeros(2**20, "f4"), compression="gzip")


def _overlapping() -> bytes:
    """Four records that are the same 4,096 bytes, none of them aligned."""
    records = [(f"a/data/{i}", bytes(4096 if i == 0 else 1)) for i in range(4)]
    content = bytearray(
        saved([rebuild(elements=1024, key=f"{i}") for i in range(4)], records=records)
    )
    places = [match.start() for match in re.finditer(b"PK\1\2", content)][1:]
    for place in places:  # CRC, sizes, and where the record is
        content[place + 16 : place + 28] = content[places[0] + 16 : places[0] + 28]
        content[place + 42 : place + 46] = content[places[0] + 42 : places[0] + 46]
    return bytes(content)


def _nested_keys() -> bytes:
    """A dict whose key is a tuple of two tuples of two ...: 2**40 steps to its hash."""
    doubled = b"".join(b"q\0h\0\x86" for _ in range(40))
    return archive(b"\x80\2}" + encode(("a",)) + doubled + b"K\1s.")


SYSTEM = Call(Name("posix system"), ("touch harm",))
OS_SYSTEM_4 = b"\x80\4\x8c\2os\x8c\6system\x93\x8c\x0atouch harm\x85R."
DEEP = Code(b"]" * 20_000 + b"a" * 19_999)
BOMB = bytes(2**22)
XZ = lzma.compress(safe({"a": entry(0, 2**22, (2**20,))}, BOMB))
NOISE = np.random.default_rng(0).bytes(4096)
EXPANDED = rebuild(shape=(2**40,), strides=(0,))
CONJUGATED = (*rebuild().arguments, {"conj": True})
MODULE = Refer(("module", Name("collections OrderedDict"), "a.py", "import os"))

# What the file is: its bytes and part of the line that refuses it.
FILES = {
    # Pickles that would run something
    "os.system": (saved(SYSTEM), "it names posix.system, which is not"),
    "os.system in a stream": (stream(SYSTEM), "it names posix.system"),
    "os.system, protocol 4": (archive(OS_SYSTEM_4), "it names os.system"),
    "eval": (saved(Call(Name("builtins eval"), ("1",))), "it names builtins.eval"),
    "a dotted name": (saved(Name("torch._utils os.system")), "it names torch._utils.os.system"),
    "a network's class": (saved(Name("torchvision.models ResNet")), "save the network's state_d"),
    "a network's code": (stream(MODULE), "it holds a network's code"),
    "INST": (saved(Code(b"(ios\nsystem\n")), "the opcode INST"),
    "EXT1": (saved(Code(b"\x82\1")), "the opcode EXT1"),
    "a call of no function": (saved(Call(Name("torch FloatStorage"), ())), "is damaged: "),
    "a plain pickle": (pickled({"weight": 1}), "it is a pickle, and not one"),
    "a pickle of protocol 0": (b"cos\nsystem\n(S'ls'\ntR.", "it is no file of weights"),
    # Sizes, strides and places
    "a huge storage": (saved(rebuild(elements=2**40)), "has 16 bytes, and not 4398046511104"),
    "a huge storage in a stream": (
        stream(rebuild(elements=2**40, rest=(None,))),
        "a storage ends outside of the file",
    ),
    "a huge number": (saved(rebuild(elements=2**2000)), "it refers to data that is no storage"),
    "a huge tensor": (saved(rebuild(shape=(2**20, 2**20))), "ends outside of its storage of 4"),
    "a huge expanded tensor": (saved(EXPANDED), "repeats a storage of 4 too often"),
    "a negative stride": (saved(rebuild(3, (2,), (-1,))), "a negative or huge size, stride"),
    "a negative offset": (saved(rebuild(-1, (1,), (1,))), "a negative or huge size, stride"),
    "a negative size": (saved(rebuild(0, (-2, -2))), "a negative or huge size, stride"),
    "an offset outside": (saved(rebuild(offset=1)), "ends outside of its storage of 4"),
    "100 axes": (saved(rebuild(0, (1,) * 100, (1,) * 100)), "do not fit together"),
    "a tensor of no storage": (
        saved(Call(Name("torch._utils _rebuild_tensor_v2"), (1, 0, (1,), (1,), False, None))),
        "a tensor without a storage",
    ),
    "a conjugated tensor": (
        saved(Call(Name("torch._utils _rebuild_tensor_v2"), CONJUGATED)),
        "a tensor that is conjugated or negated",
    ),
    "two types of a storage": (
        saved([rebuild(), rebuild(kind="torch IntStorage")]),
        "two types or sizes for storage '0'",
    ),
    "another number of elements": (
        stream(rebuild(rest=(None,)), storages=struct.pack("<q", 2**62) + bytes(16)),
        "has another size than its tensors say",
    ),
    "a part outside of its storage": (
        stream(rebuild(rest=(("1", 2, 8),))),
        "a part of a storage that ends outside",
    ),
    "a storage of no tensor": (stream(1), "a storage '0' of no tensor"),
    "a missing storage": (stream(rebuild(rest=(None,)), keys=()), "it has no storage '0'"),
    # Pickles that would take for ever, or all memory
    "a key of 2**40 tuples": (_nested_keys(), "a dict with a tuple as a key"),
    "20,000 lists in each other": (saved(DEEP), "'weight' is a list, and not a tensor"),
    "a checkpoint within itself": (
        archive(b"\x80\2}q\0X\5\0\0\0modelh\0s."),
        "'model' is a dict, and not an array",
    ),
    "text of 4 GB": (archive(b"\x80\2X\xff\xff\xff\xff."), "is damaged: "),
    "a number of 2 GB": (archive(b"\x80\2\x8b\xff\xff\xff\x7f."), "is damaged: "),
    "no STOP": (archive(b"\x80\2}"), "is damaged: "),
    "an empty stack": (archive(b"\x80\2s."), "is damaged: "),
    "no memo": (archive(b"\x80\2h\7."), "is damaged: "),
    # Archives
    "a compressed record": (
        saved(rebuild(), records=[("a/data/0", BOMB)], compression=zipfile.ZIP_DEFLATED),
        "is compressed or encrypted",
    ),
    "a record twice": (saved(1, records=[("a/data/0", b"1")] * 2), "two records 'a/data/0'"),
    "two archives in one": (saved(1, records=[("b/data.pkl", b"1")]), "not one that torch.save"),
    "a path as a key": (saved(rebuild(key="../../etc/passwd")), "no record 'a/data/../../etc/pa"),
    "an encrypted record": (
        patch(saved(rebuild()), b"PK\1\2", 8, b"\1"),
        "compressed or encrypted",
    ),
    "a record outside": (patch(saved(rebuild()), b"PK\1\2", 42, b"\0\0\0\1"), "lies outside"),
    "a record too long": (
        patch(saved(rebuild()), b"PK\1\2", 20, struct.pack("<LL", 2**31, 2**31)),
        "ends outside of the file",
    ),
    "records over each other": (_overlapping(), "its records overlap"),
    "2**32 records": (
        patch(saved(1), b"PK\5\6", 8, struct.pack("<HHLL", 65534, 65534, 0, 0)),
        "its directory ends early",
    ),
    "a directory outside": (patch(saved(1), b"PK\5\6", 16, b"\0\0\0\1"), "directory lies outs"),
    "a damaged record": (patch(saved(rebuild()), b"PK\1\2", 16, b"7"), "the CRC differs"),
    "half an archive": (saved(rebuild())[:200], "it is cut short"),
    "half a stream": (stream(rebuild(rest=(None,)))[:-10], "it is cut short"),
    "big-endian": (saved(rebuild(), records=[("a/byteorder", b"big")]), "on a big-endian machine"),
    "a big-endian stream": (stream(rebuild(), little_endian=False), "on a big-endian machine"),
    "TorchScript": (saved(1, records=[("a/constants.pkl", b"")]), "it is a TorchScript program"),
    # What is in a dict
    "escape codes in a name": (archive(pickled({"a\x1b[2J\n": 1})), r"name 'a\x1b[2J\n'"),
    "no names": (archive(pickled({1: rebuild()})), "a tensor with the name 1"),
    "no tensor": (saved("a"), "'weight' is a str, and not a tensor"),
    "no dict": (archive(pickled([1])), "weights must map names to arrays"),
    # safetensors
    "a header of 2**60 bytes": (safe({}, length=2**60), "its header ends outside of the file"),
    "a header that lies of an end": (safe({"a": entry(0, 64, (4, 4))}), "does not follow"),
    "a header that lies of a shape": (safe({"a": entry(shape=(2**30,))}), "than its shape says"),
    "a negative shape": (safe({"a": entry(shape=(-2, -2))}), "a negative or huge size"),
    "tensors over each other": (
        safe({"a": entry(), "b": entry(0, 16)}),
        "does not follow the one before",
    ),
    "a name twice": (safe(b'{"a":{},"a":{}}'), "a name twice"),
    "JSON 100,000 deep": (safe(b'{"a":' + b"[" * 100_000), "is damaged: "),
    "a number of 10,000 digits": (safe(b'{"a":' + b"1" * 10_000 + b"}"), "is damaged: "),
    "an unknown type": (safe({"a": entry(dtype="F4")}), "the unknown type 'F4'"),
    "more than the header says": (safe({"a": entry()}, bytes(20)), "4 bytes more than"),
    "an xz bomb": (XZ, "unpacks to more than 100 times its size"),
    "half an xz": (lzma.compress(NOISE)[:3000], "it is cut short"),
    "xz of something else": (lzma.compress(b"weights and more"), "it holds no safetensors file"),
    "8-bit weights without a scale": (
        safe({"a.weight_q": entry(0, 4, dtype="U8")}, bytes(4)),
        "it has a.weight_q, and no a.weight_scale",
    ),
    # HDF5
    "h5, another file": (keras(_link(h5py.ExternalLink("/etc/passwd", "x"))), "link to elsew"),
    "h5, another place": (keras(_link(h5py.SoftLink("/conv"))), "a link to elsewhere"),
    "h5, itself": (keras(lambda file, group: group.__setitem__("a", group)), "same as another"),
    "h5, another file's bytes": (keras(_outside), "lies in another file"),
    "h5, a virtual array": (keras(_virtual), "lies in another file"),
    "h5, a huge array": (keras(_large), "much larger than what is stored"),
    "h5, a bomb": (keras(_bomb), "much larger than what is stored"),
    "h5, texts": (
        keras(lambda file, group: group.create_dataset("a", data=[b"x"])),
        "'O', and not numbers",
    ),
    "h5 of Keras 3": (
        keras(lambda file, group: file.create_group("layers")),
        "it is a .weights.h5 of Keras 3",
    ),
    "half an h5": (keras(lambda file, group: None)[:700], "is damaged: "),
    # Other things
    "nothing": (b"", "it is empty"),
    "a web page": (b"<!DOCTYPE html><html>", "it is a web page"),
    "a pointer": (b"version https://git-lfs.github.com/spec/v1\n", "a pointer of Git LFS"),
    "a tar archive": (bytes(257) + b"ustar" + bytes(250), "it is a tar archive"),
    ".keras": (saved(1, records=[("model.weights.h5", b"")]), "it is a .keras file"),
    "gzip": (b"\x1f\x8b\x08", "compressed by gzip"),
    "text": (b"weights", "it is no file of weights"),
}
