"""Reads plain data from a torch.save file without running code: numbers, text, bytes, containers and tensors.

A pickle is a program: torch.load(weights_only=False), with which nnsight reads replies, calls any function that the
sender names. This file carries out only the few instructions that plain data needs, and refuses a pickle with any
other. torch.load(weights_only=True) cannot be used: it does not support the pickle protocol of nnsight's servers.
"""

import io
import pickletools
import zipfile
from typing import Any

import torch
from nnsight.schema.response import Status
from torch import Tensor

_DTYPES = {
    "DoubleStorage": torch.float64, "FloatStorage": torch.float32, "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16, "LongStorage": torch.int64, "IntStorage": torch.int32,
    "ShortStorage": torch.int16, "CharStorage": torch.int8, "ByteStorage": torch.uint8, "BoolStorage": torch.bool,
}  # fmt: skip
_TENSOR, _ORDERED, _STATUS = "torch._utils _rebuild_tensor_v2", "collections OrderedDict", "Status"
_ENCODE, _NO_BYTES = "_codecs encode", "__builtin__ bytes"  # how protocol 2 writes bytes, and empty bytes
_NAMES = {
    **{f"torch {name}": dtype for name, dtype in _DTYPES.items()},
    **{name: name for name in (_TENSOR, _ORDERED, _ENCODE, _NO_BYTES)},
    "nnsight.schema.response Status": _STATUS,
    "builtins getattr": "getattr",  # Python 3.11.0 to 3.11.3 writes a member of an Enum in this way
}
_IGNORED = frozenset({"PROTO", "FRAME"})
_CONSTANTS: dict[str, Any] = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_PUT, _GET = ("PUT", "BINPUT", "LONG_BINPUT"), ("GET", "BINGET", "LONG_BINGET")
_VALUES = frozenset(
    "INT BININT BININT1 BININT2 LONG LONG1 LONG4 FLOAT BINFLOAT UNICODE SHORT_BINUNICODE BINUNICODE BINUNICODE8 "
    "SHORT_BINBYTES BINBYTES BINBYTES8".split()
)
_MARK = object()


class NotPlain(Exception):
    """The bytes are no torch.save file of plain data."""


def plain(content: bytes) -> Any:
    """The content of a torch.save file. Raises NotPlain, with the reason, for anything but plain data; no function that
    the file names is called."""
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
                # torch never compresses, and a small compressed file may expand to any size.
                raise NotPlain("a compressed archive")
            files = {name.partition("/")[2]: name for name in archive.namelist()}
            if "byteorder" in files and archive.read(files["byteorder"]) != b"little":
                raise NotPlain("numbers of another byte order")
            return _run(archive.read(files["data.pkl"]), lambda key: archive.read(files[f"data/{key}"]))
    except NotPlain:
        raise
    except Exception as error:  # broken bytes may raise any type
        raise NotPlain(f"bytes that cannot be read ({type(error).__name__})") from None


def _run(program: bytes, read: Any) -> Any:
    stack: list[Any] = []
    memo: dict[int, Any] = {}

    def pop_to_mark() -> list[Any]:
        mark = max(index for index, item in enumerate(stack) if item is _MARK)
        items = stack[mark + 1 :]
        del stack[mark:]
        return items

    for op, argument, _ in pickletools.genops(program):
        name = op.name
        if name in _IGNORED:
            continue
        if name == "STOP":
            (result,) = stack
            return result
        if name == "MARK":
            stack.append(_MARK)
        elif name in _CONSTANTS:
            stack.append(_CONSTANTS[name])
        elif name in _VALUES:
            stack.append(argument)
        elif name in ("EMPTY_DICT", "EMPTY_LIST", "EMPTY_TUPLE"):
            stack.append({"EMPTY_DICT": dict, "EMPTY_LIST": list, "EMPTY_TUPLE": tuple}[name]())
        elif name == "MEMOIZE":
            memo[len(memo)] = stack[-1]
        elif name in _PUT:
            memo[int(str(argument))] = stack[-1]
        elif name in _GET:
            stack.append(memo[int(str(argument))])
        elif name == "TUPLE":
            stack.append(tuple(pop_to_mark()))
        elif name in ("TUPLE1", "TUPLE2", "TUPLE3"):
            count = int(name[-1])
            stack[-count:] = [tuple(stack[-count:])]
        elif name in ("APPEND", "APPENDS"):
            items = pop_to_mark() if name == "APPENDS" else [stack.pop()]
            _of_type(stack[-1], list).extend(items)
        elif name in ("SETITEM", "SETITEMS"):
            items = pop_to_mark() if name == "SETITEMS" else [stack.pop(-2), stack.pop()]
            _of_type(stack[-1], dict).update(zip(items[::2], items[1::2], strict=True))
        elif name == "GLOBAL":
            stack.append(_looked_up(str(argument)))
        elif name == "STACK_GLOBAL":
            stack.append(_looked_up(f"{stack.pop(-2)} {stack.pop()}"))
        elif name == "BINPERSID":
            stack.append(_storage(stack.pop(), read))
        elif name == "REDUCE":
            function, arguments = stack.pop(-2), stack.pop()
            stack.append(_reduced(function, arguments))
        else:
            raise NotPlain(f"more than data (the pickle instruction {name})")
    raise NotPlain("a pickle without an end")


class _Name(str):
    """A name in a pickle that is in `_NAMES`. It is a type of its own, so that a text in the pickle cannot pass for
    it."""


def _looked_up(name: str) -> Any:
    if name not in _NAMES:
        raise NotPlain(f"more than data (it names {name.replace(' ', '.', 1)[:100]!a})")
    return _Name(_NAMES[name]) if isinstance(_NAMES[name], str) else _NAMES[name]


def _of_type(value: Any, kind: type) -> Any:
    if type(value) is not kind:
        raise NotPlain("a container of the wrong type")
    return value


def _storage(persistent_id: tuple[Any, ...], read: Any) -> Tensor:
    """A storage as a flat tensor. Raises NotPlain if the number of bytes does not fit."""
    _, dtype, key, _, count = persistent_id
    data = read(key)
    if not isinstance(dtype, torch.dtype) or len(data) != count * dtype.itemsize:
        raise NotPlain("a tensor of another size than it says")
    return torch.frombuffer(bytearray(data), dtype=dtype) if count else torch.empty(0, dtype=dtype)


def _reduced(function: Any, arguments: Any) -> Any:
    if not isinstance(function, _Name):
        raise NotPlain("more than data (a call of what is no name)")
    if function == _ORDERED and arguments == ():
        return {}
    if function == _ENCODE and isinstance(arguments[0], str) and arguments[1:] == ("latin1",):
        return arguments[0].encode("latin1")
    if function == _NO_BYTES and arguments == ():
        return b""
    if function == _STATUS:
        return Status(*arguments)
    if function == "getattr" and isinstance(arguments[0], _Name) and arguments[0] == _STATUS:
        return Status[arguments[1]]
    if function == _TENSOR:
        flat, offset, size, stride = arguments[:4]
        # as_strided checks the bounds of the storage. With strides of 0 a tensor may still be larger than its storage.
        tensor = flat.as_strided(size, stride, offset)
        if tensor.numel() > flat.numel():
            raise NotPlain("a tensor of another size than it says")
        return tensor.clone()
    raise NotPlain(f"more than data (a call of {function})")
