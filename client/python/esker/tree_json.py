"""A tree as JSON, as it is stored: one small byte item a rank, readable without Esker.

Values that JSON has stand for themselves (None, bool, int, finite float, str) and a list for a list; everything else is an
object with one member that says what it is: {"dict": [[key, node], ...]}, {"tuple": [...]}, {"named": [name, fields, items]},
{"tensor": [name, dtype, shape, kind, digest?]}, {"bytes": [item, digest, kind]}, {"float": "nan"}, {"complex": [re, im]}, {"int": "0x.."}.
"""

import json
import math
from typing import Any

from esker import tree

VERSION = 1
# json.loads refuses longer decimal numbers.
_LARGEST_PLAIN_INT = 1 << 64


def encode(root: tree.Node, world_size: int) -> bytes:
    """The bytes of the item esker/tree. Equal trees have equal bytes."""
    document = {"esker_tree": VERSION, "world_size": world_size, "tree": _encode(root)}
    return json.dumps(document, separators=(",", ":"), allow_nan=False).encode("ascii")


def decode(content: bytes, rank: int, where: str) -> tree.Node:
    """The tree that `rank` stored. ValueError, beginning with `where`, if these bytes are no tree or of a newer version."""
    try:
        document = json.loads(content)
        version = document["esker_tree"]
        if version > VERSION:
            raise ValueError(f"it has version {version}, and this package reads {VERSION}: install a newer one")
        return _decode(document["tree"], rank)
    except (ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError) as error:
        raise ValueError(f"{where}, rank {rank}: the item {tree.TREE_ITEM} is no tree: {error}") from error


def _encode_value(value: Any) -> Any:
    if type(value) is float and not math.isfinite(value):
        return {"float": repr(value)}
    if type(value) is complex:
        return {"complex": [_encode_value(value.real), _encode_value(value.imag)]}
    if type(value) is int and abs(value) >= _LARGEST_PLAIN_INT:
        return {"int": hex(value)}
    if type(value) is tuple:  # a key
        return {"tuple": [_encode_value(inner) for inner in value]}
    return value


def _encode(node: tree.Node) -> Any:
    match node:
        case tree.Value(value):
            return _encode_value(value)
        case tree.TensorLeaf(name, dtype, shape, kind, digest):
            return {"tensor": [name, dtype, list(shape), kind, *([] if digest is None else [digest])]}
        case tree.BytesLeaf(item, digest, kind):
            return {"bytes": [item, digest, kind]}
        case tree.Dict(entries):
            return {"dict": [[_encode_value(key), _encode(child)] for key, child in entries]}
        case tree.Sequence(kind, fields, items):
            encoded = [_encode(item) for item in items]
            if fields is not None:
                return {"named": [kind, list(fields), encoded]}
            return encoded if kind == "list" else {"tuple": encoded}
    raise AssertionError(f"a merged tree is not stored: {node!r}")


def _decode_value(encoded: Any) -> Any:
    if not isinstance(encoded, dict):
        return encoded
    ((what, content),) = encoded.items()
    match what:
        case "float":
            return float(content)
        case "complex":
            return complex(_decode_value(content[0]), _decode_value(content[1]))
        case "int":
            return int(content, 16)
        case "tuple":
            return tuple(_decode_value(inner) for inner in content)
    raise ValueError(f"unknown value {what!r}")


def _decode(encoded: Any, rank: int) -> tree.Node:
    if isinstance(encoded, list):
        return tree.Sequence("list", None, [_decode(item, rank) for item in encoded])
    if not isinstance(encoded, dict):
        return tree.Value(encoded)
    ((what, content),) = encoded.items()
    match what:
        case "dict":
            return tree.Dict([(_decode_value(key), _decode(child, rank)) for key, child in content])
        case "tuple":
            return tree.Sequence("tuple", None, [_decode(item, rank) for item in content])
        case "named":
            name, fields, items = content
            return tree.Sequence(name, tuple(fields), [_decode(item, rank) for item in items])
        case "tensor":
            name, dtype, shape, kind, *digest = content
            return tree.TensorLeaf(name, dtype, tuple(shape), kind, digest[0] if digest else None)
        case "bytes":
            item, digest, kind = content
            return tree.BytesLeaf(item, digest, kind, rank)
    return tree.Value(_decode_value(encoded))
