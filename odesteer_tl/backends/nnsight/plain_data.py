"""Plain data out of what torch.save wrote, without running any of it: numbers, text, bytes, containers and tensors.

A pickle is a program: torch.load(weights_only=False), as nnsight reads replies, calls whatever the sender names. Here
the few instructions that plain data needs are carried out, by this file, and a pickle with any other is refused.
torch.load(weights_only=True) is no way: it does not know the pickle protocol that nnsight's servers write.

What is made of a file is in proportion to it: an instruction of a byte may name a megabyte that is there once.
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
_ENCODE, _NO_BYTES = "_codecs encode", "__builtin__ bytes"  # how protocol 2 writes bytes, and none
_NAMES = {
    **{f"torch {name}": dtype for name, dtype in _DTYPES.items()},
    **{name: name for name in (_TENSOR, _ORDERED, _ENCODE, _NO_BYTES)},
    "nnsight.schema.response Status": _STATUS,
    "builtins getattr": "getattr",  # so Python 3.11.0 to 3.11.3 writes a member of an Enum
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
"""The most instructions (what is asked for, tensors of some hundred layers, needs some thousand), and axes of a
tensor."""
_SPARE = 2**16
"""Bytes that may be made beside twice those that came: each byte of a tensor is read once, and copied once."""


class NotPlain(Exception):
    """What was sent is no torch.save file of plain data."""


def plain(content: bytes) -> Any:
    """What a torch.save file holds. Raises NotPlain, saying why, for all but plain data; nothing is called by name."""
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            if any(each.compress_type != zipfile.ZIP_STORED for each in archive.infolist()):
                raise NotPlain(
                    "a compressed archive"
                )  # torch writes none, and a small one may hold any number of bytes
            files = {name.partition("/")[2]: name for name in archive.namelist()}
            if "byteorder" in files and archive.read(files["byteorder"]) != b"little":
                raise NotPlain("numbers of another byte order")
            reading = _Reading(lambda key: archive.read(files[f"data/{key}"]), 2 * len(content) + _SPARE)
            return reading.run(archive.read(files["data.pkl"]))
    except NotPlain:
        raise
    except Exception as error:  # whatever broken bytes lead to
        raise NotPlain(f"bytes that cannot be read ({type(error).__name__})") from None


class _Reading:
    """One file being read: `read` gives the bytes of a storage, and `left` is how many more may be made of them."""

    def __init__(self, read: Any, left: int) -> None:
        self.read, self.left = read, left

    def run(self, program: bytes) -> Any:
        stack: list[Any] = []
        memo: dict[int, Any] = {}

        def marked() -> list[Any]:
            items = []
            while (each := stack.pop()) is not _MARK:  # from the top: a stack may be deep, and its marks many
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
                _own(stack[-1], list).extend(items)
            elif name in ("SETITEM", "SETITEMS"):
                items = marked() if name == "SETITEMS" else [stack.pop(-2), stack.pop()]
                if not all(type(key) in (str, int) for key in items[::2]):  # others may share one hash, and take hours
                    raise NotPlain("a dictionary of other keys than text and numbers")
                _own(stack[-1], dict).update(zip(items[::2], items[1::2], strict=True))
            elif name == "GLOBAL":
                stack.append(_named(str(arg)))
            elif name == "STACK_GLOBAL":
                stack.append(_named(f"{_own(stack.pop(-2), str)} {_own(stack.pop(), str)}"))
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
        _, dtype, key, _, count = _own(said, tuple)
        data = self.read(_own(key, str))
        self.pay(len(data))
        if not isinstance(dtype, torch.dtype) or len(data) != _own(count, int) * dtype.itemsize:
            raise NotPlain("a tensor of another size than it says")
        return torch.frombuffer(bytearray(data), dtype=dtype) if count else torch.empty(0, dtype=dtype)

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
            return Status(_own(name, str))
        if function == "getattr" and isinstance(arguments[0], _Name) and arguments[0] == _STATUS:
            return Status[_own(arguments[1], str)]
        if function == _TENSOR:
            flat, *place = arguments[:4]
            offset, size, stride = place[0], *(tuple(_own(each, int) for each in part) for part in place[1:])
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
    """What a pickle named, on the list above; no text that it holds can pass for it."""


def _named(name: str) -> Any:
    if name not in _NAMES:
        raise NotPlain(f"more than data (it names {name.replace(' ', '.', 1)[:100]!a})")
    return _Name(_NAMES[name]) if isinstance(_NAMES[name], str) else _NAMES[name]


def _own(value: Any, kind: type) -> Any:
    if type(value) is not kind:
        raise NotPlain("something else where text, a number or a container should be")
    return value


def _whole(found: Any) -> Any:
    """What was read, if it has an end: containers that hold themselves, or one another twice, may have none that can be
    reached, and an error that shows them would go on for ever."""
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
    """A constant as it is: an integer of more than 64 bits is no count, and could not even be shown."""
    if isinstance(value, int) and value.bit_length() > 64:
        raise NotPlain("an integer of more than 64 bits")
    return value
