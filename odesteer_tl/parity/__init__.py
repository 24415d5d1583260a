"""Parity: whichever library runs a model, steering gives the same logits. `odesteer-tl parity` prints the proof."""
