"""beartype first: once nnsight has been imported, importing it fails (nnsight gives every object a `save`)."""

import beartype  # noqa: F401
