"""Tests scripts/kill_and_resume.py, which kills runs and sweeps and fills disks."""

import subprocess
import sys

import pytest
from helpers import ROOT

SCRIPT = ROOT / "scripts/kill_and_resume.py"
SMALL = ("model.hidden_size=16", "trainer.epochs=60", "trainer.batch_size=64")


@pytest.mark.slow
def test_nothing_is_lost_by_kills_and_full_disks():
    command = [sys.executable, SCRIPT, "--kills=5", "--sweep-kills=3", "--disks=3", "--longest=2", *SMALL]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0 and done.stdout.endswith("nothing was lost\n"), done.stdout + done.stderr
    assert done.stdout.count("are those of the unbroken run") == 1 + 6


def test_the_script_notices_a_run_that_went_back(tmp_path):
    """The script detects a repeated epoch, a lost epoch, and a damaged checkpoint."""
    sys.path.insert(0, str(SCRIPT.parent))
    try:
        import kill_and_resume as script
    finally:
        sys.path.pop(0)
    run = tmp_path / "run"
    said = f"digits: …; in {run}\nresumed after epoch 3, batch 1\n"
    script.check_start(said, {run: 3}, {run: 4})
    for out, before, done in ((said, 4, 5), (said, 3, 2), ("Traceback", 0, 0)):
        with pytest.raises(script.Lost):
            script.check_start(out, {run: before}, {run: done})
    (run / "checkpoints").mkdir(parents=True)
    assert script.epochs_done(run) == 0
    (run / "checkpoints/last.pt").write_bytes(b"half")
    with pytest.raises(script.Lost, match="not a readable checkpoint"):
        script.epochs_done(run)
