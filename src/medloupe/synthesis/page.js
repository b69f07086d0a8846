"use strict";
// The form hides cards; without this script every card shows.
(function () {
  const form = document.getElementById("choose");
  const cards = Array.from(document.querySelectorAll("#cards .card"));
  if (!form || !cards.length) return;
  document.documentElement.classList.add("js");
  const reason = document.getElementById("reason");

  function apply() {
    const state = form.elements.state.value;
    for (const card of cards) {
      const reasons = card.dataset.reasons.split(" ");
      const fits = !reason.value || reasons.includes(reason.value);
      card.hidden = !fits || (state !== "" && card.dataset.state !== state);
    }
  }

  form.addEventListener("change", apply);
  form.addEventListener("submit", (event) => event.preventDefault());
  form.reset();
  apply();
})();
