"""Every page of the built site in a real browser: on a light desktop and on a dark phone.

    mkdocs build --strict --site-dir site
    python tests/site_in_browser.py site screenshots

A page fails where the browser reports an error, anything is asked from another server, a picture is not drawn, a
formula is left as its source, something is wider than the window, or a heading of its contents leads nowhere. Where the
machine has no Chromium it says so, and succeeds.
"""

import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

from browser import NAMES, SIZES, Tab, browser, check_address

BROKEN = """(async () => {
  await Promise.all([...document.images].map((one) => { one.loading = 'eager'; return one.decode().catch(() => 0); }));
  return [...document.images].filter((one) => !one.naturalWidth).map((one) => one.src);
})()"""
ASTRAY = """[...document.querySelectorAll('.md-content a[href^="#"], .md-sidebar a[href^="#"]')]
  .map((one) => decodeURIComponent(one.getAttribute('href').slice(1)))
  .filter((one) => one && one !== '__skip' && !document.getElementById(one))"""


class Quiet(SimpleHTTPRequestHandler):
    """Serves a folder and writes no log."""

    def log_message(self, format: str, *args: object) -> None:
        pass


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """The address of a server of this machine that holds the folder."""
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder))) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/"
        finally:
            server.shutdown()
            thread.join()


def check_page(tab: Tab, site: str, page: str, size: str, theme: str, folder: Path) -> None:
    """One page: quiet, whole, and as wide as the window."""
    picture = folder / f"{page.replace('/', '-').removesuffix('.html')}-{size}-{theme}.png"
    check_address(tab, site + page, size, theme, picture, within=site)
    assert not (broken := tab.ask(BROKEN)), f"{page}: pictures that are not drawn: {broken}"
    assert not (astray := tab.ask(ASTRAY)), f"{page}: links to no heading: {astray}"
    assert "$$" not in tab.ask("document.querySelector('.md-content').innerText"), f"{page}: a formula as its source"


def main(site: Path, folder: Path) -> None:
    """Check every page."""
    pages = sorted(page.relative_to(site).as_posix() for page in site.rglob("*.html"))
    pages = [page for page in pages if page != "404.html"]
    assert pages, f"{site} holds no page: mkdocs build --strict --site-dir {site}"
    with browser() as tab, served(site) as address:
        if tab is None:
            print(f"No browser ({', '.join(NAMES)}) on this machine: the site was not checked.")
            return
        folder.mkdir(parents=True, exist_ok=True)
        for page in pages:
            for size, theme in zip(SIZES, ("light", "dark"), strict=True):
                check_page(tab, address, page, size, theme, folder)
    print(f"{len(pages)} pages, {' and '.join(SIZES)}: right. Screenshots are in {folder}.")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2] if len(sys.argv) > 2 else tempfile.mkdtemp(prefix="site-")))
