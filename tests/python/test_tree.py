"""States as trees: structure and values come back, names are unique, and what can't be stored is named."""

import enum
import random
from typing import Any

import numpy as np
import pytest
import torch
from states import difference, random_state

from esker import loading, memory, merge, sharding, spread, tensors, tree, tree_json

ONE_RANK = tensors.Job(0, 1)


def flatten(state: Any, job: tensors.Job = ONE_RANK, allow_pickle: bool = False) -> tree.Flat:
    return tree.flatten(state, lambda value, path: tensors.describe(value, path, job), allow_pickle)


def through_json(state: Any, **options: Any) -> Any:
    """The state after a save and a load whose store is a dict."""
    flat = flatten(state, **options)
    items = {source.leaf.item: source.content for source in flat.items}
    stored = {source.leaf.name: source.source.held[0].data for source in flat.tensors}
    assert len(items) == len(flat.items) and len(stored) == len(flat.tensors), "two leaves share a name"
    assert all(name and len(name) <= 4096 for name in [*items, *stored]) and tree.TREE_ITEM not in items

    root = tree_json.decode(tree_json.encode(flat.root, 1), 0, "here")
    plan = loading.Plan(lambda rank, name: items[name], None, bool(options.get("allow_pickle")))
    state = plan.build(root, ())
    for read in plan.reads:
        memory.copy_into(read.target, stored[read.leaf.name])
    return loading.finished(state)


@pytest.mark.parametrize("seed", range(60))
def test_random_states_come_back_bit_for_bit(seed: int) -> None:
    print("seed", seed)
    state = random_state(random.Random(seed))
    assert difference(state, through_json(state)) is None


def test_equal_states_have_equal_bytes() -> None:
    encoded = [tree_json.encode(flatten(random_state(random.Random(5))).root, 4) for _ in range(2)]
    assert encoded[0] == encoded[1]


def test_paths_that_read_alike_have_names_of_their_own() -> None:
    state = {"a.b": torch.zeros(1), "a": {"b": torch.ones(1)}, 0: np.zeros(1), "0": np.ones(1)}
    flat = flatten(state)
    assert len({source.leaf.name for source in flat.tensors}) == 4
    assert difference(state, through_json(state)) is None


def test_a_plain_path_is_its_name() -> None:
    flat = flatten({"model": {"layers.0.weight": torch.zeros(2)}, "x": [torch.zeros(1)]})
    assert [source.leaf.name for source in flat.tensors] == ["model.layers.0.weight", "x.0"]


def test_objects_are_their_state_dict() -> None:
    model = torch.nn.Linear(3, 2)
    loaded = through_json({"model": model})
    assert difference({"model": dict(model.state_dict())}, loaded) is None


class Color(enum.IntEnum):
    RED = 1


@pytest.mark.parametrize(
    "value",
    [
        {1, 2},
        object(),
        lambda: 0,
        Color.RED,
        np.array(["text"]),
        np.array([object()]),
        torch.zeros(3, device="meta"),
        torch.sparse_coo_tensor(torch.tensor([[0]]), torch.tensor([1.0]), (2,)),
        torch.zeros(2, dtype=torch.complex32),
    ],
    ids=lambda value: type(value).__name__ + str(getattr(value, "dtype", "")),
)
def test_what_cant_be_stored_is_named(value: Any) -> None:
    with pytest.raises(TypeError, match=r"^loader\.shards\.1\.x: "):
        flatten({"loader": {"shards": [0, {"x": value}]}})


def test_keys_that_cant_be_stored_are_named() -> None:
    with pytest.raises(TypeError, match=r"^a: can't store the key .*frozenset"):
        flatten({"a": {frozenset(): 1}})


def test_a_state_that_contains_itself_is_refused() -> None:
    state: dict[str, Any] = {"a": []}
    state["a"].append(state)
    with pytest.raises(ValueError, match="^a.0: the state contains itself"):
        flatten(state)


def test_the_same_object_twice_is_no_cycle() -> None:
    shared = {"x": 1}
    assert through_json([shared, shared]) == [{"x": 1}, {"x": 1}]


def test_pickle_only_when_asked_for() -> None:
    assert through_json({"a": {1, 2}}, allow_pickle=True) == {"a": {1, 2}}
    flat = flatten({"a": {1, 2}}, allow_pickle=True)
    plan = loading.Plan(lambda rank, name: flat.items[0].content, None, allow_pickle=False)
    with pytest.raises(ValueError, match="^a: it was saved with pickle"):
        plan.build(flat.root, ())


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"esker_tree":1,"tree":{"dict":[[1]]}}', b'{"esker_tree":1,"tree":{"what":1}}'])
def test_a_damaged_tree_is_an_error_that_says_where(content: bytes) -> None:
    with pytest.raises(ValueError, match="^run x, rank 3: "):
        tree_json.decode(content, 3, "run x")


