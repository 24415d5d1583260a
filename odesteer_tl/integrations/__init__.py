"""Doors into other programs: lm-evaluation-harness (`lm_eval`) and Inspect AI (`inspect`).

Each folder imports its program, and nothing else here does. What both need is in the files beside them.
"""
