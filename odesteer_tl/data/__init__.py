"""Texts, tokens and activations, and how they are kept in folders."""
