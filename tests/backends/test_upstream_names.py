"""What is read of other libraries by name: a failure says which of them changed, and what happens without the name."""

import importlib
import inspect
import tomllib
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace

import newest
import pytest
import torch
from packaging.requirements import Requirement

from odesteer_tl.backends import upstream_names
from odesteer_tl.backends.upstream_names import CARRIED, NAMES, PARAMETERS, library, made_by, need, need_parameter
from odesteer_tl.parity import models as made


def resolved(package: str, path: str):
    """The object at a dotted path of a package; "()" makes an instance."""
    importlib.import_module(package)
    found, at = importlib.import_module(package), package
    for part in path.split("."):
        name, made = part.removesuffix("()"), part.endswith("()")
        if not hasattr(found, name):
            importlib.import_module(f"{at}.{name}")
        found, at = getattr(found, name), f"{at}.{name}"
        found = found() if made else found
    return found


@pytest.mark.parametrize("each", NAMES, ids=lambda each: f"{each.library}.{each.owner}")
def test_names_are_there(each):
    said = f"{library(each.library)} changed: {{}} of {each.owner} is gone; without it: {each.without}"
    try:
        owner = resolved(each.library, each.owner)
    except (ImportError, AttributeError) as error:
        pytest.fail(said.format(each.owner) + f" ({error})")
    gone = [name for name in each.names.split() if not hasattr(owner, name)]
    if each.owner.endswith("LinearAttentionLayer"):  # set where an instance is made
        source = "".join(inspect.getsource(kind) for kind in owner.__mro__[:-1] if kind.__module__ != "abc")
        gone = [name for name in gone if f"self.{name}" not in source]
    if each.owner.endswith(("DynamicCache", "EncoderDecoderCache", "StaticLayer")):
        source = "".join(inspect.getsource(kind) for kind in owner.__mro__[:-1] if kind.__module__ != "abc")
        gone = [name for name in gone if f"self.{name}" not in source]
    assert not gone, said.format(", ".join(gone))


@pytest.mark.parametrize("each", PARAMETERS, ids=lambda each: each.owner)
def test_arguments_are_there(each):
    taken = inspect.signature(resolved(each.library, each.owner).forward).parameters
    gone = [name for name in each.names.split() if name not in taken]
    assert not gone, (
        f"{library(each.library)} changed: {each.owner}.forward takes no {gone}; without it: {each.without}"
    )


def carried(package: str):
    hf = made.hugging_face("llama")
    model = (made.as_nnsight if package == "nnsight" else made.as_bridge)(hf, made.tokenizer())
    return {"model": model, "block": model.model.layers[0] if package == "nnsight" else model.blocks[0]}


@pytest.mark.parametrize("each", CARRIED, ids=lambda each: f"{each.library}.{each.owner}")
def test_models_carry_what_is_read(each):
    first, _, rest = each.owner.partition(".")
    owner = carried(each.library)[first]
    for part in rest.split(".") if rest else ():
        owner = getattr(owner, part)
    kinds = {*dir(owner), *dir(type(owner))}  # nnsight's output and inputs are there within a trace alone
    gone = [name for name in each.names.split() if name not in kinds and not hasattr(owner, name)]
    said = f"{library(each.library)} changed: {', '.join(gone)} of {each.owner} is gone; without it: {each.without}"
    assert not gone, said


def test_the_versions_are_those_of_the_ranges():
    """pyproject.toml bounds what is tested; beyond it run `python tests/newest.py`."""
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = {Requirement(each).name: Requirement(each).specifier for each in project["dependencies"]}
    for name in ("transformers", "transformer-lens", "nnsight"):
        assert version(name) in wanted[name], f"{name} {version(name)} is beyond what was tested, {wanted[name]}"
        assert any(bound.operator == "<" for bound in wanted[name]), name


def test_what_is_gone_is_named_with_its_library_version_and_remedy():
    class Model(torch.nn.Module):
        def forward(self, ids, **kwargs):
            return ids

    Model.__module__ = "transformers.models.tomorrow"
    told = rf"transformers {version('transformers')} \(Model\) .*{{}}.*constraints\.txt"
    with pytest.raises(ValueError, match=told.format("has no tokenizer, which is told")):
        need(Model(), "tokenizer", "which is told")
    with pytest.raises(ValueError, match=told.format("takes no argument attention_mask, which marks the pads")):
        need_parameter(Model(), "attention_mask", "which marks the pads")
    need_parameter(Model(), "ids", "")
    assert made_by(Model()) == f"transformers {version('transformers')} (Model)"
    assert library("no_such_package") == "no_such_package"
    assert upstream_names.library("torch").startswith("torch 2")


def test_a_batch_that_would_lose_its_mask_is_refused():
    from odesteer_tl.backends.checks import check_mask_taken

    hf = made.hugging_face("llama")
    model = made.as_nnsight(hf, made.tokenizer())
    whole, padded = torch.ones(2, 3, dtype=torch.bool), torch.tensor([[True, True], [False, True]])
    check_mask_taken(model, padded)

    class Swallowing(torch.nn.Module):
        def forward(self, input_ids, **kwargs):
            return input_ids

    model.__dict__["_module"] = Swallowing()
    check_mask_taken(model, whole)
    with pytest.raises(ValueError, match="takes no argument attention_mask"):
        check_mask_taken(model, padded)


def test_a_configuration_that_does_not_say_its_width_is_told_of():
    from odesteer_tl.backends.model_info import context_of

    model = made.as_nnsight(made.hugging_face("llama"), made.tokenizer())
    assert context_of(model) is not None
    model._module.config = SimpleNamespace(rope_parameters={"rope_theta": 1e4}, max_position_embeddings=None)
    with pytest.warns(UserWarning, match="does not say its max_position_embeddings"):
        assert context_of(model) is None


def test_the_command_that_tries_the_newest_names_tests_that_exist_and_packages_of_an_index():
    assert all((newest.ROOT / path).is_dir() for path in newest.FAST)
    wanted, installed = newest.unbounded(), set(newest.pins())
    assert {"transformers", "transformer-lens", "nnsight", "gguf"} <= set(wanted)
    assert {newest._plain(name) for name in wanted} <= installed
