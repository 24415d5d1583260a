"""All code that is sent to servers as source, and nothing else: plain functions and classes on torch alone.

A server has neither this package nor jaxtyping. nnsight sends the source of registered modules, so this folder is
registered once, with all modules in it. Its files import only each other and what every server has.
"""

import sys

import cloudpickle

cloudpickle.register_pickle_by_value(sys.modules[__name__])
