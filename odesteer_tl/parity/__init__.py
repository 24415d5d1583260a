"""Parity: steering gives the same logits in every library. `odesteer-tl parity` prints the measurements."""