def test_a_newer_tree_is_refused() -> None:
    with pytest.raises(ValueError, match="version 2"):
        tree_json.decode(b'{"esker_tree":2,"tree":1}', 0, "here")


def test_only_takes_what_matches() -> None:
    root = flatten({"model": {"w": 1, "b": 2}, "optim": [3, {"w": 4}]}).root

    def built(only: str) -> Any:
        return loading.Plan(lambda rank, name: b"", None, False).build(loading.select(root, only), ())

    assert built("model.*") == {"model": {"w": 1, "b": 2}}
    assert built("*.w") == {"model": {"w": 1}, "optim": [None, {"w": 4}]}
    assert built("optim.1.*") == {"optim": [None, {"w": 4}]}
    assert built("nothing") == {}


# --- trees of several ranks ---


def test_trees_are_joined_and_differences_are_each_ranks_own() -> None:
    trees = {rank: flatten({"lr": 0.1, "rng": rank, f"stage{rank}": 1, "l": [1, rank]}).root for rank in range(2)}
    plan = loading.Plan(lambda rank, name: b"", None, False)
    assert plan.build(merge.merge(trees, None), ()) == {"lr": 0.1, "stage0": 1, "l": [1, None], "stage1": 1}
    assert plan.ambiguous == ["rng", "l.1"]
    preferred = loading.Plan(lambda rank, name: b"", None, False)
    assert preferred.build(merge.merge(trees, 1), ()) == {"lr": 0.1, "rng": 1, "stage0": 1, "l": [1, 1], "stage1": 1}
    assert preferred.ambiguous == []


def test_values_that_only_look_alike_are_not_the_same() -> None:
    trees = {0: flatten({"x": 1}).root, 1: flatten({"x": True}).root}
    plan = loading.Plan(lambda rank, name: b"", None, False)
    plan.build(merge.merge(trees, None), ())
    assert plan.ambiguous == ["x"]


def test_bytes_are_compared_by_content() -> None:
    same = {rank: flatten({"x": b"same"}).root for rank in range(2)}
    other = {rank: flatten({"x": bytes([rank])}).root for rank in range(2)}
    for trees, ambiguous in ((same, []), (other, ["x"])):
        plan = loading.Plan(lambda rank, name: b"same", None, False)
        plan.build(merge.merge(trees, None), ())
        assert plan.ambiguous == ambiguous


# --- who saves what ---


def test_plain_tensors_are_each_ranks_own_unless_replicated() -> None:
    state = {"model": {"w": torch.zeros(3)}, "rng": torch.zeros(2)}
    flat = flatten(state, job=tensors.Job(1, 4, ("model.*",)))
    assert [source.leaf.name for source in flat.tensors] == ["model.w", "rng@rank1"]


@pytest.mark.parametrize("seed", range(20))
def test_replicas_save_every_element_once_and_evenly(seed: int) -> None:
    print("seed", seed)
    rng = random.Random(seed)
    world = rng.randint(2, 7)
    state = {f"t{i}": torch.zeros(rng.randint(0, 40), rng.choice([0, 3, 1 << 18])) for i in range(rng.randint(1, 12))}
    saved: dict[str, torch.Tensor] = {name: torch.zeros(tensor.shape) for name, tensor in state.items()}
    loads = []
    for rank in range(world):
        # Dicts need not have the same order on all ranks.
        shuffled = dict(random.Random(rank).sample(list(state.items()), len(state)))
        shares = spread.own_shares(flatten(shuffled, job=tensors.Job(rank, world, ("*",))).tensors, rank)
        for share in shares:
            box = share.held.box
            assert share.held.data.is_contiguous() and tuple(share.held.data.shape) == box.extent
            saved[share.leaf.name][tuple(slice(o, o + e) for o, e in zip(box.offset, box.extent))] += 1
        loads.append(sum(share.held.data.nbytes for share in shares))
    assert all(bool((counts == 1).all()) for counts in saved.values())
    assert max(loads) - min(loads) <= 2 * 2 * sharding.SMALLEST_SHARE_BYTES


def test_uneven_shards_cover_a_tensor() -> None:
    for size in range(12):
        seen: list[int] = []
        for place in range(5):
            local, pieces = sharding.local_pieces((size,), [sharding.Split(0, 5, place)])
            rows = [row for piece in pieces for row in range(piece.box.offset[0], piece.box.offset[0] + piece.box.extent[0])]
            assert local == (len(rows),)
            seen += rows
        assert seen == list(range(size))
