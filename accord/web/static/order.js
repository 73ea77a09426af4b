// A ranking under the hands: dragged by mouse or finger, moved by buttons and arrow keys, or picked by numbers.

export function makeOrder(list) {
  let touched = false;
  let picked = 0; // how many were picked by number, from the top
  let dragged = null;

  const rows = () => [...list.children];
  const place = (row) => Number(row.dataset.place);

  function settle() {
    rows()[0].querySelector("[data-tie]").setAttribute("aria-pressed", "false"); // nothing is above the first
    rows().forEach((row, index) => (row.querySelector("[data-tie]").disabled = index === 0));
  }

  function move(row, step) {
    const other = step < 0 ? row.previousElementSibling : row.nextElementSibling;
    if (!other) return;
    list.insertBefore(step < 0 ? row : other, step < 0 ? other : row);
    touched = true;
    settle();
  }

  list.addEventListener("click", (event) => {
    const button = event.target.closest("button");
    if (!button) return;
    const row = button.closest("li");
    if (button.dataset.move) {
      move(row, Number(button.dataset.move));
      button.focus();
    } else if (button.matches("[data-tie]")) {
      button.setAttribute("aria-pressed", String(button.getAttribute("aria-pressed") !== "true"));
      touched = true;
    }
  });

  list.addEventListener("keydown", (event) => {
    const step = { ArrowUp: -1, ArrowDown: 1 }[event.key];
    const button = event.target.closest("button");
    if (!step || !button) return;
    event.preventDefault();
    move(button.closest("li"), step);
    button.focus();
  });

  list.addEventListener("pointerdown", (event) => {
    const handle = event.target.closest(".handle");
    if (!handle || event.button !== 0) return;
    dragged = handle.closest("li");
    dragged.classList.add("dragged");
    list.setPointerCapture(event.pointerId);
    event.preventDefault();
  });

  list.addEventListener("pointermove", (event) => {
    if (!dragged) return;
    const middle = (row) => row.getBoundingClientRect().top + row.offsetHeight / 2;
    const above = dragged.previousElementSibling;
    const below = dragged.nextElementSibling;
    if (above && event.clientY < middle(above)) move(dragged, -1);
    else if (below && event.clientY > middle(below)) move(dragged, 1);
  });

  for (const end of ["pointerup", "pointercancel", "lostpointercapture"]) {
    list.addEventListener(end, () => {
      dragged?.classList.remove("dragged");
      dragged = null;
    });
  }

  // Put the response shown at `shown` next in the order; null begins again with the order shown.
  function pick(shown) {
    if (shown === null) {
      picked = 0;
      rows().sort((one, other) => place(one) - place(other)).forEach((row) => list.append(row));
      touched = false;
    } else {
      const index = rows().findIndex((row) => place(row) === shown);
      if (index < picked) return; // not there, or picked already
      list.insertBefore(rows()[index], rows()[picked]);
      picked += 1;
      touched = true;
    }
    settle();
  }

  function tiers() {
    const found = [];
    for (const row of rows()) {
      const isTied = row.querySelector("[data-tie]").getAttribute("aria-pressed") === "true";
      if (isTied && found.length) found.at(-1).push(place(row));
      else found.push([place(row)]);
    }
    return found;
  }

  settle();
  return { move, pick, tiers, isTouched: () => touched, touch: () => (touched = true) };
}
