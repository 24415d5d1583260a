"""nnsight: edits on a model here, and what travels, as source, into a graph on a server."""

import cloudpickle

from odesteer_tl import apply_edits, caches, following, model_inputs, rules
from odesteer_tl.backends.nnsight import blocks, intervening, picking, sites

for _module in (rules, model_inputs, caches, following, apply_edits, blocks, sites, intervening, picking):
    cloudpickle.register_pickle_by_value(_module)
