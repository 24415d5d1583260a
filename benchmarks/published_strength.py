"""A published strength on another model, and the strength that `ot.calibrate` finds there.

    python scripts/get_smollm2.py smollm2
    python benchmarks/published_strength.py smollm2 [--T 5 25] [--kl 0.1] [--until 0 1 2]

ODESteer is fitted on the embedded excerpts of reviews, at the place that `choose_layer` takes (or --layer and
--position). At each strength the model continues neutral openings, sampled. Printed are the strength as a part of the
activations' norm, KL(unsteered ‖ steered) per token, the judged share of praise with a 95 % bootstrap over prompts, the
perplexity of the continuations under the unsteered model and their Dist-2, both over unsteered, and one continuation.
`--until` k: at the largest T, walks that end at the median h of the desired texts, and k times as far beyond it as it
is above that of the undesired ones.
"""

import argparse
from dataclasses import replace

import odesteer_tl as ot
from odesteer_tl.evaluation.continuations import Setting, continued
from odesteer_tl.evaluation.judge import Judge
from odesteer_tl.evaluation.levels import levels_of, unsteered_texts
from odesteer_tl.evaluation.metrics import bootstrap_interval


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("model")
    options.add_argument("--T", type=float, nargs="+", default=[5.0, 25.0])
    options.add_argument("--kl", type=float, nargs="+", default=[0.1])
    options.add_argument("--layer", type=int)
    options.add_argument("--position", default="mean")
    options.add_argument("--texts", type=int, default=150, help="a side to fit on")
    options.add_argument("--until", type=float, nargs="*", default=[])
    asked = options.parse_args()
    demo = ot.load_demo(ot.load_model(asked.model, library="huggingface"))
    sides = demo.desired[: asked.texts], demo.undesired[: asked.texts]
    if asked.layer is None:
        choice = ot.choose_layer(demo.model, *sides, ot.ODESteer, kl=asked.kl[0])
        print(choice)
        layer, position = choice.layer, choice.position
    else:
        layer, position = asked.layer, asked.position
    acts = ot.collect(demo.model, *sides, layer=layer, position=position).without_sinks()
    method = ot.ODESteer.fit(acts)
    up, down = (float(method.barrier.value(side.float()).median()) for side in (acts.desired, acts.undesired))
    judge, kls = Judge.load_embedded().positive_probability, tuple(asked.kl)
    setting = Setting(demo.model, layer, demo.prompts, demo.validation_prompts, judge, samples=2, budgets=kls)
    texts = unsteered_texts(setting)
    rows: list[tuple[str, ot.ODESteer, ot.Strength | None]] = [("unsteered", method, None)]
    for kl, level in zip(kls, levels_of(texts, setting, method), strict=True):
        rows.append((f"calibrated, {kl:g} nats", method, level.strength))
    rows += [(f"T = {T:g}", method, ot.Strength(T)) for T in asked.T]
    for k in asked.until:
        stopping = replace(method, until=up + k * (up - down))
        rows.append((f"T = {max(asked.T):g}, until {k:g}", stopping, ot.Strength(max(asked.T))))
    base, norm = None, method.origin.typical_norm
    print(f"ODESteer at layer {layer}; typical ‖a‖ = {norm:.3g}; {len(demo.prompts)} prompts × 2 continuations\n")
    print("| | T/‖a‖ | KL | desired, % | ppl ratio | Dist-2 ratio | |\n|---|---|---|---|---|---|---|")
    for name, used, strength in rows:
        out = continued(setting, setting.prompts, setting.samples, None if strength is None else used, strength)
        base = base or out
        low, high = bootstrap_interval(out.desired)
        kl, part = 0.0, 0.0
        if strength is not None:
            kl = float(
                texts.divergences(
                    lambda T, m=used, s=strength: [(m, s.mapped(lambda _: T))], [strength.value], 24
                ).mean()
            )
            part = strength.value if strength.T is None else strength.value / norm
        print(
            f"| {name} | {part:.2f} | {kl:.3f} | {100 * out.share:.0f} [{100 * low:.0f}, {100 * high:.0f}] | "
            f"{out.perplexity / base.perplexity:.2f} | {out.distinct2 / base.distinct2:.2f} | "
            f"“{' '.join(out.continuations[0].split())}” |", flush=True,
        )  # fmt: skip


if __name__ == "__main__":
    main()
