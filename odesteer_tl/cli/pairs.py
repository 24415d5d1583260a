"""Whether the lines of the files pair up as a method needs, before a model reads them."""

from collections.abc import Sequence


def check_pairs(
    name: str, needs: str, sides: tuple[Sequence[str], Sequence[str]], queries: Sequence[str] | None, paired: bool
) -> None:
    """Raise ValueError where the method called `name`, which `needs` pairs, has none, and for files that do not have as
    many lines as each other where line i answers line i."""
    if needs == "pairs with queries" and queries is None:
        raise ValueError(
            f"{name} learns from pairs of answers which correction their query needs: pass --queries FILE, whose line "
            "i is what line i of both texts answers; --paired does not say the queries."
        )
    if needs.startswith("pairs") and queries is None and not paired:
        raise ValueError(
            f"{name} learns from pairs: pass --paired, where line i of both files answers the same query, or --queries "
            "FILE with those queries."
        )
    files = {"desired": sides[0], "undesired": sides[1]} | ({} if queries is None else {"queries": queries})
    if (paired or queries is not None) and len({len(file) for file in files.values()}) > 1:
        found = ", ".join(f"{len(file)} {what}" for what, file in files.items())
        raise ValueError(f"Line i of one file belongs to line i of the others, and they have {found} lines.")
