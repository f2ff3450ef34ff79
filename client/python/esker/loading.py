"""Puts a stored tree back: as new objects, or into the caller's.

Everything is compared before anything is changed; then the tensors are read, then objects are told (load_state_dict).
"""

import collections
import fnmatch
from collections.abc import Callable
from typing import Any

from esker import dtypes, memory, modules, optimizers, tensors, tree
from esker.sharding import Box
from esker.tree import Ambiguous, BytesLeaf, Dict, Node, Path, Sequence, TensorLeaf, Value

ReadItem = Callable[[int, str], bytes]
"""(rank, name) -> the byte item."""


class Read:
    """A box to be read, and the memory that it goes to."""

    def __init__(self, leaf: TensorLeaf, box: Box, target: Any) -> None:
        self.leaf = leaf
        self.box = box
        self.target = target


def select(node: Node, only: str | None) -> Node:
    """The part of the tree whose leaves' dotted paths match the pattern: dicts lose the rest, in lists it becomes None."""
    if only is None:
        return node
    return _select(node, only, ()) or Dict([])


def _select(node: Node, only: str, path: Path) -> Node | None:
    if fnmatch.fnmatchcase(tree.dotted(path), only):
        return node
    if isinstance(node, Dict):
        chosen = [(key, _select(child, only, (*path, key))) for key, child in node.entries]
        entries = [(key, child) for key, child in chosen if child is not None]
        return Dict(entries) if entries else None
    if isinstance(node, Ambiguous):
        parts = {rank: _select(child, only, path) for rank, child in node.by_rank.items()}
        wanted = {rank: child for rank, child in parts.items() if child is not None}
        return Ambiguous(wanted) if wanted else None
    if isinstance(node, Sequence):
        items = [_select(child, only, (*path, i)) for i, child in enumerate(node.items)]
        if any(item is not None for item in items):
            return Sequence(node.kind, node.fields, [Value(None) if item is None else item for item in items])
    return None


