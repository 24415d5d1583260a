"""A base class for immutable objects, in the place of frozen dataclasses: their generated methods have no source, so
they cannot be sent to a server."""

from __future__ import annotations

from typing import Any, NoReturn


class Frozen:
    """Compared, hashed and printed by its attributes, which cannot be set."""

    def __setattr__(self, name: str, value: Any) -> NoReturn:
        raise AttributeError(f"{type(self).__name__} is frozen: make a new one with another {name}.")

    def __eq__(self, other: object) -> bool:
        return self.__dict__ == other.__dict__ if type(other) is type(self) else NotImplemented

    def __hash__(self) -> int:
        return hash(tuple(self.__dict__.values()))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in self.__dict__.items())})"
