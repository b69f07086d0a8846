"use strict";
// Filters hide cards, sliders window their images, paper shows what the screen folds away; without this
// script every card shows as it is.
(function () {
  // What is closed on the screen is open on paper, but for the long table and the cards.
  const folded = "main > details:not(#scores), section:not(#samples) > details";
  let opened = [];
  addEventListener("beforeprint", () => {
    opened = Array.from(document.querySelectorAll(folded)).filter((part) => !part.open);
    for (const part of opened) part.open = true;
  });
  addEventListener("afterprint", () => {
    for (const part of opened) part.open = false;
  });

  const form = document.getElementById("filters");
  const cards = Array.from(document.querySelectorAll("#cards .card"));
  if (!form || !cards.length) return;
  document.documentElement.classList.add("js");
  const none = document.getElementById("none");
  const found = document.getElementById("found");
  const value = (id) => (document.getElementById(id) || { value: "" }).value;
  const known = new Map(cards.map((card) => [card, {
    groups: new Set(JSON.parse(card.dataset.groups)),
    text: Array.from(card.querySelectorAll(".question, .sought dd"), (part) => part.textContent)
      .join("\n").toLowerCase(),
  }]));

  function apply() {
    const state = form.elements.state.value;
    const task = value("task");
    const group = value("group");
    const words = value("sought").toLowerCase().split(/\s+/).filter(Boolean);
    const counts = {};
    let shown = 0;
    for (const card of cards) {
      const { groups, text } = known.get(card);
      const wanted = (!task || card.dataset.task === task) && (!group || groups.has(group))
        && words.every((word) => text.includes(word));
      const visible = wanted && (!state || card.dataset.state === state);
      card.hidden = !visible;
      shown += visible;
      if (wanted) {
        counts[card.dataset.state] = (counts[card.dataset.state] || 0) + 1;
        counts[""] = (counts[""] || 0) + 1;
      }
    }
    for (const label of form.querySelectorAll(".count")) {
      label.textContent = (counts[label.dataset.state] || 0).toLocaleString("en");
    }
    none.hidden = shown > 0;
    found.textContent = shown < cards.length ? `${shown} of ${cards.length} shown` : "";
  }

  // A window as one line on the embedded values: what lies at centre - width/2 is black, at
  // centre + width/2 white. One SVG filter per card, made when it is first moved.
  const svg = (name, attributes) => {
    const element = document.createElementNS(document.querySelector("svg.store").namespaceURI, name);
    for (const [key, set] of Object.entries(attributes)) element.setAttribute(key, set);
    return element;
  };

  function filterOf(card) {
    const id = `window-${cards.indexOf(card)}`;
    const here = document.getElementById(id);
    if (here) return here;
    const made = svg("filter", { id, x: 0, y: 0, width: 1, height: 1, "color-interpolation-filters": "sRGB" });
    const transfer = svg("feComponentTransfer", {});
    for (const name of ["R", "G", "B"]) transfer.append(svg(`feFunc${name}`, { type: "linear" }));
    made.append(transfer);
    document.querySelector("svg.store defs").append(made);
    for (const use of card.querySelectorAll(".pictures use")) use.setAttribute("filter", `url(#${id})`);
    return made;
  }

  function windowed(card) {
    const range = (name) => Number(card.querySelector(`.window [name=${name}]`).value) / 100;
    const slope = 1 / range("width");
    for (const line of filterOf(card).querySelectorAll("feComponentTransfer > *")) {
      line.setAttribute("slope", slope);
      line.setAttribute("intercept", 0.5 - slope * range("centre"));
    }
  }

  function reset(card) {
    for (const range of card.querySelectorAll(".window input")) range.value = range.defaultValue;
    windowed(card);
  }

  const list = document.getElementById("cards");
  list.addEventListener("input", (event) => windowed(event.target.closest(".card")));
  list.addEventListener("click", (event) => {
    const button = event.target.closest("button[data-do]");
    if (!button) return;
    const card = button.closest(".card");
    if (button.dataset.do === "reset") return reset(card);
    const large = card.classList.toggle("large");
    button.setAttribute("aria-pressed", String(large));
  });
  form.addEventListener("input", apply);
  form.addEventListener("submit", (event) => event.preventDefault());
  form.reset();
  apply();
})();
