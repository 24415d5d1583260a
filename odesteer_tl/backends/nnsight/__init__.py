"""nnsight: edits on a model here, and what travels, as source, into a graph on a server."""

import cloudpickle

from odesteer_tl import apply_edits, caches, following, model_inputs, rules
from odesteer_tl.backends import decoder_blocks, token_values
from odesteer_tl.backends.nnsight import blocks, intervening, picking, sites

for _module in (
    rules, model_inputs, caches, following, apply_edits, decoder_blocks, token_values, blocks, sites, intervening, picking,
):  # fmt: skip
    cloudpickle.register_pickle_by_value(_module)
