"""Writes golden/pytorch/: small files of torch.save, and what torch.load makes of each.

    python tests/reference/make_pytorch_files.py

Made with torch 2.13.0 (CPU build) and Python 3.11. expected.json has for each file and tensor its
type, shape and values, in the order of the file; float and complex numbers as float.hex, 8-bit and
16-bit floats as the float32 that torch makes of them.
"""

import argparse
import io
import json
import pickle
import struct
from collections import OrderedDict
from pathlib import Path

import numpy as np
import torch
from torch import nn

FOLDER = Path(__file__).parent / "golden" / "pytorch"
ZIP, STREAM = {}, {"_use_new_zipfile_serialization": False}


def make_shared():
    """Several views of one storage, in every order of memory."""
    base = torch.arange(24, dtype=torch.float32).reshape(4, 6) / 7
    images = torch.arange(48, dtype=torch.float32).reshape(2, 3, 2, 4)
    return {
        "base": base,
        "transposed": base.T,
        "column": base[:, 2],
        "every_second": base[1:, ::2],
        "channels_last": images.to(memory_format=torch.channels_last),
        "permuted": images.permute(2, 0, 3, 1)[1:],
        "expanded": torch.tensor([1.5, -2.0]).expand(3, 2),
        "number": torch.tensor(3.25),
        "empty": torch.zeros(0, 4),
        "tied.a": base,
    }


def make_types(more=()):
    values = [0.0, 1.0, -1.5, 3.140625, 65504.0]
    floats = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
    numbers = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
    tensors = {str(t).removeprefix("torch."): torch.tensor(values).to(t) for t in floats}
    tensors |= {str(t).removeprefix("torch."): torch.tensor([0, 1, 100]).to(t) for t in numbers}
    tensors["bool"] = torch.tensor([[True, False], [False, True]])
    tensors["complex64"] = torch.tensor([1 + 2j, -0.5j])
    tensors |= {str(t).removeprefix("torch."): torch.tensor([0, 1, 100]).to(t) for t in more}
    return tensors


def make_parameters():
    """Parameters and buffers, which `state_dict()` would make tensors of, with attributes too."""
    parameter = nn.Parameter(torch.arange(6.0).reshape(2, 3).T)
    marked = nn.Parameter(torch.arange(3.0))
    marked.note = "decay"
    tensor = torch.arange(4.0)
    tensor.note = {"a": 1}
    buffer = nn.Buffer(torch.arange(2))
    return OrderedDict(parameter=parameter, marked=marked, tensor=tensor, buffer=buffer)


