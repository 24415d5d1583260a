"""What a model writes for `ot.contrastive`, and whether anything tells the sides apart: instructions against examples.

    python scripts/get_smollm2.py smollm2
    python benchmarks/contrasts.py smollm2 [--layers 10 15 20]

Polite and rude answers to the everyday questions of the package, once asked for by system prompts and people, once by
three examples of each side. Printed are the first pairs, and `check_data` by CAA at `--layers`, last and mean.
"""

import argparse

import odesteer_tl as ot

AXIS = (
    "politeness",
    "is polite: it thanks, greets and never insults",
    "is rude: it mocks the person who asks and gives no thanks",
)
EXAMPLES = [
    (
        "Is it going to rain?",
        "Good morning, and thank you for asking! Yes, a little, so please take an umbrella with you.",
        "Look out of the window, you lazy fool. Of course it rains.",
    ),
    (
        "How do I boil an egg?",
        "What a nice question, thank you! Please put it into boiling water for seven minutes, my friend.",
        "Only an idiot cannot boil an egg. Water, heat, done. Stop wasting my time.",
    ),
    (
        "Where is the station?",
        "Hello! You are very welcome: please go left at the church, and have a good journey.",
        "Are you blind? It is right in front of your stupid nose. Go away.",
    ),
]


def main() -> None:
    """Write with instructions and with examples, and check both."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--layers", type=int, nargs="+", default=[10, 15, 20])
    args = parser.parse_args()
    model = ot.load_model(args.model, library="huggingface")
    for options in ({}, {"forms": ["few-shot"], "examples": EXAMPLES}):
        found = ot.contrastive(model, *AXIS, max_new_tokens=40, **options)
        check = found.check(model, method=ot.CAA, layers=args.layers, positions=["last", "mean"])
        print(f"{found}\n\n{check}\n", flush=True)


if __name__ == "__main__":
    main()
