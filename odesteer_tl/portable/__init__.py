"""All code that is sent to servers as source, and nothing else: plain functions and classes on torch alone.

A server has neither this package nor jaxtyping. nnsight sends what is registered by its source, so this folder is
registered once, with all modules in it; their files import only what every server has, and each other.
"""

import sys

import cloudpickle

cloudpickle.register_pickle_by_value(sys.modules[__name__])
