"""One torch thread per worker, and the files that take longest first, so that both workers end together.

beartype is imported first: once nnsight has been imported, importing it fails (nnsight gives every object a `save`).
"""

import gc
import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # also of the processes that tests start
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # names of no model are not sought elsewhere

import beartype  # noqa: F401
import pytest
import shape_checks

shape_checks.install()

LONGEST = (
    "test_fuzz_programs.py", "test_readme.py", "test_demo_report.py", "test_fit_and_generate.py",
    "test_command_line.py", "test_closed_loops.py", "test_paper_report.py", "test_compare.py", "test_sweep.py",
    "test_planted_faults.py", "test_truthfulqa.py", "test_generate_strengths.py", "test_parity.py",
    "test_steering_on_a_server.py", "test_plots.py", "test_nnsight.py",
    "test_truth_flow.py", "test_server_replies.py", "test_calibrating_on_a_server.py", "test_planted.py",
    "test_fuzz_save_load.py", "test_interrupted.py", "test_calibrate.py", "test_nnsight_blocks.py",
    "test_progress.py", "test_owners.py", "test_forward_passes.py", "test_server_failures.py",
    "test_closed_loop_rows.py", "test_grid_search.py", "test_barriers.py", "test_generate.py", "test_imports.py",
    "test_checks_of_payloads.py", "test_jacobians.py", "test_loopback_server.py", "test_huggingface.py",
    "test_calibrated.py",
)  # fmt: skip

SERVER = "from server_clients import"


def pytest_collection_modifyitems(items):
    import torch  # not above: the process that starts the workers runs no test

    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    order = {name: number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: order.get(item.path.name, len(LONGEST)))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """A file goes to one worker, and the files that ask the loopback server all to the same: it is started once."""
    from xdist.scheduler import LoadFileScheduling

    tests = (config.rootpath / "tests").rglob("test_*.py")
    asking = {path.relative_to(config.rootpath).as_posix() for path in tests if SERVER in path.read_text("utf-8")}

    class OneServer(LoadFileScheduling):
        def _split_scope(self, nodeid):
            file = super()._split_scope(nodeid)
            return SERVER if file in asking else file

    return OneServer(config, log)


def pytest_collection_finish():
    """What has been imported and collected by now lives until the end: no collection of garbage looks at it again.

    A full one takes 0.4 s otherwise, and tests ask for hundreds.
    """
    gc.collect()
    gc.freeze()


def pytest_runtest_setup():
    shape_checks.begin_test()


@pytest.fixture
def short_training(monkeypatch):
    """Networks are trained for 50 steps where few rows are given, for tests that do not ask what they have learned."""
    from odesteer_tl.flows import networks

    monkeypatch.setattr(networks, "LEAST_STEPS", 50)