class Plan:
    """What a load will do. Fill it with `build` or `fit`; look at what does not fit; read; then call `finish`."""

    def __init__(self, read_item: ReadItem, only: str | None, allow_pickle: bool) -> None:
        self.reads: list[Read] = []
        self.missing: list[str] = []
        self.unexpected: list[str] = []
        self.mismatched: list[str] = []
        self.ambiguous: list[str] = []
        self._read_item = read_item
        self._only = only
        self._allow_pickle = allow_pickle
        self._tell: list[Callable[[], None]] = []

    def finish(self) -> None:
        """Changes the caller's dicts, lists and objects. After the tensors were read."""
        for tell in self._tell:
            tell()
        self._tell.clear()

    # --- new objects ---

    def build(self, node: Node, path: Path) -> Any:
        """A new object for the node; its tensors are filled by the reads."""
        match node:
            case Value(value):
                return value
            case TensorLeaf():
                return self._build_tensor(node)
            case BytesLeaf():
                return self._build_bytes(node, path)
            case Dict(entries):
                built = ((key, self.build(child, (*path, key))) for key, child in entries)
                return {key: value for key, value in built if value is not _LEFT_OUT}
            case Sequence(kind, fields, items):
                values = [self.build(child, (*path, i)) for i, child in enumerate(items)]
                return _sequence(kind, fields, [None if value is _LEFT_OUT else value for value in values])
            case Ambiguous():
                self.ambiguous.append(tree.shown(path))
                return _LEFT_OUT
        raise AssertionError(node)

    def _build_tensor(self, leaf: TensorLeaf) -> Any:
        target = memory.allocate(leaf.dtype, leaf.shape, leaf.kind)
        self.reads.append(Read(leaf, Box((0,) * len(leaf.shape), leaf.shape), target))
        if leaf.kind == "numpy_scalar":
            return _NumpyScalar(target)
        return target

    def _build_bytes(self, leaf: BytesLeaf, path: Path) -> Any:
        if leaf.kind == "pickle" and not self._allow_pickle:
            raise ValueError(
                f"{tree.shown(path)}: it was saved with pickle, and unpickling runs whatever code is in it:"
                " load with allow_pickle=True if you trust who saved it, or leave it out with only="
            )
        content = self._read_item(leaf.rank, leaf.item)
        if leaf.kind == "pickle":
            import pickle

            return pickle.loads(content)
        return bytearray(content) if leaf.kind == "bytearray" else content

    # --- the caller's objects ---

    def fit(self, target: Any, node: Node, path: Path) -> Any:
        """What comes to the target's place: the target itself where it can be filled, else a new value."""
        if isinstance(node, Ambiguous):
            self.ambiguous.append(tree.shown(path))
            return target
        if target is None:
            return self.build(node, path)
        if tensors.is_tensor(target):
            return self._fit_tensor(target, node, path)
        if isinstance(target, dict):
            return self._fit_dict(target, node, path)
        if isinstance(target, (list, tuple)):
            return self._fit_sequence(target, node, path)
        if callable(getattr(target, "load_state_dict", None)):
            return self._fit_object(target, node, path)
        if isinstance(node, (Value, BytesLeaf)):
            return self.build(node, path)
        return self._mismatch(target, path, f"a {type(target).__qualname__}", _kind(node))

    def _mismatch(self, target: Any, path: Path, wanted: str, stored: str) -> Any:
        self.mismatched.append(f"{tree.shown(path)}: wanted is {wanted}, stored is {stored}")
        return target

    def _wants(self, path: Path) -> bool:
        return self._only is None or fnmatch.fnmatchcase(tree.dotted(path), self._only)

    def _note_missing(self, target: Any, path: Path) -> None:
        """Notes all leaves under a target that the checkpoint does not have."""
        inner: list[tuple[Any, Any]] = []
        if isinstance(target, dict):
            inner = list(target.items())
        elif isinstance(target, (list, tuple)):
            inner = list(enumerate(target))
        elif not tensors.is_tensor(target) and callable(getattr(target, "state_dict", None)):
            inner = list(modules.state_of(target).items())
        if not inner and self._wants(path):
            self.missing.append(tree.shown(path))
        for key, child in inner:
            self._note_missing(child, (*path, key))

    def _note_unexpected(self, node: Node, path: Path) -> None:
        self.unexpected.extend(tree.shown(leaf_path) for leaf_path, _ in tree.leaves(node, path))

    def _fit_tensor(self, target: Any, node: Node, path: Path) -> Any:
        if not isinstance(node, TensorLeaf):
            return self._mismatch(target, path, "a tensor", _kind(node))
        try:
            dtype, shape, boxes = _boxes_of(target)
        except TypeError as error:
            self.mismatched.append(f"{tree.shown(path)}: {error}")
            return target
        if (dtype, shape) != (node.dtype, node.shape):
            return self._mismatch(target, path, f"{dtype} of shape {list(shape)}", _kind(node))
        if not _can_be_filled(target):
            return self._build_tensor(node)
        if not all(memory.is_writable(data) for _, data in boxes):
            return self._mismatch(target, path, "a tensor or array that can't be written", _kind(node))
        self.reads.extend(Read(node, box, data) for box, data in boxes)
        return target

    def _fit_dict(self, target: dict[Any, Any], node: Node, path: Path) -> Any:
        if not isinstance(node, Dict):
            return self._mismatch(target, path, "a dict", _kind(node))
        stored_by_key = {(type(key), key): child for key, child in node.entries}
        wanted = {(type(key), key) for key in target}
        for key, child in list(target.items()):
            stored = stored_by_key.get((type(key), key))
            if stored is None:
                self._note_missing(child, (*path, key))
                continue
            value = self.fit(child, stored, (*path, key))
            if value is not child and value is not _LEFT_OUT:
                self._tell.append(lambda k=key, v=value: target.__setitem__(k, finished(v)))  # type: ignore[misc]
        for key, stored in node.entries:
            if (type(key), key) not in wanted:
                self._note_unexpected(stored, (*path, key))
        return target

    def _fit_sequence(self, target: Any, node: Node, path: Path) -> Any:
        if not isinstance(node, Sequence):
            return self._mismatch(target, path, f"a {type(target).__name__}", _kind(node))
        if not _has_places(target):  # plain values: they may have become more or fewer
            values: Any = self.build(node, path)
            if isinstance(target, list):
                self._tell.append(lambda: target.__setitem__(slice(None), finished(values)))
                return target
            return values
        if len(target) != len(node.items):
            return self._mismatch(target, path, f"{len(target)} elements", f"{len(node.items)} elements")
        new = [self.fit(child, stored, (*path, i)) for i, (child, stored) in enumerate(zip(target, node.items))]
        if all(a is b for a, b in zip(new, target)):
            return target
        if isinstance(target, list):
            self._tell.append(lambda: target.__setitem__(slice(None), finished(new)))
            return target
        return type(target)(*new) if hasattr(target, "_fields") else type(target)(new)

    def _fit_object(self, target: Any, node: Node, path: Path) -> Any:
        if optimizers.is_optimizer(target):
            wanted, stored = optimizers.group_sizes(target), _group_sizes(node)
            if stored is not None and wanted != stored:
                return self._mismatch(target, path, f"groups of {wanted} parameters", f"groups of {stored}")
            optimizers.make_state(target, _optimizer_numbers(node))
        state = modules.state_of(target)
        if modules.is_module(target):
            loaded: Any = dict(state)
            self._fit_dict(loaded, node, path)
        else:
            # What such an object's state looks like is its own business: it may have grown since it was saved.
            loaded = self._adopt(state, node, path)
        self._tell.append(lambda: modules.load_state(target, finished(loaded)))
        return target

    def _adopt(self, current: Any, node: Node, path: Path) -> Any:
        """The stored structure, with the object's own tensors filled in place where they fit."""
        if isinstance(node, Ambiguous) and current is not None:
            return self.fit(current, node, path)  # notes it, and keeps what the object has
        if isinstance(node, Dict) and isinstance(current, dict):
            adopted = ((key, self._adopt(current.get(key), child, (*path, key))) for key, child in node.entries)
            return {key: value for key, value in adopted if value is not _LEFT_OUT}
        if isinstance(node, Sequence) and isinstance(current, (list, tuple)) and len(current) == len(node.items):
            items = [self._adopt(c, child, (*path, i)) for i, (c, child) in enumerate(zip(current, node.items))]
            return _sequence(node.kind, node.fields, items)
        if isinstance(node, TensorLeaf) and tensors.is_tensor(current):
            return self._fit_tensor(current, node, path)
        return self.build(node, path)


