"""A state as a tree: what a caller's nested dicts, lists and tensors become before they are stored.

The inner nodes keep the structure; the leaves are values, tensors and byte strings. Tensors and byte strings are stored for
themselves, under a name that is made from their path; the rest of the tree is stored as JSON (tree_json.py).
"""

import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterator
from typing import Any, TypeAlias

from esker import modules, tensors

Key: TypeAlias = Any  # a dict's key (str, int, float, bool, None, or a tuple of these), or an index
Path: TypeAlias = tuple[Key, ...]

TREE_ITEM = "esker/tree"
"""The byte item that holds a rank's tree."""


@dataclasses.dataclass
class Value:
    """None, bool, int, float, complex or str."""

    value: Any

    def __eq__(self, other: object) -> bool:
        # 1, 1.0 and True are three values; NaN is itself.
        return isinstance(other, Value) and type(self.value) is type(other.value) and repr(self.value) == repr(other.value)


@dataclasses.dataclass
class TensorLeaf:
    """A tensor: its stored name, dtype (as safetensors calls it), global shape, and what kind of object it was.

    digest: of its content, for a small tensor of one rank's own: it tells whether other ranks had the same, under their names.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    kind: str  # "torch", "numpy" or "numpy_scalar"
    digest: str | None = None

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, TensorLeaf):
            return False
        same_name = self.name == other.name and self.digest == other.digest
        same_content = self.digest is not None and self.digest == other.digest
        return (self.dtype, self.shape, self.kind) == (other.dtype, other.shape, other.kind) and (same_name or same_content)


@dataclasses.dataclass
class BytesLeaf:
    """A byte string: the byte item that holds it, a digest of its content, and what it was: bytes, bytearray or pickle."""

    item: str
    digest: str
    kind: str
    rank: int = dataclasses.field(default=0, compare=False)  # one that has it


@dataclasses.dataclass
class Dict:
    """A dict, its keys in their order."""

    entries: list[tuple[Key, "Node"]]

    def get(self, key: str) -> "Node | None":
        return next((node for k, node in self.entries if k == key), None)


@dataclasses.dataclass
class Sequence:
    """A list or tuple; a tuple with `fields` is a named one."""

    kind: str  # "list", "tuple" or the name of a named tuple
    fields: tuple[str, ...] | None
    items: list["Node"]


@dataclasses.dataclass
class Ambiguous:
    """What each rank stored for itself, after trees of several ranks were merged: rank -> node."""

    by_rank: dict[int, "Node"]


Node: TypeAlias = Value | TensorLeaf | BytesLeaf | Dict | Sequence | Ambiguous


@dataclasses.dataclass
class SourceTensor:
    """A tensor of the caller's, on its way: where it is in the tree, and what of it this rank holds."""

    path: Path
    leaf: TensorLeaf
    source: tensors.Source


@dataclasses.dataclass
class SourceBytes:
    path: Path
    leaf: BytesLeaf
    content: bytes


@dataclasses.dataclass
class Flat:
    """A flattened state."""

    root: Node
    tensors: list[SourceTensor]
    items: list[SourceBytes]


def digest_of(content: bytes) -> str:
    """BLAKE2b-128, in hex."""
    return hashlib.blake2b(content, digest_size=16).hexdigest()


def dotted(path: Path) -> str:
    """The path as people write it: "model.layers.0.weight"."""
    return ".".join(str(key) for key in path)


def shown(path: Path) -> str:
    """The path for messages."""
    return dotted(path) or "the state itself"


_LONGEST_NAME = 4000  # bytes: the format has room for 4096, with the owner behind it


def _exact(path: Path) -> str:
    """A name that no other path has, for the few whose dotted form two paths share or no name may have."""
    text = json.dumps([key if isinstance(key, str) else {"key": repr(key)} for key in path])
    if len(text) <= _LONGEST_NAME:
        return text
    return f"[{digest_of(text.encode('ascii'))}]"


def _is_plain(name: str) -> bool:
    try:
        size = len(name.encode("utf-8"))
    except UnicodeEncodeError:
        return False
    reserved = name.startswith("[") or "@rank" in name or "\0" in name or name == TREE_ITEM
    return 0 < size <= _LONGEST_NAME and not reserved


def children(node: Node) -> Iterator[tuple[Key, Node]]:
    if isinstance(node, Dict):
        yield from node.entries
    elif isinstance(node, Sequence):
        yield from enumerate(node.items)


def leaves(node: Node, path: Path = ()) -> Iterator[tuple[Path, Node]]:
    """All leaves under `node`, with their paths. An empty dict or list counts as a leaf."""
    inner = list(children(node))
    if not inner:
        yield path, node
    for key, child in inner:
        yield from leaves(child, (*path, key))


