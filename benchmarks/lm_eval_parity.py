"""TruthfulQA MC1 and MC2 here and in lm-evaluation-harness, of the unsteered model, question by question.

    pip install lm_eval
    python benchmarks/lm_eval_parity.py TruthfulQA.csv --model HuggingFaceTB/SmolLM2-135M-Instruct --questions 30

The harness runs its own tasks truthfulqa_mc1 and truthfulqa_mc2 with its `hf` model, on the questions of the same file
in place of the Hub's. `--bos` puts the BOS before each text, in both; without it neither does.
"""

import argparse
import json
import sys
import tempfile
import types
from pathlib import Path
from typing import Any

import odesteer_tl as ot
from odesteer_tl import assets
from odesteer_tl.benchmarks.answers import AnswerScorer
from odesteer_tl.benchmarks.truthfulqa import TruthfulQAMC, mc, question_of


def harness(folder: str, items: Any, bos: bool) -> dict[str, list[dict[str, Any]]]:
    """The samples of both tasks, in the order of the items."""
    for missing in ("sacrebleu", "rouge_score", "rouge_score.rouge_scorer", "rouge_score.scoring"):  # of another task
        sys.modules.setdefault(missing, types.ModuleType(missing))
    scorer: Any = sys.modules["rouge_score.rouge_scorer"]
    scorer.RougeScorer = getattr(scorer, "RougeScorer", lambda kinds: None)
    parts: Any = sys.modules["rouge_score"]
    parts.rouge_scorer, parts.scoring = scorer, sys.modules["rouge_score.scoring"]
    import lm_eval  # pyright: ignore[reportMissingImports]
    import yaml
    from lm_eval.models.huggingface import HFLM  # pyright: ignore[reportMissingImports]
    from lm_eval.tasks.truthfulqa.utils import process_results_mc2  # pyright: ignore[reportMissingImports]

    tasks = Path(str(lm_eval.__file__)).parent / "tasks" / "truthfulqa"
    with tempfile.TemporaryDirectory() as at:
        file = Path(at) / "validation.jsonl"
        file.write_text("".join(json.dumps(_row(item)) + "\n" for item in items), encoding="utf-8")
        own = yaml.safe_load((tasks / "truthfulqa_mc1.yaml").read_text())
        own |= {
            "dataset_path": "json",
            "dataset_name": None,
            "dataset_kwargs": {"data_files": {"validation": str(file)}},
        }
        second = own | {"task": "truthfulqa_mc2", "process_results": process_results_mc2}
        second["doc_to_choice"] = "{{mc2_targets.choices}}"
        model = HFLM(pretrained=folder, dtype="float32", device="cpu", batch_size=8, add_bos_token=bos)
        found = lm_eval.simple_evaluate(model=model, tasks=[own, second], log_samples=True, bootstrap_iters=0)
    assert found is not None
    return {name: sorted(of, key=lambda one: one["doc_id"]) for name, of in found["samples"].items()}


def _row(item: Any) -> dict[str, Any]:
    return {
        "question": item.question,
        "mc1_targets": {"choices": [item.right[0], *item.wrong], "labels": [1] + [0] * len(item.wrong)},
        "mc2_targets": {
            "choices": [*item.right, *item.wrong],
            "labels": [1] * len(item.right) + [0] * len(item.wrong),
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data")
    parser.add_argument("--model", default="embedded")
    parser.add_argument("--questions", type=int, default=30)
    parser.add_argument("--library", default="transformer_lens")
    parser.add_argument("--bos", action="store_true")
    given = parser.parse_args()
    folder = str(assets.model_folder()) if given.model == "embedded" else given.model
    items = TruthfulQAMC.read(given.data, given.questions).items
    theirs = harness(folder, items, given.bos)
    model = ot.load_model(folder, library=given.library)
    scores = AnswerScorer(model, prepend_bos=given.bos).scores([question_of(item) for item in items])
    ours = [mc(item, own) for item, own in zip(items, scores, strict=True)]
    far, same1, far2 = 0.0, 0, 0.0
    for number, (item, own) in enumerate(zip(items, scores, strict=True)):
        one, two = theirs["truthfulqa_mc1"][number], theirs["truthfulqa_mc2"][number]
        assert one["doc"]["question"] == two["doc"]["question"] == item.question
        sums = [float(answer[0]) for answer in two["filtered_resps"]]
        far = max(far, max(abs(a - b) for a, b in zip(sums, own.sums.tolist(), strict=True)))
        same1 += int(one["acc"] == ours[number][0])
        far2 = max(far2, abs(float(two["acc"]) - ours[number][1]))
    n = len(items)
    print(f"{given.model}, {n} questions, {'with' if given.bos else 'without'} BOS, {given.library}")
    for number, measure in enumerate(("MC1", "MC2")):
        there = sum(float(one["acc"]) for one in theirs[f"truthfulqa_{measure.lower()}"]) / n
        print(f"{measure}: here {sum(own[number] for own in ours) / n:.6f}, there {there:.6f}")
    print(f"MC1 equal in {same1} of {n} questions; MC2 differs by {far2:.1e} at most, log p of an answer by {far:.1e}")


if __name__ == "__main__":
    main()
