"""What a restore has written."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Restored:
    """items_left_out: byte items that the format has no place for. files: absolute paths; for DCP the directory."""

    run: str
    step: int
    tensors: int
    bytes: int
    items_left_out: int
    files: list[str]
