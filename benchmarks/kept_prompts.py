"""What it saves to compute prompts once for all strengths.

    python benchmarks/kept_prompts.py smollm2 test.jsonl [--limit 100] [--layer 22] [--strengths 4]

Fits CAA on dialogues with a preferred and a rejected reply, as of HH-RLHF, and steers what `choose_layer` holds out of
them at several strengths, in turns with prompts kept and with whole texts. Prints the seconds of each, their ratio over
the whole, the first strength included, and how far the results are apart.
"""

import argparse
import time
from unittest import mock

import odesteer_tl as ot
from odesteer_tl.backends import text_passes
from odesteer_tl.benchmarks import Preferences
from odesteer_tl.evaluation.judged_texts import fold_of, token_rows

BATCH = 24


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a folder, a .gguf file or a Hugging Face name")
    parser.add_argument("data")
    parser.add_argument("--limit", type=int, default=100, help="pairs")
    parser.add_argument("--layer", type=int, default=22)
    parser.add_argument("--strengths", type=int, default=4)
    args = parser.parse_args()
    model = ot.load_model(args.model)
    fold = Preferences.read(args.data, limit=2 * args.limit).folds()[0]
    sides, asked = (fold.desired, fold.undesired), {"queries": fold.queries, "prepend_bos": False}
    method = ot.CAA.fit(ot.collect(model, *sides, args.layer, position="mean", **asked).without_sinks())
    rows, starts = token_rows(model, *sides, fold.queries, False, False, None)
    seconds, costs = {}, {}
    for name, kept in (("kept", text_passes.kept_prompts), ("whole", lambda model: None)):
        with mock.patch.object(text_passes, "kept_prompts", kept):
            judged = fold_of(model, rows, starts, True, 0, 0)[1].steered
            seconds[name] = []
            for number in range(args.strengths):
                start, T = time.perf_counter(), 2.0 + 2 * number
                costs[name] = judged.effects(lambda value: [(method, ot.Strength(value))], [T], BATCH).costs
                seconds[name].append(time.perf_counter() - start)
    for name, each in seconds.items():
        print(f"{name:<6}", *(f"{one:6.1f}" for one in each), "s")
    whole, kept = sum(seconds["whole"]), sum(seconds["kept"])
    apart = float((costs["kept"] - costs["whole"]).abs().max())
    print(f"whole_over_kept {whole / kept:.2f}, apart by {apart:.1e} of {float(costs['whole'].mean()):.2f} nats")


if __name__ == "__main__":
    main()
