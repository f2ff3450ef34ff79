"""The tree that a checkpoint holds, out of what its ranks stored."""

from esker import _core, merge, tensors, tree, tree_json


class StoredTree:
    """The tree that a load starts from: this rank's own, or one merged from those of all ranks."""

    def __init__(self, checkpoint: _core.Checkpoint, where: str, job: tensors.Job, from_rank: int | None) -> None:
        """where: for messages. job: who loads. from_rank: whose own state to take; None: that of the rank that loads, if there are as
        many ranks as saved it. ValueError: no such rank, no tree."""
        self.checkpoint = checkpoint
        self._where = where
        self._world_size = checkpoint.info.world_size
        if from_rank is not None and not 0 <= from_rank < self._world_size:
            raise ValueError(f"{where}: from_rank {from_rank}: it was saved by ranks 0 to {self._world_size - 1}")
        same_world = self._world_size == job.world_size
        self._preferred = from_rank if from_rank is not None else job.rank if same_world else None
        self._common: set[str] | None = None
        if self._preferred is None or self._world_size == 1:
            self.widen()
        else:
            self.root = self._tree(self._preferred)

    def can_widen(self) -> bool:
        return self._common is None

    def widen(self) -> None:
        trees = {rank: self._tree(rank) for rank in range(self._world_size)}
        self._common = merge.common_paths(list(trees.values()))
        self.root = merge.merge(trees, self._preferred)

    def is_common(self, path: str) -> bool:
        """Whether every rank stored it: what only some did is not unexpected, but theirs."""
        return self._common is None or path in self._common

    def _tree(self, rank: int) -> tree.Node:
        try:
            content = self.checkpoint.read_item(rank, tree.TREE_ITEM)
        except _core.EskerError as error:
            if error.code != "NOT_FOUND":
                raise
            raise ValueError(
                f"{self._where}: it was not saved by esker.Checkpointer, and has no tree: read it with the tool that saved it"
            ) from error
        return tree_json.decode(content, rank, self._where)
