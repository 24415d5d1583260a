"""Random programs of blocks, failures, interrupts, generators, threads and tasks leave the model as it was."""

import json
import subprocess
import sys
from pathlib import Path

SCRIPT = f"""
import json, sys
sys.path.insert(0, {str(Path(__file__).parents[1])!r})
from fuzz_programs import programs
print(json.dumps(programs(2000)))
"""


def test_whatever_a_program_does_the_model_is_as_it_was_and_the_next_block_is_right():
    """In a process of its own, where the package runs as for its users: not within the checks of shapes."""
    ran = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    made = json.loads(ran.stdout)
    moves = {"block", "fails", "edit_fails", "generator", "overlap", "thread", "tasks", "hooks"}
    calls = {"forward", "cached", "uncached", "ot.generate", "collect"}
    assert moves | calls <= set(made) and min(made[move] for move in moves) >= 30
