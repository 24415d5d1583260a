"""Objects that do not change, as frozen dataclasses; those have functions without source, which no server takes."""

from __future__ import annotations

from typing import Any, NoReturn


class Frozen:
    """Compared, hashed and shown by its attributes, which nothing changes."""

    def __setattr__(self, name: str, value: Any) -> NoReturn:
        raise AttributeError(f"{type(self).__name__} is frozen: make another with that {name}.")

    def __eq__(self, other: object) -> bool:
        return self.__dict__ == other.__dict__ if type(other) is type(self) else NotImplemented

    def __hash__(self) -> int:
        return hash(tuple(self.__dict__.values()))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in self.__dict__.items())})"
