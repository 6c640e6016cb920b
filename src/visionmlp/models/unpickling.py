"""Files of ``torch.save`` with objects in them that must not be made: tensors and containers are read, nothing else.

No pickle machine runs here. The opcodes are read by `pickletools`, and of what they ask for only lists, tuples,
dictionaries, sets and tensors are made. A class or function of the file is never looked up: it is its name, an object
of it is a `Stranger`, and what the file wants it to be called with is passed over.
"""

import pickletools
import struct
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import torch
from torch import Tensor


class RunsCode(Exception):
    """The pickle asks for a call that no data needs; the message names it."""


class Global(NamedTuple):
    """A class or function, by its name alone."""

    name: str
    is_method: bool = False
    """Whether it is a method of a class, as far as names tell."""


class Stranger:
    """An object of a class that is not known here. It has a name and no contents."""

    def __init__(self, name: str) -> None:
        self.name = name


class _Mark:
    pass


class _Storage(NamedTuple):
    flat: Tensor
    """All its values, one dimension."""


_STORAGES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "UntypedStorage": torch.uint8,
    "BoolStorage": torch.bool,
}
_MAGIC = 0x1950A86A20F9469CFC6C
"""What files of PyTorch before 1.6 begin with."""
_RENAMED = {"__builtin__": "builtins", "copy_reg": "copyreg"}
"""Modules that pickles of protocol 2 call as Python 2 did."""
_HOSTILE_MODULES = {"os", "posix", "nt", "sys", "subprocess", "importlib", "runpy", "pty", "shutil", "socket", "ctypes"}
_HOSTILE = {f"builtins.{name}" for name in ("eval", "exec", "compile", "open", "__import__", "input", "breakpoint")}
"""What no training script leaves beside its weights: a file that names one is refused as a whole."""
_TENSORS = ("torch.Tensor", "torch._tensor.Tensor", "torch.nn.parameter.Parameter")
_MAPPINGS = ("collections.OrderedDict", "collections.defaultdict", "builtins.dict")


def read_inert(path: Path) -> Any:
    """What ``torch.save`` wrote, on the CPU, with a `Stranger` in place of every object of a class that is not known.

    Args:
        path: a file of PyTorch, of either format, or a plain pickle.

    Raises:
        RunsCode: if the file asks for a call that is no object's making.
        Exception: whatever a broken file leads to.
    """
    with path.open("rb") as file:
        if zipfile.is_zipfile(file):
            return _read_zip(file, path.stat().st_size)
        file.seek(0)
        return _read_legacy(file, path.stat().st_size)


def _read_zip(file: BinaryIO, size: int) -> Any:
    loaded: dict[str, _Storage] = {}
    with zipfile.ZipFile(file) as archive:
        if any(entry.file_size > size for entry in archive.infolist()):
            raise ValueError("an entry is larger than the whole file")  # PyTorch does not compress
        (pickled,) = (name for name in archive.namelist() if name.endswith("data.pkl") and name.count("/") <= 1)
        folder = pickled.removesuffix("data.pkl")
        if f"{folder}byteorder" in archive.namelist() and archive.read(f"{folder}byteorder") != b"little":
            raise ValueError("values of another byte order")

        def storage(kind: Global, key: str, _location: str, count: int) -> _Storage:
            if key not in loaded:
                dtype = _dtype(kind)
                content = archive.read(f"{folder}data/{key}")
                if len(content) != count * dtype.itemsize:
                    raise ValueError("a storage of another length than its name says")
                loaded[key] = _Storage(torch.frombuffer(bytearray(content), dtype=dtype) if content else _empty(dtype))
            return loaded[key]

        with archive.open(pickled) as stream:
            return _Interpreter(stream, storage).value()


def _read_legacy(file: BinaryIO, size: int) -> Any:
    made: dict[str, _Storage] = {}

    def storage(kind: Global, key: str, _location: str, count: int, view: object) -> _Storage:
        if view is not None or not 0 <= count * _dtype(kind).itemsize <= size:
            raise ValueError("a storage that the file cannot hold")
        if key not in made:
            made[key] = _Storage(torch.empty(count, dtype=_dtype(kind)))
        return made[key]

    first = _Interpreter(file, _no_storage).value()
    if first != _MAGIC:
        return first  # a plain pickle
    for _ in ("protocol version", "about the machine"):
        _Interpreter(file, _no_storage).value()
    content = _Interpreter(file, storage).value()
    for key in _Interpreter(file, _no_storage).value():
        flat = made[key].flat
        (count,) = struct.unpack("<q", file.read(8))
        values = file.read(count * flat.dtype.itemsize)
        if count != len(flat) or len(values) != count * flat.dtype.itemsize:
            raise ValueError("a storage is cut short")
        if values:
            flat.copy_(torch.frombuffer(bytearray(values), dtype=flat.dtype))
    return content


