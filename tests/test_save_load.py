"""Laws of kept methods: bit-identical after a round trip, two files and nothing else, nothing executed on reading."""

import json
import os
import pickle
import re
import subprocess
import sys

import pytest
import torch
from instances import ALL_METHODS, KEPT, Own, activations, fitted, log_ratio, planted, strengths, without_shape_checks
from safetensors.torch import load_file, save_file
from saved_folders import resealed, tensors_of

from odesteer_tl.data.storage import read_tree, write_tree
from odesteer_tl.methods import CAA, GradientFlow, ODESteer
from odesteer_tl.save_load import load, save


@pytest.mark.parametrize("name", KEPT)
def test_a_round_trip_steers_bit_identically(name, tmp_path):
    method = fitted(name)
    save(method, tmp_path / "kept")
    again = load(tmp_path / "kept")
    assert type(again) is type(method)
    assert again.origin == method.origin and again.layer == method.layer
    for dtype in (torch.bfloat16, torch.float32, torch.float64):
        a = activations(4, dtype=dtype)
        for strength in strengths(name, {"T": 1.5}, {"relative_T": 0.2}):
            assert torch.equal(again.steer(a, **strength), method.steer(a, **strength))
    if method.barrier is not None:
        a = activations(4, dtype=torch.float32)
        assert torch.equal(again.barrier.value(a), method.barrier.value(a))


def test_every_method_of_the_list_is_kept_but_the_users_own():
    assert set(ALL_METHODS) - set(KEPT) == {"gradientflow-own"}


@pytest.mark.parametrize("name", KEPT)
def test_a_folder_holds_two_files_of_numbers(name, tmp_path):
    save(fitted(name), tmp_path / "a" / "b")
    config = json.loads((tmp_path / "a" / "b" / "config.json").read_text(encoding="utf-8"))
    assert {file.name for file in (tmp_path / "a" / "b").iterdir()} == {"config.json", config["tensors"]}
    assert config["format"] == 2 and config["tensors"].endswith(".safetensors")


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
    method = fitted("gradientflow").to(dtype=torch.float64)
    save(method, tmp_path)
    assert load(tmp_path).barrier.weight.dtype == torch.float64


@pytest.mark.parametrize("exists", [False, True])
def test_a_users_own_barrier_is_refused_and_the_folder_left_alone(exists, tmp_path):
    folder = tmp_path / "kept"
    if exists:
        save(fitted("caa"), folder)
    before = {file.name: file.read_bytes() for file in folder.iterdir()} if exists else None
    with pytest.raises(
        ValueError, match=r"^A Own cannot be saved: files keep numbers, not code. Save its own parameters"
    ):
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
    with pytest.raises(ValueError, match=r"ODESteer needs the fields \['barrier', 'origin', 'solver', 'steps', 'u"):
        load(tmp_path / "tampered")


def test_a_tensor_that_is_not_there_is_refused(tmp_path):
    save(fitted("odesteer"), tmp_path)
    resealed(tmp_path, lambda tree: tree["method"]["barrier"].update(weight={"tensor": "tree.method.barrier.other"}))
    with pytest.raises(ValueError, match=r"names a tensor tree\.method\.barrier\.other that .* lacks"):
        load(tmp_path)


@pytest.mark.parametrize("text", ["[]", "{}", '{"format": 2, "tree": {}}', '{"format": 1, "tree": 3}', "no"])
def test_a_config_of_another_kind_is_refused(text, tmp_path):
    save(fitted("caa"), tmp_path)
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ValueError, match=r"reads formats 1 and 2|Expecting value|of something else"):
        load(tmp_path)


def test_a_folder_without_files_says_which_is_missing(tmp_path):
    with pytest.raises(ValueError, match=r"is not a saved odesteer_tl folder: it has no config\.json"):
        load(tmp_path)
    save(fitted("caa"), tmp_path)
    tensors_of(tmp_path).unlink()
    with pytest.raises(ValueError, match=r"it has no tensors-[0-9a-f]+\.safetensors"):
        load(tmp_path)


def test_a_tree_of_plain_values_comes_back_as_it_went(tmp_path):
    tree = {"a": [1, 2.5, None, True, "ä"], "b": {"c": torch.arange(3), "d": [torch.ones(2, 2, dtype=torch.bfloat16)]}}
    write_tree(tmp_path, tree)
    again = read_tree(tmp_path)
    assert again["a"] == tree["a"]
    assert torch.equal(again["b"]["c"], torch.arange(3))
    assert again["b"]["d"][0].dtype == torch.bfloat16
    with pytest.raises(ValueError, match="object is not JSON serializable"):
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
    resealed(tmp_path, lambda tree: tree["method"].update({field: value}))
    with without_shape_checks(), pytest.raises(ValueError, match=re.escape(str(tmp_path))):
        load(tmp_path)


@pytest.mark.parametrize(("name", "content"), [("config.json", b"{"), ("config.json", b"\xff"), ("tensors", b"")])
def test_a_broken_file_is_refused_by_its_folder(name, content, tmp_path):
    save(fitted("caa"), tmp_path)
    (tensors_of(tmp_path) if name == "tensors" else tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=r"cannot be read|changed or damaged"):
        load(tmp_path)


