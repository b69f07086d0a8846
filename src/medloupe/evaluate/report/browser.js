"use strict";
// Filters hide cards; without this script every card shows.
(function () {
  const form = document.getElementById("filters");
  const cards = Array.from(document.querySelectorAll("#cards .card"));
  if (!form || !cards.length) return;
  document.documentElement.classList.add("js");
  const task = document.getElementById("task");
  const none = document.getElementById("none");

  function apply() {
    const state = form.elements.state.value;
    const counts = {};
    let shown = 0;
    for (const card of cards) {
      const inTask = !task.value || card.dataset.task === task.value;
      const visible = inTask && (!state || card.dataset.state === state);
      card.hidden = !visible;
      shown += visible;
      if (inTask) {
        counts[card.dataset.state] = (counts[card.dataset.state] || 0) + 1;
        counts[""] = (counts[""] || 0) + 1;
      }
    }
    for (const label of form.querySelectorAll(".count")) {
      label.textContent = (counts[label.dataset.state] || 0).toLocaleString("en");
    }
    none.hidden = shown > 0;
  }

  form.addEventListener("change", apply);
  form.addEventListener("submit", (event) => event.preventDefault());
  form.reset();
  apply();
})();
