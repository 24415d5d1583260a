"""The two ways in which `ot.choose_layer` finds a shift, beside the shift of other pairs, by layer and position.

    python benchmarks/gain_and_lift.py smollm2 --data DATA --axis truthfulness --seed 2 --layers 14 22 [--pairs 250]

Texts and data are those of benchmarks/defaults.py. The **gain** of a text's words is where they stand, and the **lift**
of the same words in every place; both on all texts, each quarter held out in its turn, with standard errors over texts.
`--pairs`: by how many pairs of the axis's judge the shift at the same KL is measured; 0 for none.
"""

import argparse
import random
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from defaults import AXES, METHODS, judge_of, shifts_of, with_error
from lower_blocks import lower_blocks_kept

import odesteer_tl as ot
from odesteer_tl.backends.huggingface.parts import blocks_in
from odesteer_tl.data.activations import ContrastiveActivations
from odesteer_tl.evaluation.choose_layer import _fitted
from odesteer_tl.evaluation.judged_texts import FOLDS, JUDGED, fold_of, token_rows
from odesteer_tl.evaluation.place_shifts import Shift, shift_at, shift_with
from odesteer_tl.evaluation.shift import pooled


def main() -> None:
    """Print a line for every place."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a folder, a .gguf file or a Hugging Face name")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--axis", choices=AXES, required=True)
    parser.add_argument("--method", choices=METHODS, default="CAA")
    parser.add_argument("--layers", nargs="+", type=int, required=True)
    parser.add_argument("--positions", nargs="+", choices=["last", "mean"], default=["mean"])
    parser.add_argument("--kl", type=float, default=0.1)
    parser.add_argument("--pairs", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    warnings.filterwarnings("ignore", "At blocks", UserWarning)  # sinks are left out, and that is said once a call
    model = ot.load_model(args.model, library="huggingface")
    axis = AXES[args.axis](args.data, random.Random(args.seed))
    judge = judge_of(model, axis.judge, args.pairs) if args.pairs else None
    rows, starts = token_rows(model, *axis.fit, axis.queries[0], None, False, None)
    pairs = axis.queries[0] is not None
    folds = [fold_of(model, rows, starts, pairs, args.seed, number) for number in range(FOLDS)]
    print("layer  position  gain           lift           by pairs")
    with lower_blocks_kept(model, blocks_in(model), most_rows=20000):
        for position in args.positions:
            read = ot.collect_layers(model, *axis.fit, args.layers, position=position, queries=axis.queries[0])
            for acts in read:
                both = shift_of_all(METHODS[args.method], acts, folds, args.kl)
                shown = [f"{one.value:+.2f} ± {one.error:.2f}" for one in (pooled(both.own), pooled(both.everywhere))]
                if judge is not None:
                    found = shifts_of(judge, METHODS[args.method].fit(acts.without_sinks()), args.kl)
                    value, error = with_error(found)
                    shown.append(f"{value:+.2f} ± {error:.2f}")
                print(f"{acts.layer:>5}  {position:<8}  {'  '.join(shown)}", flush=True)


def shift_of_all(fitter: Any, acts: ContrastiveActivations, folds: Sequence[Any], kl: float) -> Shift:
    """At one place, of all texts: the strength is found on the first quarter, as `ot.choose_layer` does."""
    methods = [_fitted(fitter.fit, acts, held) for held, _ in folds]
    spent, _ = shift_at(methods[0], folds[0][1], kl, None, JUDGED)
    if spent is None:
        raise ValueError(f"No strength spends {kl:g} nats at layer {acts.layer}.")
    strength, total = spent
    for method, (_, judged) in zip(methods[1:], folds[1:], strict=True):
        total += shift_with(method, judged, strength, JUDGED)
    return total


if __name__ == "__main__":
    main()