def test_a_full_disc_leaves_the_old_method_whole(tmp_path):
    """In a process of its own, whose files may not be longer than 20,000 bytes."""
    program = """
import resource, signal, sys
import torch
import odesteer_tl as ot

def constant(value):
    side = torch.full((2, 8192), float(value))
    return ot.CAA.fit(ot.ContrastiveActivations(side, torch.zeros(2, 8192), layer=value))

ot.save(constant(1), sys.argv[1])
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
try:
    ot.save(constant(9), sys.argv[1])
except OSError as error:
    print(f"OSError: {error}")
"""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program, str(tmp_path / "kept")],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.startswith("OSError: ") and str(tmp_path) in done.stdout
    kept = load(tmp_path / "kept")
    assert kept.layer == 1 and bool((kept.barrier.weight == 1).all())
    assert len(list((tmp_path / "kept").iterdir())) == 2


@pytest.mark.parametrize("step", range(1, 4))
def test_a_save_that_fails_anywhere_leaves_the_old_method_and_no_other_file(step, tmp_path, monkeypatch):
    save(fitted("caa"), tmp_path)
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    calls = []

    def failing(function):
        def called(*args, **kwargs):
            calls.append(function)
            if len(calls) == step:
                raise KeyboardInterrupt
            return function(*args, **kwargs)

        return called

    monkeypatch.setattr(os, "fsync", failing(os.fsync))
    monkeypatch.setattr(os, "replace", failing(os.replace))
    with pytest.raises(KeyboardInterrupt):
        save(fitted("odesteer"), tmp_path)
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before


@pytest.mark.parametrize("existing", ["", "a"])
@pytest.mark.parametrize("step", range(1, 4))
def test_a_first_save_that_fails_leaves_no_folder(step, existing, tmp_path, monkeypatch):
    (tmp_path / existing).mkdir(exist_ok=True)
    left = iter(range(1, 4))

    def failing(function):
        def called(*args, **kwargs):
            if next(left) == step:
                raise OSError(28, "No space left on device")
            return function(*args, **kwargs)

        return called

    monkeypatch.setattr(os, "fsync", failing(os.fsync))
    monkeypatch.setattr(os, "replace", failing(os.replace))
    with pytest.raises(OSError, match="No space"):
        save(fitted("caa"), tmp_path / "a" / "b" / "c")
    assert [str(each.relative_to(tmp_path)) for each in tmp_path.rglob("*")] == [existing] * bool(existing)


def test_a_folder_that_cannot_be_made_leaves_those_around_it_as_they_were(tmp_path):
    with pytest.raises(OSError):
        save(fitted("caa"), tmp_path / "a" / "b" / ("c" * 300))
    assert list(tmp_path.iterdir()) == []