def _no_storage(*_: Any) -> _Storage:
    raise ValueError("a storage outside the tensors")


def _dtype(kind: Any) -> torch.dtype:
    if not isinstance(kind, Global):
        raise TypeError("a storage without a type")
    return _STORAGES[kind.name.rpartition(".")[2]]


def _empty(dtype: torch.dtype) -> Tensor:
    return torch.empty(0, dtype=dtype)


class _Interpreter:
    """One pickle, executed on names, containers and tensors."""

    def __init__(self, stream: Any, storage: Callable[..., _Storage]) -> None:
        self._stream = stream
        self._storage = storage
        self._stack: list[Any] = []
        self._memo: dict[int, Any] = {}

    def value(self) -> Any:
        """The object that the pickle describes."""
        for opcode, argument, _ in pickletools.genops(self._stream):
            if opcode.name == "STOP":
                return self._stack.pop()
            self._step(opcode.name, argument)
        raise ValueError("the pickle does not end")

    def _step(self, name: str, argument: Any) -> None:
        if name in ("PROTO", "FRAME"):
            return
        if name in _LITERALS:
            self._stack.append(argument)
        elif name in _CONSTANTS:
            self._stack.append(_CONSTANTS[name]())
        elif "PUT" in name or name == "MEMOIZE":
            self._memo[len(self._memo) if argument is None else argument] = self._stack[-1]
        elif "GET" in name:
            self._stack.append(self._memo[argument])
        elif name in _ACTIONS:
            _ACTIONS[name](self, argument)
        else:
            raise ValueError(f"a pickle of tensors has no {name}")

    def _items(self) -> list[Any]:
        """What stands on the stack above the last mark, which goes too."""
        start = len(self._stack) - 1
        while self._stack[start] is not _Mark:
            start -= 1
            if start < 0:
                raise ValueError("the pickle forgot where its items begin")
        items = self._stack[start + 1 :]
        del self._stack[start:]
        return items

    def pop(self, _: Any) -> None:
        self._stack.pop()

    def pop_mark(self, _: Any) -> None:
        self._items()

    def duplicate(self, _: Any) -> None:
        self._stack.append(self._stack[-1])

    def tuple_of(self, count: int | None) -> None:
        items = self._items() if count is None else self._stack[len(self._stack) - count :]
        if count is not None:
            del self._stack[len(self._stack) - count :]
        self._stack.append(tuple(items))

    def list_of_marked(self, _: Any) -> None:
        self._stack.append(self._items())

    def dict_of_marked(self, _: Any) -> None:
        self._stack.append(dict(_pairs(self._items())))

    def frozenset_of_marked(self, _: Any) -> None:
        self._stack.append(frozenset(self._items()))

    def append(self, _: Any) -> None:
        self._extend([self._stack.pop()])

    def append_marked(self, _: Any) -> None:
        self._extend(self._items())

    def _extend(self, items: list[Any]) -> None:
        target = self._stack[-1]
        if isinstance(target, list):
            target.extend(items)
        elif not isinstance(target, Stranger):
            raise TypeError("items for what is no list")

    def set_item(self, _: Any) -> None:
        value, key = self._stack.pop(), self._stack.pop()
        self._update([(key, value)])

    def set_marked(self, _: Any) -> None:
        self._update(_pairs(self._items()))

    def _update(self, items: Sequence[tuple[Any, Any]]) -> None:
        target = self._stack[-1]
        if isinstance(target, dict):
            target.update(items)
        elif not isinstance(target, Stranger):
            raise TypeError("items for what is no dictionary")

    def add_marked(self, _: Any) -> None:
        items, target = self._items(), self._stack[-1]
        if isinstance(target, set):
            target.update(items)
        elif not isinstance(target, Stranger):
            raise TypeError("items for what is no set")

    def named(self, argument: str) -> None:
        module, _, name = argument.partition(" ")
        self._stack.append(_named(module, name))

    def named_on_stack(self, _: Any) -> None:
        name, module = self._stack.pop(), self._stack.pop()
        self._stack.append(_named(module, name))

    def call(self, _: Any) -> None:
        arguments, function = self._stack.pop(), self._stack.pop()
        self._stack.append(_made(function, arguments))

    def call_with_names(self, _: Any) -> None:
        self._stack.pop()
        self.call(None)

    def call_marked(self, _: Any) -> None:
        function, *arguments = self._items()
        self._stack.append(_made(function, tuple(arguments)))

    def call_named(self, argument: str) -> None:
        module, _, name = argument.partition(" ")
        self._stack.append(_made(_named(module, name), tuple(self._items())))

    def pass_over_state(self, _: Any) -> None:
        # of OrderedDict it is the version of PyTorch's modules, of a Stranger it is the Stranger's own business
        self._stack.pop()

    def persistent(self, _: Any) -> None:
        kind, *identity = self._stack.pop()
        if kind == "storage":
            self._stack.append(self._storage(*identity))
        elif kind == "module":  # a whole module with its source, in files of PyTorch before 1.6
            self._stack.append(identity[0])
        else:
            raise ValueError("a persistent object that is no storage")


