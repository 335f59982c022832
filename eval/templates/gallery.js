// Filters and sorts the images. Without it the page shows all of them, in the order they were chosen.
(() => {
  const tools = document.getElementById("tools");
  const boxes = [...document.querySelectorAll(".gridbox")];
  const chosen = new Map(boxes.map((box) => [box, [...box.querySelectorAll(".row")]]));
  const value = (name) => (tools.elements[name] ? tools.elements[name].value : "");
  const update = () => {
    const words = value("text").toLowerCase().trim();
    let shown = 0;
    for (const [box, rows] of chosen) {
      const wanted =
        (!value("kind") || box.dataset.kind === value("kind")) &&
        (!value("model") || !box.dataset.model || box.dataset.model === value("model"));
      let inBox = 0;
      for (const row of rows) {
        row.hidden = !(
          wanted && (!value("set") || row.dataset.set === value("set")) && row.dataset.text.includes(words)
        );
        inBox += row.hidden ? 0 : 1;
      }
      box.hidden = inBox === 0;
      shown += inBox;
      const sign = { up: 1, down: -1 }[value("order")] || 0;
      const order = sign ? [...rows].sort((a, b) => sign * (a.dataset.gain - b.dataset.gain)) : rows;
      box.querySelector(".grid").append(...order);
    }
    tools.querySelector("output").textContent = shown === 1 ? "1 prompt" : shown + " prompts";
  };
  tools.addEventListener("input", update);
  tools.addEventListener("submit", (event) => event.preventDefault());
  // Arrow keys move from one prompt to the next.
  document.getElementById("gallery").addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!step || !event.target.classList.contains("row")) return;
    const rows = [...document.querySelectorAll(".row:not([hidden])")];
    const next = rows[rows.indexOf(event.target) + step];
    if (next) {
      event.preventDefault();
      next.focus();
    }
  });
  tools.hidden = false;
  update();
})();
