# pyright: reportMissingImports=false
"""Inspect AI: the provider `odesteer/…` (`pip install 'odesteer_tl[inspect]'`), which Inspect finds by itself.

inspect eval task.py --model odesteer/NAME -M method=FOLDER -M kl=0.5 -M prompts=FILE

from odesteer_tl.integrations.inspect import ODESteerAPI                  # before nnsight, if that is used
eval(task, model=get_model("odesteer/mine", loaded=model, method=method, T=5.0, memoize=False))
"""

try:
    import anyio._backends._asyncio  # Inspect imports both when it runs, and nnsight may have come by then
    import anyio.abc  # noqa: F401

    from odesteer_tl.integrations.inspect.provider import ODESteerAPI
except TypeError as error:
    if "'save'" not in str(error):
        raise
    raise ImportError(
        "nnsight is imported already, and gives every object a `save`, with which Inspect's anyio cannot be imported "
        "any more: write `import odesteer_tl.integrations.inspect` above the first import of nnsight."
    ) from error

__all__ = ["ODESteerAPI"]
