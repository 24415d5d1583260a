"""Token maps in a real browser: what is drawn, what mouse and keys do, that nothing is loaded and nothing fails.

    python tests/maps_in_browser.py screenshots

Makes token maps on the embedded model and opens them in headless Chromium at the width of a desktop and of a phone,
light and dark, with a screenshot of each. Raises AssertionError where something is wrong. Where the machine has no
Chromium it says so, and succeeds.
"""

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from browser import NAMES, SIZES, Tab, browser, check_address, check_quiet

import odesteer_tl as ot

HEAD = '<!DOCTYPE html><meta name="viewport" content="width=device-width, initial-scale=1">'
TOKENS = "[...document.querySelectorAll('main .t')]"
CONTRAST = """(() => {
  const linear = (x) => x <= 0.04045 ? x / 12.92 : ((x + 0.055) / 1.055) ** 2.4;
  const light = (c) => { const [r, g, b] = c.map((x) => linear(x / 255));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
  const parts = (text) => text.match(/[\\d.]+/g).map(Number);
  return Math.min(...[...document.querySelectorAll('main .t')].filter((t) => t.offsetParent).map((t) => {
    const ink = parts(getComputedStyle(t).color), over = parts(getComputedStyle(t).backgroundColor);
    const paper = parts(getComputedStyle(t.closest('.columns > div')).backgroundColor), share = over[3] ?? 1;
    const mixed = [0, 1, 2].map((k) => share * over[k] + (1 - share) * paper[k]);
    const [low, high] = [light(ink), light(mixed)].sort((a, b) => a - b);
    return (high + 0.05) / (low + 0.05);
  }));
})()"""


def check_token_map(tab: Tab, address: str, size: str, theme: str, folder: Path) -> None:
    """A token map: colours, switches, mouse, keys, legibility."""
    name = f"{Path(address).stem}-{size}-{theme}"
    check_address(tab, address, size, theme, folder / f"{name}.png")
    data = json.loads(tab.ask("document.getElementById('data').textContent"))
    count = tab.ask(f"{TOKENS}.length")
    assert count == len(data["id"]) > 50 and tab.ask("document.querySelectorAll('main script, main b').length") == 0
    colours = {}
    for choice in ["h", "moved", *(["kl"] if data["kl"] else [])]:
        tab.click(f"input[value={choice}]")
        assert tab.ask(f"document.querySelector('input[value={choice}]').checked")
        colours[choice] = tab.ask(f"{TOKENS}.map((t) => getComputedStyle(t).backgroundColor)")
        assert tab.ask(CONTRAST) >= 4.5, (name, choice, tab.ask(CONTRAST))
        assert tab.ask("document.getElementById('unit').textContent")
        tab.screenshot(folder / f"{name}-{choice}.png")
    steered = tab.ask(f"{TOKENS}.map((t) => t.classList.contains('s'))")
    lines = tab.ask(f"{TOKENS}.map((t) => getComputedStyle(t).borderBottomColor !== 'rgba(0, 0, 0, 0)')")
    assert lines == steered and True in steered and False in steered
    for n, was in enumerate(steered):
        assert (data["moved"][0][n] > 0) == was, n
        assert (colours["moved"][n] != "rgba(0, 0, 0, 0)") or not was, n
    tab.click("input[value=h]")
    tab.point("main .s")
    said = tab.ask("document.getElementById('tip').textContent")
    number = steered.index(True)
    for told in (f"id{data['id'][number]}position{data['position'][number]}", "steeredyes"):
        assert told in said, (told, said)
    for key, label in (("before", "h before"), ("after", "h after"), ("moved", "displacement")):
        value = f"{float(f'{data[key][0][number]:.4g}'):g}".replace("-", "−")
        assert f"{label}{value}" in said, (label, value, said)
    if data["kl"]:
        kl = data["kl"][number]
        value = "—" if kl is None else f"{float(f'{kl:.4g}'):g} nats".replace("-", "−")
        assert f"KL, next token{value}" in said, (value, said)
    tab.screenshot(folder / f"{name}-pointed.png")
    tab.ask("document.querySelector('main .t').focus()")
    before = tab.ask("document.activeElement.textContent")
    tab.key("ArrowRight")
    assert tab.ask(f"{TOKENS}.indexOf(document.activeElement)") == 1, before
    assert not tab.ask("document.getElementById('tip').hidden")
    tab.key("Escape")
    assert tab.ask("document.getElementById('tip').hidden")
    assert tab.ask("document.querySelectorAll('main .columns > div:first-child [tabindex=\"0\"]').length") == tab.ask(
        "document.querySelectorAll('main .columns').length"
    )
    if len(data["edits"]) > 1:
        check_edits(tab, name, data, folder)
    check_quiet(tab, address)