def _pairs(items: list[Any]) -> list[tuple[Any, Any]]:
    return list(zip(items[::2], items[1::2], strict=True))


def _named(module: Any, name: Any) -> Global:
    module = _RENAMED.get(module, module)
    outer, _, inner = name.rpartition(".")
    known = Global(f"{module}.{name}", is_method=bool(outer) and not inner[:1].isupper())
    if module.partition(".")[0] in _HOSTILE_MODULES or known.name in _HOSTILE:
        raise RunsCode(known.name)
    return known


def _made(function: Any, arguments: Any) -> Any:
    """What a call would make, if it is a container or a tensor; else a `Stranger`, and nothing is called."""
    if isinstance(function, Stranger):
        raise RunsCode(f"what {function.name} gives")
    if not isinstance(function, Global):
        raise TypeError("a call of what is no class")
    name = function.name
    if function.is_method:
        raise RunsCode(name)
    if name in _MAPPINGS:
        entries = arguments[0] if arguments and isinstance(arguments[0], (list, Mapping)) else ()
        return dict(entries)
    if name == "torch._utils._rebuild_tensor_v2":
        storage, offset, size, stride, *_ = arguments
        return storage.flat.as_strided(size, stride, offset)
    if name in ("torch._utils._rebuild_parameter", "torch._utils._rebuild_parameter_with_state"):
        return arguments[0]
    if name == "torch._tensor._rebuild_from_type_v2":  # a tensor with attributes
        rebuild, kind, inner, _ = arguments
        return _made(rebuild, inner) if kind.name in _TENSORS else Stranger(kind.name)
    return Stranger(name)


_LITERALS = {
    *("INT", "LONG", "LONG1", "LONG4", "BININT", "BININT1", "BININT2", "FLOAT", "BINFLOAT"),
    *("STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8"),
    *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"),
}
_CONSTANTS: Mapping[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "MARK": lambda: _Mark,
    "EMPTY_TUPLE": tuple,
    "EMPTY_LIST": list,
    "EMPTY_DICT": dict,
    "EMPTY_SET": set,
}
_ACTIONS: Mapping[str, Callable[[_Interpreter, Any], None]] = {
    "POP": _Interpreter.pop,
    "POP_MARK": _Interpreter.pop_mark,
    "DUP": _Interpreter.duplicate,
    "TUPLE": _Interpreter.tuple_of,
    "TUPLE1": lambda machine, _: machine.tuple_of(1),
    "TUPLE2": lambda machine, _: machine.tuple_of(2),
    "TUPLE3": lambda machine, _: machine.tuple_of(3),
    "LIST": _Interpreter.list_of_marked,
    "DICT": _Interpreter.dict_of_marked,
    "FROZENSET": _Interpreter.frozenset_of_marked,
    "APPEND": _Interpreter.append,
    "APPENDS": _Interpreter.append_marked,
    "SETITEM": _Interpreter.set_item,
    "SETITEMS": _Interpreter.set_marked,
    "ADDITEMS": _Interpreter.add_marked,
    "GLOBAL": _Interpreter.named,
    "STACK_GLOBAL": _Interpreter.named_on_stack,
    "REDUCE": _Interpreter.call,
    "NEWOBJ": _Interpreter.call,
    "NEWOBJ_EX": _Interpreter.call_with_names,
    "OBJ": _Interpreter.call_marked,
    "INST": _Interpreter.call_named,
    "BUILD": _Interpreter.pass_over_state,
    "BINPERSID": _Interpreter.persistent,
}
