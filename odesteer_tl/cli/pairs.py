"""Checks that the lines of the files form the pairs that a method needs, before a model is loaded."""

from collections.abc import Sequence


def check_pairs(
    name: str, needs: str, sides: tuple[Sequence[str], Sequence[str]], queries: Sequence[str] | None, paired: bool
) -> None:
    """Raise ValueError if the method called `name` `needs` pairs and has none, and if paired files do not have the same
    number of lines."""
    if needs == "pairs with queries" and queries is None:
        raise ValueError(
            f"{name} learns a correction for each query from a pair of answers: pass --queries FILE, whose line i is "
            "the query that line i of both files answers; --paired does not give the queries."
        )
    if needs.startswith("pairs") and queries is None and not paired:
        raise ValueError(
            f"{name} learns from pairs: pass --paired if line i of both files answers the same query, or --queries "
            "FILE with those queries."
        )
    files = {"desired": sides[0], "undesired": sides[1]} | ({} if queries is None else {"queries": queries})
    if (paired or queries is not None) and len({len(file) for file in files.values()}) > 1:
        counts = ", ".join(f"{len(file)} {side}" for side, file in files.items())
        raise ValueError(f"Line i of one file belongs to line i of the others, and they have {counts} lines.")