def check_edits(tab: Tab, name: str, data: Any, folder: Path) -> None:
    """Of several edits the last is chosen: its numbers are shown, and that it has no h is said."""
    last = len(data["edits"]) - 1
    assert data["edits"][last]["h"] is None and not tab.ask("document.getElementById('where').hidden")
    tab.ask(f"(() => {{ const s = document.getElementById('edit'); s.value = {last};"
            " s.dispatchEvent(new Event('change', {bubbles: true})); })()")  # fmt: skip
    assert "has no h" in tab.ask("document.getElementById('unit').textContent")
    assert set(tab.ask(f"{TOKENS}.map((t) => t.style.backgroundColor)")) == {""}
    tab.click("input[value=moved]")
    tab.point("main .after .s")
    said = tab.ask("document.getElementById('tip').textContent")
    assert f"where{data['edits'][last]['name']}" in said and "h before" not in said, said
    tab.screenshot(folder / f"{name}-last.png")


def made(folder: Path) -> list[str]:
    """The addresses of token maps on the embedded model, with tokens that would be markup; the last is in a notebook's
    frame."""
    demo = ot.load_demo()
    method = ot.ODESteer.fit(ot.collect(demo.model, demo.desired, demo.undesired, layer=2, position="mean"))
    hostile = '<script>alert(1)</script></style>\n<b>"It\'s" & a film\u2028 that I'
    texts = [*demo.prompts[:2], hostile]
    pages = {
        "continued": ot.token_map(demo.model, method, texts, relative_T=0.2, seed=1),
        "read": ot.token_map(demo.model, method, demo.desired[:2], relative_T=0.2, prompt_lengths=20, max_new_tokens=0),
    }
    chance = ot.RandomDirection.fit(ot.collect(demo.model, demo.desired, demo.undesired, layer=4))
    both = [(method, ot.Strength(relative_T=0.2)), (chance, ot.Strength(relative_T=0.1))]
    pages["several"] = ot.token_map(demo.model, both, texts, max_new_tokens=8)
    with ot.steering(demo.model, method, relative_T=0.2, record=True) as report:
        ot.generate(demo.model, texts, max_new_tokens=12)
    pages["recorded"] = report.show()
    addresses = []
    for name, page in pages.items():
        page.save(folder / f"{name}.html")
        addresses.append((folder / f"{name}.html").resolve().as_uri())
    notebook = f"{HEAD}<title>Notebook</title><p>A cell:</p>{pages['continued']._repr_html_()}<p>The next."
    (folder / "notebook.html").write_text(notebook, encoding="utf-8")
    return [*addresses, (folder / "notebook.html").resolve().as_uri()]


def main(folder: Path) -> None:
    """Make the pages, and check each at every width and in both themes."""
    with browser() as tab:
        if tab is None:
            print(f"No browser ({', '.join(NAMES)}) on this machine: pages were not checked.")
            return
        folder.mkdir(parents=True, exist_ok=True)
        *maps, notebook = made(folder)
        for size in SIZES:
            for theme in ("light", "dark"):
                for address in maps:
                    check_token_map(tab, address, size, theme, folder)
                check_address(tab, notebook, size, theme, folder / f"notebook-{size}-{theme}.png")
    print(f"{len(maps)} token maps at {len(SIZES)} widths in two themes: right. Screenshots are in {folder}.")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp(prefix="pages-")))
