"""`python -m odesteer_tl`, the same as `odesteer-tl`."""

from odesteer_tl.cli import app

if __name__ == "__main__":
    app()
