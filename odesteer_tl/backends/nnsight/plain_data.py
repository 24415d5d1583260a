"""Reads plain data from a torch.save file without running code: numbers, text, bytes, containers and tensors.

A pickle is a program: torch.load(weights_only=False), with which nnsight reads replies, calls any function that the
sender names. This file carries out only the few instructions that plain data needs, and refuses a pickle with any
other. torch.load(weights_only=True) cannot be used: it does not support the pickle protocol of nnsight's servers.

The memory and the time of reading are bounded by the size of the file: an instruction of one byte may otherwise copy a
tensor of any size once more.
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

_STEPS, _AXES = 100_000, 8
"""The most instructions (a reply with the tensors of some hundred layers has some thousand), and axes of a tensor."""
_SPARE = 2**16
"""Bytes that may be allocated beyond twice the size of the file: each byte of a tensor is read and copied once."""


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
            reading = _Reading(lambda key: archive.read(files[f"data/{key}"]), 2 * len(content) + _SPARE)
            return reading.run(archive.read(files["data.pkl"]))
    except NotPlain:
        raise
    except Exception as error:  # broken bytes may raise any type
        raise NotPlain(f"bytes that cannot be read ({type(error).__name__})") from None


class _Reading:
    """A file that is being read. `read` returns the bytes of a storage; `left` is how many more may be allocated."""

    def __init__(self, read: Any, left: int) -> None:
        self.read, self.left = read, left

    def run(self, program: bytes) -> Any:
        stack: list[Any] = []
        memo: dict[int, Any] = {}

        def marked() -> list[Any]:
            items = []
            while (each := stack.pop()) is not _MARK:  # from the top: the stack may be deep, with many marks
                items.append(each)
            return items[::-1]

        for step, (op, arg, _) in enumerate(pickletools.genops(program)):
            name = op.name
            if step >= _STEPS:
                raise NotPlain(f"more than {_STEPS:,} pickle instructions")
            if name in _IGNORED:
                continue
            if name == "STOP":
                (found,) = stack
                return _whole(found)
            if name == "MARK":
                stack.append(_MARK)
            elif name in _CONSTANTS:
                stack.append(_CONSTANTS[name])
            elif name in _VALUES:
                stack.append(_number(arg))
            elif name in ("EMPTY_DICT", "EMPTY_LIST", "EMPTY_TUPLE"):
                stack.append({"EMPTY_DICT": dict, "EMPTY_LIST": list, "EMPTY_TUPLE": tuple}[name]())
            elif name == "MEMOIZE":
                memo[len(memo)] = stack[-1]
            elif name in _PUT:
                memo[int(str(arg))] = stack[-1]
            elif name in _GET:
                stack.append(memo[int(str(arg))])
            elif name == "TUPLE":
                stack.append(tuple(marked()))
            elif name in ("TUPLE1", "TUPLE2", "TUPLE3"):
                count = int(name[-1])
                stack[-count:] = [tuple(stack[-count:])]
            elif name in ("APPEND", "APPENDS"):
                items = marked() if name == "APPENDS" else [stack.pop()]
                _of_type(stack[-1], list).extend(items)
            elif name in ("SETITEM", "SETITEMS"):
                items = marked() if name == "SETITEMS" else [stack.pop(-2), stack.pop()]
                if not all(type(key) in (str, int) for key in items[::2]):  # others may all have the same hash
                    raise NotPlain("a dictionary of other keys than text and numbers")
                _of_type(stack[-1], dict).update(zip(items[::2], items[1::2], strict=True))
            elif name == "GLOBAL":
                stack.append(_looked_up(str(arg)))
            elif name == "STACK_GLOBAL":
                stack.append(_looked_up(f"{_of_type(stack.pop(-2), str)} {_of_type(stack.pop(), str)}"))
            elif name == "BINPERSID":
                stack.append(self.storage(stack.pop()))
            elif name == "REDUCE":
                function, arguments = stack.pop(-2), stack.pop()
                stack.append(self.made(function, arguments))
            else:
                raise NotPlain(f"more than data (the pickle instruction {name})")
        raise NotPlain("a pickle without an end")

    def pay(self, size: int) -> None:
        self.left -= size
        if self.left < 0:
            raise NotPlain("more bytes than the file has")

    def storage(self, said: tuple[Any, ...]) -> Tensor:
        """A storage as a flat tensor, of exactly the bytes that there are."""
        _, dtype, key, _, count = _of_type(said, tuple)
        data = self.read(_of_type(key, str))
        self.pay(len(data))
        if not isinstance(dtype, torch.dtype) or len(data) != _of_type(count, int) * dtype.itemsize:
            raise NotPlain("a tensor of another size than it says")
        return torch.frombuffer(bytearray(data), dtype=dtype) if count else torch.empty(0, dtype=dtype, device="cpu")

    def made(self, function: Any, arguments: Any) -> Any:
        if not isinstance(function, _Name):
            raise NotPlain("more than data (a call of what is no name)")
        if function == _ORDERED and arguments == ():
            return {}
        if function == _ENCODE and isinstance(arguments[0], str) and arguments[1:] == ("latin1",):
            self.pay(len(arguments[0]))
            return arguments[0].encode("latin1")
        if function == _NO_BYTES and arguments == ():
            return b""
        if function == _STATUS:
            (name,) = arguments
            return Status(_of_type(name, str))
        if function == "getattr" and isinstance(arguments[0], _Name) and arguments[0] == _STATUS:
            return Status[_of_type(arguments[1], str)]
        if function == _TENSOR:
            flat, *place = arguments[:4]
            offset, size, stride = place[0], *(tuple(_of_type(each, int) for each in part) for part in place[1:])
            if len(size) > _AXES:
                raise NotPlain(f"a tensor of more than {_AXES} axes")
            # as_strided checks that it stays within its storage; a size beyond it, by strides of 0, is no plain tensor
            found = flat.as_strided(size, stride, offset)
            if found.numel() > flat.numel():
                raise NotPlain("a tensor of another size than it says")
            self.pay(found.numel() * found.itemsize)
            return found.clone()
        raise NotPlain(f"more than data (a call of {function})")


class _Name(str):
    """A name in a pickle that is in `_NAMES`. It is a type of its own, so that a text in the pickle cannot pass for
    it."""


def _looked_up(name: str) -> Any:
    if name not in _NAMES:
        raise NotPlain(f"more than data (it names {name.replace(' ', '.', 1)[:100]!a})")
    return _Name(_NAMES[name]) if isinstance(_NAMES[name], str) else _NAMES[name]


def _of_type(value: Any, kind: type) -> Any:
    if type(value) is not kind:
        raise NotPlain("a value of the wrong type")
    return value


def _whole(found: Any) -> Any:
    """The result, unless its containers hold themselves or each other so often that to print it would never end."""
    left, seen = [found], 0
    while left:
        each = left.pop()
        if isinstance(each, (list, tuple, dict)):
            seen += len(each)
            if seen > _STEPS:
                raise NotPlain("containers that hold one another")
            left += each.values() if isinstance(each, dict) else each
    return found


def _number(value: Any) -> Any:
    """The constant. Raises NotPlain for an integer of more than 64 bits, which is no count and may not be printable."""
    if isinstance(value, int) and value.bit_length() > 64:
        raise NotPlain("an integer of more than 64 bits")
    return value
