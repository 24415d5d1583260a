"""Laws of kept methods: bit-identical after a round trip, two files and nothing else, nothing executed on reading."""

import json
import pickle
import re

import pytest
import torch
from instances import ALL_METHODS, KEPT, Own, activations, fitted, log_ratio, planted, without_shape_checks

from odesteer_tl.artefacts import load, save
from odesteer_tl.methods import CAA, GradientFlow, ODESteer
from odesteer_tl.storage import read_tree, write_tree


@pytest.mark.parametrize("name", KEPT)
def test_a_round_trip_steers_bit_identically(name, tmp_path):
    method = fitted(name)
    save(method, tmp_path / "kept")
    again = load(tmp_path / "kept")
    assert type(again) is type(method)
    assert again.origin == method.origin and again.layer == method.layer
    for dtype in (torch.bfloat16, torch.float32, torch.float64):
        a = activations(4, dtype=dtype)
        assert torch.equal(again.steer(a, T=1.5), method.steer(a, T=1.5))
        assert torch.equal(again.steer(a, relative_T=0.2), method.steer(a, relative_T=0.2))
    if method.barrier is not None:
        a = activations(4, dtype=torch.float32)
        assert torch.equal(again.barrier.value(a), method.barrier.value(a))


def test_every_method_of_the_list_is_kept_but_the_users_own():
    assert set(ALL_METHODS) - set(KEPT) == {"gradient-flow-own"}


@pytest.mark.parametrize("name", KEPT)
def test_a_folder_holds_two_files_of_numbers(name, tmp_path):
    save(fitted(name), tmp_path / "a" / "b")
    assert {file.name for file in (tmp_path / "a" / "b").iterdir()} == {"config.json", "tensors.safetensors"}
    assert json.loads((tmp_path / "a" / "b" / "config.json").read_text(encoding="utf-8"))["format"] == 1


def test_reading_never_unpickles(tmp_path, monkeypatch):
    save(fitted("odesteer"), tmp_path)
    planted().save(tmp_path / "acts")

    def refuse(*args, **kwargs):
        raise AssertionError("unpickling")

    for module, name in ((torch, "load"), (pickle, "load"), (pickle, "loads"), (pickle, "Unpickler")):
        monkeypatch.setattr(module, name, refuse)
    load(tmp_path)
    type(planted()).load(tmp_path / "acts")


def test_saving_again_replaces_what_was_there(tmp_path):
    save(fitted("odesteer"), tmp_path)
    save(fitted("caa"), tmp_path)
    assert isinstance(load(tmp_path), CAA)
    a = activations(2)
    assert torch.equal(load(tmp_path).steer(a, T=1.0), fitted("caa").steer(a, T=1.0))


def test_a_moved_method_is_kept_as_it_is(tmp_path):
    method = fitted("gradient-flow").to(dtype=torch.float64)
    save(method, tmp_path)
    assert load(tmp_path).barrier.weight.dtype == torch.float64


@pytest.mark.parametrize("exists", [False, True])
def test_a_users_own_barrier_is_refused_and_the_folder_left_alone(exists, tmp_path):
    folder = tmp_path / "kept"
    if exists:
        save(fitted("caa"), folder)
    before = {file.name: file.read_bytes() for file in folder.iterdir()} if exists else None
    with pytest.raises(ValueError, match=r"cannot be saved: files keep numbers, not code. Save its own parameters"):
        save(GradientFlow(Own(), layer=1), folder)
    assert folder.exists() == exists
    if exists:
        assert {file.name: file.read_bytes() for file in folder.iterdir()} == before


@pytest.mark.parametrize("name", ["os.system", "builtins.eval", "ContrastiveActivations", "Own", "Flow", "", None])
def test_a_class_that_is_not_one_of_ours_is_refused(name, tmp_path):
    save(fitted("odesteer"), tmp_path)
    for place in ("method", "barrier"):
        tree = read_tree(tmp_path)
        (tree["method"] if place == "method" else tree["method"]["barrier"])["class"] = name
        write_tree(tmp_path / place, tree)
        with pytest.raises(ValueError, match=rf"holds a {name!r}, which this version of odesteer_tl does not know"):
            load(tmp_path / place)


def test_a_part_is_no_method(tmp_path):
    save(fitted("odesteer"), tmp_path)
    tree = read_tree(tmp_path)
    write_tree(tmp_path / "part", {**tree, "method": tree["method"]["barrier"]})
    with pytest.raises(ValueError, match=r"holds no fitted method; activations are read with ContrastiveActivations"):
        load(tmp_path / "part")
    planted().save(tmp_path / "acts")
    with pytest.raises(ValueError, match="holds no fitted method"):
        load(tmp_path / "acts")