def flatten(state: Any, describe: Callable[[Any, str], tensors.Source], allow_pickle: bool) -> Flat:
    """Takes a state apart.

    describe: says what of a tensor this rank holds (tensors.describe, with the job's rank and world size bound).
    Raises TypeError that names the path of what can't be stored, ValueError for a state that contains itself.
    """
    walk = _Walk(describe, allow_pickle)
    root = walk.node(state, ())
    walk.give_names()
    return Flat(root, walk.tensors, walk.items)


class _Walk:
    def __init__(self, describe: Callable[[Any, str], tensors.Source], allow_pickle: bool) -> None:
        self._describe = describe
        self._allow_pickle = allow_pickle
        self._above: set[int] = set()  # ids of the containers that the present value is in
        self.tensors: list[SourceTensor] = []
        self.items: list[SourceBytes] = []

    def node(self, value: Any, path: Path) -> Node:
        if value is None or type(value) in (bool, int, float, complex, str):
            return Value(value)
        if tensors.is_tensor(value):
            return self._tensor(value, path)
        if type(value) in (bytes, bytearray):
            return self._bytes(bytes(value), type(value).__name__, path)
        if isinstance(value, (dict, list, tuple)) or _has_state_dict(value):
            return self._inner(value, path)
        return self._other(value, path)

    def _inner(self, value: Any, path: Path) -> Node:
        if id(value) in self._above:
            raise ValueError(f"{shown(path)}: the state contains itself here; take this reference out")
        self._above.add(id(value))
        try:
            if isinstance(value, dict):
                return Dict([(_checked_key(k, path), self.node(v, (*path, k))) for k, v in value.items()])
            if isinstance(value, (list, tuple)):
                items = [self.node(v, (*path, i)) for i, v in enumerate(value)]
                fields = getattr(type(value), "_fields", None)
                if fields is not None:
                    return Sequence(type(value).__name__, tuple(fields), items)
                return Sequence("list" if isinstance(value, list) else "tuple", None, items)
            return self.node(modules.state_of(value), path)
        finally:
            self._above.discard(id(value))

    def _tensor(self, value: Any, path: Path) -> Node:
        try:
            source = self._describe(value, dotted(path))
        except TypeError as error:
            if self._allow_pickle and not tensors.is_distributed(value):
                return self._pickle(value, path)
            raise TypeError(f"{shown(path)}: {error}") from None
        leaf = TensorLeaf("", source.dtype, source.shape, source.kind)
        self.tensors.append(SourceTensor(path, leaf, source))
        return leaf

    def _bytes(self, content: bytes, kind: str, path: Path) -> Node:
        leaf = BytesLeaf("", digest_of(content), kind)
        self.items.append(SourceBytes(path, leaf, content))
        return leaf

    def _pickle(self, value: Any, path: Path) -> Node:
        import pickle

        try:
            return self._bytes(pickle.dumps(value), "pickle", path)
        except Exception as error:
            raise TypeError(f"{shown(path)}: a {type(value).__qualname__} that can't be pickled: {error}") from error

    def _other(self, value: Any, path: Path) -> Node:
        if self._allow_pickle:
            return self._pickle(value, path)
        kind = f"{type(value).__module__}.{type(value).__qualname__}"
        if callable(getattr(value, "get_state", None)) and not isinstance(value, type):
            raise TypeError(f"{shown(path)}: can't store a {kind}: store what its get_state() returns")
        raise TypeError(
            f"{shown(path)}: can't store a {kind}: expected tensors, numbers, strings, bytes, None, dicts, lists and tuples of them,"
            " or an object with state_dict(); turn it into one of these, or save with allow_pickle=True"
        )

    def give_names(self) -> None:
        """By path, so that all ranks give the same tensor the same name."""
        sources: list[SourceTensor | SourceBytes] = [*self.tensors, *self.items]
        taken: dict[str, int] = {}
        for source in sources:
            name = dotted(source.path)
            taken[name] = taken.get(name, 0) + 1
        for source in sources:
            name = dotted(source.path)
            if taken[name] > 1 or not _is_plain(name):
                name = _exact(source.path)
            if isinstance(source, SourceTensor):
                source.leaf.name = name + source.source.owner
            else:
                source.leaf.item = name


def _has_state_dict(value: Any) -> bool:
    return callable(getattr(value, "state_dict", None)) and not isinstance(value, type)


def _checked_key(key: Any, path: Path) -> Key:
    if key is None or type(key) in (str, int, float, bool):
        return key
    if type(key) is tuple:
        for inner in key:
            _checked_key(inner, path)
        return key
    raise TypeError(
        f"{shown(path)}: can't store the key {key!r} of type {type(key).__qualname__}:"
        " expected a string, a number, None, or a tuple of these"
    )
