"""What is saved is what is loaded again: a save refuses what a load would, and a load owes nothing to the file."""

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from instances import fitted, planted, without_shape_checks
from safetensors.torch import save_file
from saved_folders import resealed, tensors_of

from odesteer_tl.data.activations import ContrastiveActivations
from odesteer_tl.save_load import load, save


@pytest.fixture(autouse=True)
def as_users_run_it():
    with without_shape_checks():
        yield


def caa(**changes):
    method = fitted("caa")
    if "weight" in changes:
        return replace(method, barrier=replace(method.barrier, **changes))
    return replace(method, origin=replace(method.origin, **changes))


@pytest.mark.parametrize(
    "changes",
    [
        {"model_name": ["a"]},
        {"model_name": Path("a")},
        {"model_name": "x" * 2**24},
        {"weight": torch.zeros(24, device="meta")},
        {"weight": torch.eye(24).to_sparse()},
        {"weight": torch.zeros(0)},
        {"weight": torch.zeros([1] * 70)},
        {"weight": torch.zeros(24, dtype=torch.cfloat)},
    ],
    ids=lambda changes: str(changes)[:40],
)
def test_a_method_that_could_not_be_loaded_is_not_saved(changes, tmp_path):
    with pytest.raises(ValueError, match=r"\w"):
        save(caa(**changes), tmp_path / "kept")
    assert not (tmp_path / "kept").exists()


@pytest.mark.parametrize("thing", [3, "caa", None, fitted("caa").barrier], ids=str)
def test_what_is_no_method_is_not_saved(thing, tmp_path):
    with pytest.raises(ValueError, match=r"What is to be saved holds no fitted method"):
        save(thing, tmp_path / "kept")
    assert not (tmp_path / "kept").exists()


@pytest.mark.parametrize("changes", [{"model_name": ["a"]}, {"model_name": Path("a")}, {"layer": "1"}])
def test_activations_that_could_not_be_loaded_are_not_saved(changes, tmp_path):
    acts = planted()
    for name, value in changes.items():
        object.__setattr__(acts, name, value)
    with pytest.raises(ValueError, match="which is no"):
        acts.save(tmp_path / "kept")
    assert not (tmp_path / "kept").exists()


def test_a_text_of_another_class_is_kept_as_text(tmp_path):
    class Name(str):
        pass

    save(caa(model_name=Name("gpt2")), tmp_path)
    assert load(tmp_path).origin.model_name == "gpt2"


def test_what_was_loaded_does_not_change_with_its_file(tmp_path):
    """Nor does Python die where the file is cut off: a file that is mapped does both."""
    save(fitted("caa"), tmp_path / "m")
    planted().save(tmp_path / "a")
    method, acts = load(tmp_path / "m"), ContrastiveActivations.load(tmp_path / "a")
    kept = [tensor.clone() for tensor in (method.barrier.weight, acts.desired)]
    for folder in ("m", "a"):
        file = tensors_of(tmp_path / folder)
        with file.open("r+b") as opened:
            opened.write(bytes(file.stat().st_size))
    assert torch.equal(method.barrier.weight, kept[0]) and torch.equal(acts.desired, kept[1])


def test_a_folder_of_links_is_read_as_the_files_are(tmp_path):
    """As the cache of Hugging Face keeps what was downloaded."""
    save(fitted("caa"), tmp_path / "kept")
    (tmp_path / "links").mkdir()
    for file in (tmp_path / "kept").iterdir():
        os.symlink(file, tmp_path / "links" / file.name)
    assert torch.equal(load(tmp_path / "links").barrier.weight, fitted("caa").barrier.weight)
    tensors_of(tmp_path / "kept").unlink()
    with pytest.raises(ValueError, match=r"it has no tensors-"):
        load(tmp_path / "links")


@pytest.mark.parametrize("change", [{"sha256": None}, {"sha256": 3}, {"tree_sha256": None}, {"format": 2.0}])
def test_a_folder_without_its_digests_is_refused(change, tmp_path):
    save(fitted("caa"), tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(ValueError, match=str(tmp_path)):
        load(tmp_path)


@pytest.mark.parametrize("tensor", [torch.zeros([1] * 70), torch.zeros(24, dtype=torch.cfloat)])
def test_numbers_that_torch_only_holds_are_refused(tensor, tmp_path):
    save(fitted("caa"), tmp_path)
    save_file({"tree.method.barrier.weight": tensor}, tensors_of(tmp_path))
    resealed(tmp_path)
    with pytest.raises(ValueError, match=str(tmp_path)):
        load(tmp_path)
