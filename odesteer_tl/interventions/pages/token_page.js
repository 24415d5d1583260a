"use strict";
(() => {
  const byId = (name) => document.getElementById(name);
  const data = JSON.parse(byId("data").textContent);
  const tokens = [...document.querySelectorAll("main .t")];
  const number = new Map(tokens.map((token, n) => [token, n]));
  const columns = [...document.querySelectorAll(".columns > div")];
  const side = (token) => (token.closest(".before") ? "before" : "after");
  const tip = byId("tip");
  let edit = 0, colouring = null, pointed = null;

  // Okabe & Ito 2008: vermilion below 0, blue above; amounts in green and purple
  const DOWN = "213 94 0", UP = "0 114 178", GREEN = "0 158 115", PURPLE = "204 121 167";
  const tint = (of, share) => {
    const hue = of.hues[share < 0 ? 0 : 1];
    return `rgb(${hue} / ${(of.most * Math.min(1, Math.abs(share))).toFixed(3)})`;
  };
  const shown = (x) => (x === null || x === undefined ? "—" : String(Number(x.toPrecision(4))).replace("-", "−"));

  const COLOURINGS = [
    { key: "h", name: "h", hues: [DOWN, UP], most: 0.72, signed: true, has: (e) => data.before[e] !== null,
      at: (n) => data[side(tokens[n])][edit][n],
      unit: () => `h = ${data.edits[edit].h}, in its own unit. Blue: above 0, the side of the desired texts; vermilion: below 0. ` +
        (document.querySelector(".before") ? "The first of two columns shows h before steering, the second h after it." : "After steering.") },
    { key: "moved", name: "displacement", hues: [GREEN, GREEN], most: 0.65, has: (e) => data.moved[e] !== null,
      at: (n) => data.moved[edit][n], unit: () => "‖a(T) − a‖/‖a‖ of the activation, a ratio without a unit; 0 where it is not steered." },
    { key: "kl", name: "KL", hues: [PURPLE, PURPLE], most: 0.62, has: () => data.kl !== null,
      at: (n) => data.kl[n], unit: () => "KL(unsteered ‖ steered) of the token that follows, in nats." },
  ];

  // The largest size that is told apart: the 95 % quantile of what is not 0. First tokens are often attention sinks, of
  // another size than all others, and do not count.
  const largest = (of) => {
    const sizes = tokens.map((_, n) => (data.position[n] ? Math.abs(of.at(n) ?? 0) : 0)).filter((x) => x > 0).sort((a, b) => a - b);
    return sizes.length ? sizes[Math.min(sizes.length - 1, Math.floor(0.95 * sizes.length))] : 1;
  };

  const paint = () => {
    const of = colouring, known = of.has(edit), most = known ? largest(of) : 1;
    document.body.classList.toggle("single", data.same && of.key !== "h");
    for (const [token, n] of number) token.style.backgroundColor = known && of.at(n) !== null ? tint(of, of.at(n) / most) : "";
    byId("low").textContent = of.signed ? `≤ ${shown(-most)}` : "0";
    byId("high").textContent = `≥ ${shown(most)}`;
    byId("ramp").replaceChildren(...Array.from({ length: 21 }, (_, k) => {
      const cell = document.createElement("b");
      cell.style.backgroundColor = tint(of, of.signed ? k / 10 - 1 : k / 20);
      return cell;
    }));
    byId("unit").textContent = known ? of.unit() : `${data.edits[edit].name} has no h.`;
  };

  const facts = (token) => {
    const n = number.get(token), lines = [
      ["token", `“${token.textContent}”`], ["id", shown(data.id[n])], ["position", shown(data.position[n])],
      ["part", token.parentElement.className === "prompt" ? "prompt" : token.parentElement.previousElementSibling.textContent],
      ["steered", token.classList.contains("s") ? "yes" : "no"],
    ];
    if (data.edits.length > 1) lines.push(["where", data.edits[edit].name]);
    if (data.before[edit] !== null) lines.push(["h before", shown(data.before[edit][n])], ["h after", shown(data.after[edit][n])]);
    if (data.moved[edit] !== null) lines.push(["displacement", shown(data.moved[edit][n])]);
    if (data.kl !== null) lines.push(["KL, next token", data.kl[n] === null ? "—" : `${shown(data.kl[n])} nats`]);
    return lines;
  };

  const hide = () => { tip.hidden = true; pointed = null; };
  const show = (token) => {
    const list = document.createElement("dl");
    for (const line of facts(token)) line.forEach((text, k) => {
      const item = document.createElement(k ? "dd" : "dt");
      item.textContent = text;
      list.append(item);
    });
    tip.replaceChildren(list);
    tip.hidden = false;
    token.setAttribute("aria-describedby", "tip");
    pointed = token;
    place();
  };
  const place = () => {
    if (!pointed) return;
    const box = pointed.getClientRects()[0], gap = 8;
    const below = box.bottom + gap + tip.offsetHeight < innerHeight;
    tip.style.top = `${Math.max(gap, below ? box.bottom + gap : box.top - gap - tip.offsetHeight)}px`;
    tip.style.left = `${Math.max(gap, Math.min(box.left, document.documentElement.clientWidth - tip.offsetWidth - gap))}px`;
  };

  const STEPS = { ArrowLeft: -1, ArrowUp: -1, ArrowRight: 1, ArrowDown: 1 };
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape") hide();
    const own = columns.find((column) => column.contains(event.target));
    if (!own || !number.has(event.target)) return;
    const here = [...own.querySelectorAll(".t")];
    const step = here.indexOf(event.target) + (STEPS[event.key] ?? 0);
    const next = event.key === "Home" ? here[0] : event.key === "End" ? here.at(-1) : event.key in STEPS ? here[step] : null;
    if (event.key in STEPS || next) event.preventDefault();
    if (next) next.focus();
  });
  document.addEventListener("focusin", (event) => {
    if (!number.has(event.target)) return hide();
    const own = event.target.closest(".columns > div");
    for (const token of own.querySelectorAll('[tabindex="0"]')) token.tabIndex = -1;
    event.target.tabIndex = 0;
    show(event.target);
  });
  document.addEventListener("mouseover", (event) => (number.has(event.target) ? show(event.target) : hide()));
  document.addEventListener("scroll", place, true);

  const choose = () => {
    const possible = COLOURINGS.filter((of) => data.edits.some((_, e) => of.has(e)));
    byId("colours").append(...possible.map((of, k) => {
      const label = document.createElement("label"), input = document.createElement("input");
      Object.assign(input, { type: "radio", name: "colour", value: of.key, checked: k === 0 });
      input.addEventListener("change", () => { colouring = of; paint(); });
      label.append(input, of.name);
      return label;
    }));
    colouring = possible[0];
    byId("where").hidden = data.edits.length < 2;
    byId("edit").append(...data.edits.map((one, k) => new Option(`${k + 1}. ${one.name}`, k)));
    byId("edit").addEventListener("change", (event) => { edit = Number(event.target.value); paint(); });
  };
  choose();
  paint();
})();
