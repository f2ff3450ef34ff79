"""A checkpoint of Esker's as DCP sees one: tensors and objects by flat names, and the path in the nested state that each name stands for.

It may have been saved by esker.Checkpointer (a tree), by esker.torch.StorageWriter (DCP's own names), or by others (tensors only).
"""

import dataclasses
import io
from collections.abc import Callable
from typing import Any

import torch
from torch.distributed.checkpoint._nested_dict import flatten_state_dict
from torch.distributed.checkpoint.metadata import BytesStorageMetadata

from esker import _core, loading, tensors, tree
from esker.stored_tree import StoredTree
from esker.torch.metadata import ITEM, read_metadata

_Path = tuple[str | int, ...]
# Where `esker save` keeps a safetensors file's own metadata (tools/metadata_item.h).
_SAFETENSORS_METADATA = "safetensors.__metadata__"
_MOST_SHOWN = 10


@dataclasses.dataclass
class Contents:
    """tensors: flat name -> the name that the tensor is stored under. objects: flat name -> what gives its bytes, as torch.save makes
    them. paths: of both, in the order of the state. items_left_out: byte items that are neither."""

    tensors: dict[str, str] = dataclasses.field(default_factory=dict)
    objects: dict[str, Callable[[], bytes]] = dataclasses.field(default_factory=dict)
    paths: dict[str, _Path] = dataclasses.field(default_factory=dict)
    items_left_out: int = 0


def has_tree(checkpoint: _core.Checkpoint) -> bool:
    return any(item.name == tree.TREE_ITEM for item in checkpoint.items())


def read(checkpoint: _core.Checkpoint, from_rank: int | None) -> Contents:
    """What is in the checkpoint. Raises EskerError INVALID_ARGUMENT for what DCP can't hold, and from the server."""
    if has_tree(checkpoint):
        return _of_tree(checkpoint, from_rank)
    if any(item.name == ITEM for item in checkpoint.items()):
        return _of_dcp(checkpoint)
    names = [tensor.name for tensor in checkpoint.tensors()]
    left_out = sum(item.name != _SAFETENSORS_METADATA for item in checkpoint.items())
    return Contents({name: name for name in names}, {}, {name: (name,) for name in names}, left_out)


def skeleton(checkpoint: _core.Checkpoint, from_rank: int | None, *, tuples_of_tensors: bool) -> tuple[Any, list[loading.Read]]:
    """The state that esker.Checkpointer saved, and what has to be read into its tensors.

    All its tensors are torch's, and its named tuples are tuples; so are, if tuples_of_tensors, those that hold tensors, which are
    lists else: DCP takes any tuple for one object. Raises EskerError INVALID_ARGUMENT.
    """
    info = checkpoint.info
    where = f"run {info.run}, step {info.step}"
    try:
        root = StoredTree(checkpoint, where, tensors.Job(0, 1), from_rank).root
        _check(root, where)
        _simplify(root, tuples_of_tensors)
        plan = loading.Plan(checkpoint.read_item, None, allow_pickle=False)
        state = plan.build(root, ())
    except (ValueError, TypeError) as error:
        raise _core.EskerError(f"{error}", "INVALID_ARGUMENT") from error
    return state, plan.reads


def _check(root: tree.Node, where: str) -> None:
    leaves = list(tree.leaves(root))
    if own := [tree.shown(path) for path, leaf in leaves if isinstance(leaf, tree.Ambiguous)]:
        raise ValueError(
            f"{where}: each rank stored its own {', '.join(own[:_MOST_SHOWN])}{' ...' * (len(own) > _MOST_SHOWN)}:"
            " say whose to take with from_rank (--from-rank)"
        )
    if pickles := [tree.shown(path) for path, leaf in leaves if isinstance(leaf, tree.BytesLeaf) and leaf.kind == "pickle"]:
        raise ValueError(
            f"{where}: {', '.join(pickles[:_MOST_SHOWN])}: saved with allow_pickle=True, and not unpickled here: load it with"
            " Checkpointer.load(allow_pickle=True) where you trust it, and save it as tensors and plain values"
        )


def _simplify(node: tree.Node, tuples_of_tensors: bool) -> bool:
    """Returns whether there is a tensor in it."""
    if isinstance(node, tree.TensorLeaf):
        node.kind = "torch"
        return True
    found = [_simplify(child, tuples_of_tensors) for _, child in tree.children(node)]
    if isinstance(node, tree.Sequence):
        node.fields = None
        is_list = node.kind == "list" or (any(found) and not tuples_of_tensors)
        node.kind = "list" if is_list else "tuple"
    return any(found)


def _of_tree(checkpoint: _core.Checkpoint, from_rank: int | None) -> Contents:
    with torch.device("meta"):  # shapes are enough
        state, reads = skeleton(checkpoint, from_rank, tuples_of_tensors=False)
    if not isinstance(state, dict):
        raise _core.EskerError(
            f"run {checkpoint.info.run}, step {checkpoint.info.step}: the state is a {type(state).__name__}, and DCP holds dicts only",
            "INVALID_ARGUMENT",
        )
    try:
        flat, paths = flatten_state_dict(state)
    except ValueError as error:  # two paths that DCP writes alike: "a.b" and a -> b
        raise _core.EskerError(f"run {checkpoint.info.run}, step {checkpoint.info.step}: {error}", "INVALID_ARGUMENT") from error
    stored_name = {id(read.target): read.leaf.name for read in reads}
    contents = Contents(paths=paths)
    for name, value in flat.items():
        if isinstance(value, torch.Tensor):
            contents.tensors[name] = stored_name[id(value)]
        else:
            contents.objects[name] = lambda value=value: pickled(value)  # type: ignore[misc]
    return contents


def _of_dcp(checkpoint: _core.Checkpoint) -> Contents:
    metadata, ranks = read_metadata(checkpoint)
    stored_names = metadata.state_dict_metadata
    paths = {name: path for name, path in (metadata.planner_data or {}).items() if name in stored_names}
    contents = Contents(paths=paths | {name: (name,) for name in stored_names if name not in paths})
    for name, stored in stored_names.items():
        if isinstance(stored, BytesStorageMetadata):
            contents.objects[name] = lambda name=name: checkpoint.read_item(ranks[name][0], name)  # type: ignore[misc]
        else:
            contents.tensors[name] = name
    return contents


def pickled(value: Any) -> bytes:
    """As DCP stores an object."""
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()
