"""What every request to a server asks anew, asked once: it is the same each time, and takes most of a request's time.

A request asks for the lines of some hundred functions, for the names that each of them uses, and for an SSL context.
The text of this file also runs in the processes of `server_clients`.
"""

import functools
import inspect
import ssl
import symtable
import types
from unittest import mock


def _lines_once(asked):
    known = {}

    def lines(thing):
        if not isinstance(thing, types.FunctionType):
            return asked(thing)
        key = thing.__code__.co_filename, thing.__code__
        if key not in known:
            known[key] = asked(thing)
        found, number = known[key]
        return list(found), number

    return lines


def patches():
    """For `unittest.mock`: while they are in force, each is asked once."""
    return [
        mock.patch.object(inspect, "getsourcelines", _lines_once(inspect.getsourcelines)),
        mock.patch.object(symtable, "symtable", functools.cache(symtable.symtable)),
        mock.patch.object(ssl, "create_default_context", functools.cache(ssl.create_default_context)),
    ]