def test_an_empty_folder_that_was_there_stays(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda file: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        save(fitted("caa"), tmp_path)
    assert tmp_path.is_dir() and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("size", [2**38, 2**33, -1])
def test_tensors_of_another_length_than_they_say_are_refused_before_they_are_read(size, tmp_path, monkeypatch):
    """A sparse file of 256 GiB takes no room on the disc, and minutes to be hashed."""
    save(fitted("caa"), tmp_path)
    file = tensors_of(tmp_path)
    with file.open("rb+") as opened:
        opened.truncate(size if size > 0 else file.stat().st_size + size)
    monkeypatch.setattr("odesteer_tl.data.tensor_files.digest_of", lambda file: pytest.fail("it was read to its end"))
    with pytest.raises(ValueError, match=r"not the length that it says|bytes of memory, and cpu has"):
        load(tmp_path)


def test_tensors_larger_than_the_memory_are_refused_before_they_are_read(tmp_path, monkeypatch):
    save(fitted("caa"), tmp_path)
    monkeypatch.setattr("odesteer_tl._memory.room", lambda device: 100)
    monkeypatch.setattr("odesteer_tl.data.tensor_files.digest_of", lambda file: pytest.fail("it was read to its end"))
    with pytest.raises(ValueError, match=r"needs [\d,]+ bytes of memory, and cpu has 100: load it on a larger machine"):
        load(tmp_path)


@pytest.mark.parametrize("layer", [10**30, 10_000, -1])
def test_a_layer_that_no_model_has_is_refused(layer, tmp_path):
    planted().save(tmp_path / "acts")
    resealed(tmp_path / "acts", lambda tree: tree.update(layer=layer))
    save(fitted("caa"), tmp_path / "method")
    resealed(tmp_path / "method", lambda tree: tree["method"]["origin"].update(layer=layer))
    for read, folder in ((type(planted()).load, "acts"), (load, "method")):
        with pytest.raises(ValueError, match="Layers are block indices counted from 0"):
            read(tmp_path / folder)


def test_what_killed_saves_have_left_is_taken_away_later_and_nothing_else(tmp_path):
    save(fitted("caa"), tmp_path)
    names = ("tensors-0123456789abcdef.safetensors", ".0123456789abcdef.tmp", "notes.txt", "tensors-mine.safetensors")
    for name in names:
        (tmp_path / name).write_text("left")
    save(fitted("caa"), tmp_path)
    assert {file.name for file in tmp_path.iterdir()} == {"config.json", tensors_of(tmp_path).name, *names}
    for name in names:
        os.utime(tmp_path / name, (0, 0))
    save(fitted("caa"), tmp_path)
    assert {file.name for file in tmp_path.iterdir()} == {"config.json", tensors_of(tmp_path).name, *names[2:]}


def test_a_folder_of_the_first_format_is_read_and_replaced(tmp_path):
    save(fitted("caa"), tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    tensors_of(tmp_path).rename(tmp_path / "tensors.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"format": 1, "tree": config["tree"]}))
    a = activations(2)
    assert torch.equal(load(tmp_path).steer(a, T=1.0), fitted("caa").steer(a, T=1.0))
    save(fitted("caa"), tmp_path)
    assert {file.name for file in tmp_path.iterdir()} == {"config.json", tensors_of(tmp_path).name}


@pytest.mark.parametrize("kind", ["model", "link", "file", "nameless", "folder"])
def test_what_belongs_to_others_is_not_written_to(kind, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "kept"
    if kind == "file":
        folder.write_text("mine")
    elif kind != "nameless":
        folder.mkdir()
    if kind == "model":
        (folder / "config.json").write_text('{"model_type": "llama"}')
    if kind == "link":
        save(fitted("caa"), tmp_path / "other")
        (folder / "config.json").symlink_to(tmp_path / "other" / "config.json")
    if kind == "folder":
        (folder / "config.json").mkdir()
    before = {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()}
    for keep in (lambda place: save(fitted("caa"), place), planted().save):
        with pytest.raises(ValueError, match=r"something else|is a file|has no name"):
            keep("" if kind == "nameless" else folder)
    assert {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()} == before


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_numbers_that_are_not_finite_are_neither_saved_nor_read(bad, tmp_path):
    """Also where no trial meets them: the bias of an angle."""
    for where in ({"a": torch.tensor([1.0, bad])}, {"a": [1.0, bad]}):
        with pytest.raises(ValueError, match=r"holds (NaN or inf|nan|inf) in a"):
            write_tree(tmp_path / "none", where)
    assert not (tmp_path / "none").exists()
    for name in ("hpr", "odesteer", "fourier"):
        if name not in KEPT:
            continue
        save(fitted(name), tmp_path / name)
        file = tensors_of(tmp_path / name)
        for key, tensor in load_file(file).items():
            if tensor.is_floating_point():
                changed = tensor.clone()
                changed.view(-1)[0] = bad
                save_file(load_file(file) | {key: changed}, tmp_path / "other.safetensors")
                kept = file.read_bytes()
                file.write_bytes((tmp_path / "other.safetensors").read_bytes())
                resealed(tmp_path / name)
                with pytest.raises(ValueError, match="holds NaN or inf in method"):
                    load(tmp_path / name)
                file.write_bytes(kept)


def test_bounds_are_said(tmp_path, monkeypatch):
    save(fitted("odesteer"), tmp_path)
    kept = read_tree(tmp_path)

    def read(change):
        write_tree(tmp_path / "changed", kept)
        resealed(tmp_path / "changed", change)
        return load(tmp_path / "changed")

    with pytest.raises(ValueError, match="at most 100,000, got 1000000000"):
        read(lambda tree: tree["method"].update(steps=10**9))
    with pytest.raises(ValueError, match="d_model is 1,000,000,000, and at most 1,048,576 is read"):
        read(lambda tree: tree["method"]["origin"].update(d_model=10**9))
    deep: list = []
    for _ in range(70):
        deep = [deep]
    with pytest.raises(ValueError, match="deeper than 64"):
        read(lambda tree: tree.update(method=deep))
    (tmp_path / "config.json").write_text("[" * 100_000)
    with pytest.raises(ValueError, match="cannot be read"):
        load(tmp_path)
    write_tree(tmp_path / "large", kept)
    monkeypatch.setattr("odesteer_tl.data.storage.MOST_BYTES", 100)
    with pytest.raises(ValueError, match="larger than 100 bytes"):
        load(tmp_path / "large")
    with pytest.raises(ValueError, match="the most that is kept is 100"):
        write_tree(tmp_path / "larger", kept)
    assert not (tmp_path / "larger").exists()


def test_a_method_that_does_not_say_its_width_is_tried_too(tmp_path):
    method = GradientFlow(fitted("odesteer").barrier, layer=1)
    save(method, tmp_path)
    a = activations(2)
    assert torch.equal(load(tmp_path).steer(a, T=1.0), method.steer(a, T=1.0))
    resealed(tmp_path, lambda tree: tree["method"]["barrier"].update(weight={"tensor": "tree.method.barrier.weight"}))
    file = tensors_of(tmp_path)
    tensors = load_file(file)
    save_file(tensors | {"tree.method.barrier.weight": torch.ones(3)}, file)
    resealed(tmp_path)
    with without_shape_checks(), pytest.raises(ValueError, match="holds a GradientFlow whose values do not fit"):
        load(tmp_path)
