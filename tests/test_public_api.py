"""The public face: names, what an import loads, which way imports point, and how long a module may be."""

import ast
import inspect
import subprocess
import sys
from functools import cache
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "odesteer_tl"
MODULES = sorted(PACKAGE.rglob("*.py"))

PUBLIC = [
    "ALQR", "CAA", "HPR", "ITI", "RK4", "SPID", "Ablation", "Angular", "Barrier", "Calibrated", "Calibration",
    "Constant", "Contrast", "ContrastiveActivations", "DataCheck", "Edit", "Euler", "Flow", "Gradient",
    "GradientFlow", "HeadShift", "LayerChoice", "Layers", "Linear", "LinearAcT", "LogRatioBarrier", "MiMiC", "Midpoint",
    "ODESteer", "Polynomial", "PolynomialSketch", "REControl", "RandomDirection", "RandomFourier", "RepE", "Site",
    "State", "Strength", "StepODESteer", "TokenWeights", "Tokenised", "Trajectory", "TruthFlow", "Tuned",
    "UnitGradient", "check_data", "choose_layer", "collect", "collect_layers", "calibrate", "compare", "contrastive",
    "generate", "generate_strengths", "integrate", "intervene", "load", "load_demo", "load_model", "plots", "save",
    "steering", "steering_hook", "sweep", "token_map", "tune",
]  # fmt: skip

ORDER = [
    "_progress", "startup", "_memory", "portable", "_shapes", "data", "remote", "flows",
    "interventions", "methods", "backends", "control", "save_load", "assets", "evaluation", "benchmarks",
    "plots", "parity", "integrations", "cli",
]  # fmt: skip
"""The way the data flows: a module imports from its own folder and from those before it."""

MODEL_LIBRARIES = {"transformer_lens", "nnsight", "transformers"}


NAMES = {
    ".".join(("odesteer_tl", *path.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(".__init__"): path
    for path in MODULES
}


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def place(path: Path) -> str:
    """The first part of a file's module name below the package."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


@cache
def imports(path: Path) -> set[str]:
    """Every absolute module name that a file imports, at its top or inside a function."""
    found = set()
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            inside = {alias.name: f"{node.module}.{alias.name}" for alias in node.names}
            found |= {inside[name] if inside[name] in NAMES else node.module for name in inside}
    return found


def named(path: Path) -> str:
    return str(path.relative_to(PACKAGE))


def test_the_public_names_are_pinned_and_resolve():
    import odesteer_tl

    assert sorted(odesteer_tl.__all__) == sorted(PUBLIC)
    assert len(set(odesteer_tl.__all__)) == len(odesteer_tl.__all__)
    for name in odesteer_tl.__all__:
        thing = getattr(odesteer_tl, name)
        assert inspect.getdoc(thing), f"{name} has no docstring"


def test_importing_the_package_loads_no_model_library_and_no_scikit_learn():
    """In a fresh process, without the import hook of the tests."""
    code = "import sys, odesteer_tl.flows.grid_search; print(*{name.split('.')[0] for name in sys.modules})"
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=PACKAGE.parent, timeout=120, check=True
    )
    loaded = set(run.stdout.split())
    assert "odesteer_tl" in loaded and "torch" in loaded
    assert loaded.isdisjoint({"sklearn", "matplotlib", "beartype", "gguf"} | MODEL_LIBRARIES)


def test_imports_point_upward():
    later = [
        f"{named(path)} imports {module}, which comes later"
        for path in MODULES
        if place(path) not in ("__init__", "__main__")
        for module in imports(path)
        if module.startswith("odesteer_tl.") and ORDER.index(module.split(".")[1]) > ORDER.index(place(path))
    ]
    assert not later


def test_no_module_needs_itself():
    """No circles, within a folder neither. What a package's own file only passes on does not count."""
    needs = {name: {m for m in imports(path) if m in NAMES and m != name} for name, path in NAMES.items()}
    while ready := {name for name, others in needs.items() if not others & set(needs)}:
        needs = {name: others for name, others in needs.items() if name not in ready}
    assert not needs, f"circles among {sorted(needs)}"


def test_only_backends_and_their_comparison_import_a_model_library():
    for path in MODULES:
        if place(path) not in ("backends", "parity"):
            assert {module.split(".")[0] for module in imports(path)}.isdisjoint(MODEL_LIBRARIES), named(path)


HARNESSES = {"lm_eval", "inspect_ai"}


def test_a_harness_is_imported_by_its_own_folder_alone():
    """They are extras: nothing else needs them, and what loads a folder is asked for it."""
    for path in MODULES:
        harnesses = {module.split(".")[0] for module in imports(path)} & HARNESSES
        assert harnesses <= {{"lm_eval": "lm_eval", "inspect": "inspect_ai"}.get(path.parent.name)}, named(path)
        if place(path) == "integrations":
            continue
        asked = [module for module in imports(path) if module.startswith("odesteer_tl.integrations.")]
        assert not asked or named(path) == "cli/lm_eval_command.py", named(path)


LIBRARIES = sorted(path.parent.name for path in PACKAGE.glob("backends/*/backend.py"))
PUBLIC_FROM_A_LIBRARY = {"__init__.py", "backends/__init__.py"}
"""`ot.intervene` is a verb of nnsight's own, and public."""


def test_general_code_imports_no_librarys_folder():
    """`backends.base` imports them by name, once a model is there."""
    assert LIBRARIES == ["huggingface", "nnsight", "transformer_lens"]
    for path in MODULES:
        if place(path) == "parity" or named(path) in PUBLIC_FROM_A_LIBRARY:
            continue
        own = path.parent.name if path.parent.parent.name == "backends" else None
        others = tuple(f"odesteer_tl.backends.{other}" for other in LIBRARIES if other != own)
        assert not [module for module in imports(path) if module.startswith(others)], named(path)


def test_nothing_is_unpickled_or_evaluated():
    refused = {"torch.load", "torch.save", "eval", "exec", "np.load", "numpy.load"}
    for path in MODULES:
        assert {module.split(".")[0] for module in imports(path)}.isdisjoint({"pickle", "dill", "joblib", "shelve"})
        calls = [ast.unparse(node.func) for node in ast.walk(tree_of(path)) if isinstance(node, ast.Call)]
        assert refused.isdisjoint(calls), named(path)


def test_no_module_is_longer_than_250_lines():
    lines = {named(path): len(path.read_text(encoding="utf-8").splitlines()) for path in MODULES}
    assert not {name: number for name, number in lines.items() if number > 250}


def test_every_module_class_and_public_function_says_what_it_is_for():
    for path in MODULES:
        tree = tree_of(path)
        assert ast.get_docstring(tree), f"{named(path)} has no docstring"
        for node in tree.body:
            if isinstance(node, (ast.ClassDef, ast.FunctionDef)) and not node.name.startswith("_"):
                assert ast.get_docstring(node), f"{named(path)}: {node.name} has no docstring"