_LEFT_OUT = object()


class _NumpyScalar:
    """Stands for a numpy scalar until its element was read."""

    def __init__(self, array: Any) -> None:
        self.array = array


def finished(value: Any) -> Any:
    """The value with numpy scalars in the place of what stood for them; to be called after the reads."""
    if isinstance(value, _NumpyScalar):
        return value.array[()]
    if type(value) is dict:
        for key, inner in list(value.items()):
            value[key] = finished(inner)
    elif type(value) is list:
        value[:] = [finished(inner) for inner in value]
    elif isinstance(value, tuple) and type(value).__name__ != "Size":
        new = [finished(inner) for inner in value]
        if any(a is not b for a, b in zip(new, value)):
            return type(value)(*new) if hasattr(value, "_fields") else tuple(new)
    return value


def _sequence(kind: str, fields: tuple[str, ...] | None, items: list[Any]) -> Any:
    if fields is not None:
        return collections.namedtuple(kind, fields)(*items)
    return items if kind == "list" else tuple(items)


def _boxes_of(target: Any) -> tuple[str, tuple[int, ...], list[tuple[Box, Any]]]:
    """dtype, global shape, and the boxes of a tensor to be filled, each with its memory. TypeError: can't be filled."""
    job = tensors.Job(0, 1)
    if tensors.is_distributed(target) and hasattr(target, "device_mesh"):
        local, dtype, _ = tensors.plain_data(target.to_local())
        pieces = tensors.dtensor_pieces(target)
        return dtype, tuple(target.shape), [(piece.box, tensors.view_of(local, piece)) for piece in pieces]
    source = tensors.describe(target, "", job)
    return source.dtype, source.shape, [(held.box, held.data) for held in source.held]


def _can_be_filled(target: Any) -> bool:
    """Whether its elements may be overwritten: not those of numpy scalars, nor of the immutable arrays of other libraries."""
    numpy = dtypes.numpy_if_imported()
    is_array = numpy is not None and isinstance(target, numpy.ndarray)
    return is_array or memory.is_torch(target) or tensors.is_distributed(target)


def _has_places(value: Any) -> bool:
    """Whether a target has anything to be filled in place: tensors, or objects that load a state."""
    if isinstance(value, dict):
        return any(_has_places(inner) for inner in value.values())
    if isinstance(value, (list, tuple)):
        return any(_has_places(inner) for inner in value)
    return tensors.is_tensor(value) or callable(getattr(value, "load_state_dict", None))


def _group_sizes(node: Node) -> list[int] | None:
    """How many parameters each group of a stored optimizer has; None if that is open (each rank has its own)."""
    groups = node.get("param_groups") if isinstance(node, Dict) else None
    if not isinstance(groups, Sequence):
        return None
    parameters = [group.get("params") if isinstance(group, Dict) else None for group in groups.items]
    sizes = [len(each.items) for each in parameters if isinstance(each, Sequence)]
    return sizes if len(sizes) == len(parameters) else None


def _optimizer_numbers(node: Node) -> set[int]:
    state = node.get("state") if isinstance(node, Dict) else None
    return {key for key, _ in state.entries if isinstance(key, int)} if isinstance(state, Dict) else set()


def _kind(node: Node) -> str:
    match node:
        case TensorLeaf(_, dtype, shape):
            return f"{dtype} of shape {list(shape)}"
        case Dict():
            return "a dict"
        case Sequence(kind):
            return f"a {kind}"
        case Value(value):
            return f"the value {value!r}"[:80]
        case BytesLeaf(_, _, kind):
            return kind
    return "each rank's own"
