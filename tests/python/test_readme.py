"""The code in README.md runs as it stands there."""

import os
import pathlib
import re
import subprocess
import sys

README = pathlib.Path(__file__).parents[2] / "client/python/README.md"


def test_the_examples_run_and_resume(tmp_path: pathlib.Path) -> None:
    examples = re.findall(r"```python\n(.*?)```", README.read_text(), re.S)
    assert len(examples) == 2
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(os.path.abspath(path) for path in sys.path)}
    for code in (*examples, examples[0] + "\nprint('resumed after', step, list(optimizer.state.values())[0]['step'].item())\n"):
        ran = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
        assert ran.returncode == 0, ran.stderr
    # The second run had nothing left to do but to load what the first had made in 100 steps.
    assert ran.stdout.strip() == "resumed after 99 100.0"
