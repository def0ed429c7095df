"""``kill -9`` at random moments: nothing wrong is ever served, and everything acknowledged is found."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

ROUNDS = 200


@pytest.mark.slow
def test_two_hundred_sudden_deaths(tmp_path: Path) -> None:
    seed = 1 if os.environ.get("CI") else random.randrange(2**31)
    script = Path(__file__).with_name("disk_killer.py")
    words = [sys.executable, str(script), str(tmp_path), str(ROUNDS), str(seed)]
    places = os.pathsep.join(sys.path)
    done = subprocess.run(words, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": places})
    assert done.returncode == 0, f"seed {seed}\n{done.stderr}"
    totals = json.loads(done.stdout)
    assert totals["rounds"] == ROUNDS
    # The deaths came while something was under way, and some while the tier was being opened.
    assert totals["in_flight"] > ROUNDS / 4, totals
    assert totals["acknowledged"] > 5 * ROUNDS, totals
    assert totals["killed_before_the_first_write"] > 0, totals
    assert totals["found"] > ROUNDS, totals
