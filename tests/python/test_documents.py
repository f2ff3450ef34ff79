"""The code in the documents runs as it stands there, and prints what they say."""

import contextlib
import io
import os
import pathlib
import re
import uuid
from typing import NamedTuple

import pytest
import torch.distributed as dist
from ranks import run_apart

ROOT = pathlib.Path(__file__).parents[2]
GUIDE = ROOT / "docs/pytorch.md"


class Block(NamedTuple):
    """A block of Python. ranks: it is a script, for so many ranks, and then for so many; none: it goes on from the block before."""

    ranks: list[int]
    code: str


def blocks(document: pathlib.Path) -> list[Block]:
    found = re.findall(r"^```python(?: ranks=([\d,]+))?\n(.*?)^```$", document.read_text(), re.M | re.S)
    assert found and len(found) == document.read_text().count("```python"), f"{document}: a block that is no block"
    return [Block([int(number) for number in ranks.split(",") if number], code) for ranks, code in found]


def torchrun(ranks: int, code: str, directory: pathlib.Path) -> str:
    """What the first rank prints, when the script is run in that directory with what torchrun tells its ranks."""
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    told = {"MASTER_PORT": str(store.port), "TORCHELASTIC_RUN_ID": str(uuid.uuid4()), "TORCHELASTIC_USE_AGENT_STORE": "True"}
    return str(run_apart(ranks, run_script, code, directory, told)[0])


def run_script(code: str, directory: pathlib.Path, environment: dict[str, str]) -> str:
    os.environ.update(environment)
    os.chdir(directory)
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        exec(compile(code, "script", "exec"), {"__name__": "__main__"})
    return printed.getvalue()


def test_the_readme_s_examples_run_and_resume(tmp_path: pathlib.Path) -> None:
    examples = [block.code for block in blocks(ROOT / "client/python/README.md")]
    assert len(examples) == 2
    for example in examples:
        torchrun(1, example, tmp_path)
    again = torchrun(1, examples[0] + "\nprint('resumed after', step, list(optimizer.state.values())[0]['step'].item())\n", tmp_path)
    # The second run had nothing left to do but to load what the first had made in 100 steps.
    assert again.strip() == "resumed after 99 100.0"


def promised(code: str) -> list[str]:
    """What the comments behind print(...) say that it prints, up to the first "..."."""
    return [said.split("...")[0] for said in re.findall(r"^ *print\(.*\) +# (.*)$", code, re.M)]


def test_the_guide_s_code_runs_in_order(tmp_path: pathlib.Path) -> None:
    code = "\n".join(block.code for block in blocks(GUIDE) if not block.ranks)
    printed = torchrun(1, code, tmp_path).splitlines()
    for beginning in promised(code):
        assert any(line.startswith(beginning) for line in printed), f"{beginning!r} is not in {printed}"


@pytest.mark.parametrize("number", range(sum(bool(block.ranks) for block in blocks(GUIDE))))
def test_the_guide_s_scripts_run(tmp_path: pathlib.Path, number: int) -> None:
    block = [block for block in blocks(GUIDE) if block.ranks][number]
    printed = [torchrun(ranks, block.code, tmp_path) for ranks in block.ranks]
    for ranks, text in list(zip(block.ranks, printed))[1:]:
        assert f"{ranks} ranks went from step 10" in text  # where the ranks before had stopped
