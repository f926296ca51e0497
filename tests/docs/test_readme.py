import re
import subprocess
import sys
from typing import Literal, get_origin

from helpers import ROOT


def test_the_example_of_the_readme_runs_and_learns(tmp_path):
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, timeout=120)
    assert done.returncode == 0, done.stderr
    assert float(re.match(r"([\d.]+)% right", done.stdout)[1]) > 90


def test_every_public_name_is_there():
    import bnn_exp

    found = [getattr(bnn_exp, name) for name in bnn_exp.__all__]
    assert all(one.__doc__ for one in found if get_origin(one) is not Literal)
    assert bnn_exp.__all__ == sorted(bnn_exp.__all__)
