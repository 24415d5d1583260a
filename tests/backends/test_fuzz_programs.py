"""Random programs of blocks, failures, interrupts, generators, threads and tasks leave the model as it was."""

from fuzz_programs import programs


def test_whatever_a_program_does_the_model_is_as_it_was_and_the_next_block_is_right():
    made = programs(600)
    moves = {"block", "fails", "edit_fails", "generator", "overlap", "thread", "tasks", "hooks"}
    calls = {"forward", "cached", "uncached", "ot.generate", "collect"}
    assert moves | calls <= set(made) and min(made[move] for move in moves) >= 20
