"""One tree out of those of several ranks, for a job that comes back with another number of them.

What is the same in all trees is taken as it is. Dicts are joined, so that ranks that hold different layers complete each other.
What differs is each rank's own: it becomes Ambiguous, unless the caller has said whose to take.
"""

from esker import tree
from esker.tree import Ambiguous, Dict, Node, Sequence


def merge(trees: dict[int, Node], preferred: int | None) -> Node:
    """Merges the trees of ranks (rank -> tree). Where they differ, `preferred`'s is taken if it has one there."""
    first = next(iter(trees.values()))
    rest = list(trees.values())[1:]
    if all(node == first for node in rest):
        return first
    if isinstance(first, Dict) and all(isinstance(node, Dict) for node in rest):
        return _merge_dicts(trees, preferred)
    if isinstance(first, Sequence) and all(_same_sequence(first, node) for node in rest):
        items = [merge({rank: node.items[i] for rank, node in _sequences(trees)}, preferred) for i in range(len(first.items))]
        return Sequence(first.kind, first.fields, items)
    if preferred is not None and preferred in trees:
        return trees[preferred]
    return Ambiguous(trees)


def _sequences(trees: dict[int, Node]) -> list[tuple[int, Sequence]]:
    return [(rank, node) for rank, node in trees.items() if isinstance(node, Sequence)]


def _same_sequence(a: Sequence, b: Node) -> bool:
    return isinstance(b, Sequence) and (a.kind, a.fields, len(a.items)) == (b.kind, b.fields, len(b.items))


def _merge_dicts(trees: dict[int, Node], preferred: int | None) -> Dict:
    by_key: dict[tuple[type, tree.Key], dict[int, Node]] = {}
    for rank, node in trees.items():
        assert isinstance(node, Dict)
        for key, child in node.entries:
            by_key.setdefault((type(key), key), {})[rank] = child
    return Dict([(key, merge(nodes, preferred)) for (_, key), nodes in by_key.items()])


def common_paths(trees: list[Node]) -> set[str]:
    """The leaves that every one of the trees has, as text."""
    sets = [{tree.shown(path) for path, _ in tree.leaves(node)} for node in trees]
    return set.intersection(*sets)