@pytest.mark.parametrize("change", ["missing", "extra", "renamed"])
def test_tampered_fields_are_refused(change, tmp_path):
    save(fitted("odesteer"), tmp_path)
    tree = read_tree(tmp_path)
    if change in ("missing", "renamed"):
        steps = tree["method"].pop("steps")
    if change == "renamed":
        tree["method"]["__init__"] = steps
    if change == "extra":
        tree["method"]["hook"] = "os.system"
    write_tree(tmp_path / "tampered", tree)
    with pytest.raises(
        ValueError, match=r"ODESteer needs the fields \['barrier', 'origin', 'solver', 'steps'\], found"
    ):
        load(tmp_path / "tampered")


def test_a_tensor_that_is_not_there_is_refused(tmp_path):
    save(fitted("odesteer"), tmp_path)
    config = tmp_path / "config.json"
    config.write_text(config.read_text().replace("tree.method.barrier.weight", "tree.method.barrier.other"))
    with pytest.raises(ValueError, match=r"names a tensor tree\.method\.barrier\.other that .* lacks"):
        load(tmp_path)


@pytest.mark.parametrize("text", ["[]", "{}", '{"format": 2, "tree": {}}', '{"format": 1, "tree": 3}', "not json"])
def test_a_config_of_another_kind_is_refused(text, tmp_path):
    save(fitted("caa"), tmp_path)
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ValueError, match=r"reads format 1|Expecting value"):
        load(tmp_path)


def test_a_folder_without_files_says_which_is_missing(tmp_path):
    with pytest.raises(ValueError, match=r"is not a saved odesteer_tl folder: it has no config\.json"):
        load(tmp_path)
    save(fitted("caa"), tmp_path)
    (tmp_path / "tensors.safetensors").unlink()
    with pytest.raises(ValueError, match=r"it has no tensors\.safetensors"):
        load(tmp_path)


def test_a_tree_of_plain_values_comes_back_as_it_went(tmp_path):
    tree = {"a": [1, 2.5, None, True, "ä"], "b": {"c": torch.arange(3), "d": [torch.ones(2, 2, dtype=torch.bfloat16)]}}
    write_tree(tmp_path, tree)
    again = read_tree(tmp_path)
    assert again["a"] == tree["a"]
    assert torch.equal(again["b"]["c"], torch.arange(3))
    assert again["b"]["d"][0].dtype == torch.bfloat16
    with pytest.raises(TypeError):
        write_tree(tmp_path / "none", {"a": object()})
    assert not (tmp_path / "none").exists()


def test_tensors_that_share_memory_are_kept_apart(tmp_path):
    base = torch.arange(6.0)
    write_tree(tmp_path, {"a": base, "b": base[:3], "c": base.view(2, 3).T})
    again = read_tree(tmp_path)
    assert torch.equal(again["b"], base[:3]) and torch.equal(again["c"], base.view(2, 3).T)


def test_a_loaded_method_goes_on_working(tmp_path):
    method = ODESteer.fit(planted(), steps=4)
    save(method, tmp_path)
    again = load(tmp_path)
    assert again.to(dtype=torch.float64).steps == 4
    assert again.edits(T=1.0)[0].write.layer == 3
    assert torch.equal(again.trajectory(activations(2), T=1.0).h, method.trajectory(activations(2), T=1.0).h)
    assert torch.equal(log_ratio("polynomial-2-unit").weight, again.barrier.weight)


@pytest.mark.parametrize(
    ("field", "value"),
    [("steps", "10"), ("steps", 2.5), ("solver", "heun"), ("barrier", None), ("barrier", 3), ("origin", None)],
)
def test_a_value_of_another_type_is_refused_when_it_is_read(field, value, tmp_path):
    save(fitted("odesteer"), tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["tree"]["method"][field] = value
    (tmp_path / "config.json").write_text(json.dumps(config))
    with without_shape_checks(), pytest.raises(ValueError, match=re.escape(str(tmp_path))):
        load(tmp_path)


@pytest.mark.parametrize(
    ("name", "content"), [("config.json", b"{"), ("config.json", b"\xff"), ("tensors.safetensors", b"")]
)
def test_a_broken_file_is_refused_by_its_folder(name, content, tmp_path):
    save(fitted("caa"), tmp_path)
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match="cannot be read"):
        load(tmp_path)