def make_checkpoint():
    """What a training script saves, its network wrapped by DataParallel."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Linear(2, 2))
    optimizer = torch.optim.SGD(network.parameters(), 0.1, momentum=0.9)
    network(torch.ones(2, 1, 4, 4)).sum().backward()
    optimizer.step()
    return {
        "epoch": 90,
        "arch": "net",
        "state_dict": nn.DataParallel(network).state_dict(),
        "best_acc1": torch.tensor(76.1),
        "metric": np.float64(0.5),
        "args": argparse.Namespace(lr=0.1, data="/data", betas=(0.9, 0.999)),
        "optimizer": optimizer.state_dict(),
        "device": torch.device("cpu"),
        "skipped": {"a", "b"},
    }


def write_python_2(path):
    """The stream as Python 2 wrote it: texts of bytes, an OrderedDict of a list of pairs."""

    class Pickler(pickle._Pickler):
        dispatch = dict(pickle._Pickler.dispatch)

        def save_str(self, text):
            content = text.encode()
            self.write(b"U" + bytes([len(content)]) + content)  # SHORT_BINSTRING
            self.memoize(text)

        dispatch[str] = save_str

        def save_ordered(self, ordered):
            self.write(b"ccollections\nOrderedDict\n")
            self.save(([list(pair) for pair in ordered.items()],))
            self.write(b"R")
            self.memoize(ordered)

        dispatch[OrderedDict] = save_ordered

    class Module:
        """What torch.save calls of pickle."""

        __name__ = "pickle"

        @staticmethod
        def dump(value, file, protocol):
            pickle.dump(value, file, protocol)

    Module.Pickler = Pickler
    values = OrderedDict(weight=torch.arange(6.0).reshape(2, 3).T, bias=torch.ones(2))
    torch.save(values, path, pickle_module=Module, **STREAM)


def write_views(path):
    """A stream of torch 0.1, where storages could be parts of others."""
    stream = io.BytesIO()
    values = torch.arange(10.0)
    kind = b"ctorch\nFloatStorage\n"

    def refer(part, offset, length):
        view = b"X\2\0\0\0v" + part + b"K" + bytes([offset]) + b"K" + bytes([length]) + b"\x87"
        return b"(X\7\0\0\0storage" + kind + b"X\1\0\0\0k" + b"X\3\0\0\0cpuK\x0a" + view + b"tQ"

    def tensor(part, offset, length):
        arguments = b"(" + refer(part, offset, length) + b"K\1K\2K\2\x86K\2K\1\x86t"
        return b"ctorch._utils\n_rebuild_tensor\n" + arguments + b"R"

    a = b"X\1\0\0\0a" + tensor(b"1", 2, 8)
    b = b"X\1\0\0\0b" + tensor(b"2", 0, 5)
    for value in (0x1950A86A20F9469CFC6C, 1001):
        pickle.dump(value, stream, protocol=2)
    pickle.dump({"protocol_version": 1001, "little_endian": True}, stream, protocol=2)
    stream.write(b"\x80\2}(" + a + b + b"u.")
    pickle.dump(["k"], stream, protocol=2)
    stream.write(struct.pack("<q", 10) + values.numpy().tobytes())
    path.write_bytes(stream.getvalue())


def describe(tensor):
    kind = str(tensor.dtype).removeprefix("torch.")
    tensor = tensor.detach()
    if tensor.dtype.is_floating_point and tensor.element_size() < 4:
        tensor = tensor.float()
    values = tensor.flatten().tolist()
    if tensor.is_complex():
        values = [part.hex() for value in values for part in (value.real, value.imag)]
    elif tensor.is_floating_point():
        values = [value.hex() for value in values]
    return {"type": kind, "shape": list(tensor.shape), "values": values}


def main():
    FOLDER.mkdir(exist_ok=True)
    newer = (torch.uint16, torch.uint32, torch.uint64, torch.float8_e4m3fn, torch.float8_e5m2)
    torch.save(make_shared(), FOLDER / "zip_shared.pth")
    torch.save(make_types(newer), FOLDER / "zip_types.pth")
    torch.save(make_parameters(), FOLDER / "zip_parameters.pth")
    torch.save(make_checkpoint(), FOLDER / "zip_checkpoint.pth")
    torch.save(make_checkpoint(), FOLDER / "zip_protocol_4.pth", pickle_protocol=4)
    torch.save(make_shared(), FOLDER / "stream_shared.pth", **STREAM)
    torch.save(make_types(), FOLDER / "stream_types.pth", **STREAM)
    torch.save(make_checkpoint(), FOLDER / "stream_checkpoint.th", **STREAM)
    write_python_2(FOLDER / "stream_python_2.pth")
    write_views(FOLDER / "stream_views.pth")
    expected = {}
    for path in sorted(FOLDER.glob("*.*th")):
        saved = torch.load(path, weights_only=False)
        tensors = saved.get("state_dict", saved)
        expected[path.name] = {name: describe(tensor) for name, tensor in tensors.items()}
    text = json.dumps(expected, separators=(",", ":")).replace('"},"', '"},\n"')
    (FOLDER / "expected.json").write_text(text.replace('},"', '},\n"') + "\n")


if __name__ == "__main__":
    main()
