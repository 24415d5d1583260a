"""Diagnostics of closed loops in a model: tracking, local linearity, the bound on the error."""
