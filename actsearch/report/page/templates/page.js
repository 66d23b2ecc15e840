
"use strict";
document.documentElement.classList.add("js");

// The function at each stage: the slider puts its curve, words and bars in place, and moves the lines of time.
(() => {
  const source = document.getElementById("stage-data");
  const slider = document.getElementById("stage");
  if (!source || !slider) return;
  const { x, stages, cells } = JSON.parse(source.textContent);
  const label = document.getElementById("stage-label");
  const figures = [...document.querySelectorAll(".moves")].map((figure) => {
    const group = figure.querySelector(".moving");
    const [ax, bx, ay, by] = ["ax", "bx", "ay", "by"].map((key) => Number(group.dataset[key]));
    return {
      cell: cells[Number(figure.dataset.cell)],
      line: group.querySelector("path"),
      formula: figure.querySelector(".stage-formula"),
      svg: figure.querySelector(".chart"),
      draw(ys) {
        let pen = "M";
        let d = "";
        ys.forEach((y, k) => {
          if (y === null) { pen = "M"; return; }
          const up = Math.max(-900, Math.min(900, ay + by * y));
          d += pen + (ax + bx * x[k]).toFixed(1) + " " + up.toFixed(1);
          pen = "L";
        });
        return d;
      },
    };
  });
  const rows = [...document.querySelectorAll(".choices tr")];
  const cursors = [...document.querySelectorAll(".cursor")];

  const bar = (op, p) => {
    const box = document.createElement("div");
    box.className = "bar";
    const space = "http://www.w3.org/2000/svg";
    const svg = document.createElementNS(space, "svg");
    svg.setAttribute("viewBox", "0 0 100 10");
    svg.setAttribute("preserveAspectRatio", "none");
    svg.setAttribute("aria-hidden", "true");
    const rect = document.createElementNS(space, "rect");
    rect.setAttribute("width", String(p === null ? 100 : 100 * p));
    rect.setAttribute("height", "10");
    svg.append(rect);
    const name = document.createElement("span");
    name.textContent = op;
    const share = document.createElement("span");
    share.className = "p";
    share.textContent = p === null ? "chosen" : Math.round(100 * p) + " %";
    box.append(svg, name, share);
    return box;
  };

  const show = (k) => {
    const stage = stages[k];
    label.textContent = stage.label;
    slider.setAttribute("aria-valuetext", stage.label + ": " + cells[0].formulas[k]);
    document.getElementById("stage-phase").textContent = stage.phase;
    document.getElementById("stage-losses").textContent = stage.losses;
    document.getElementById("stage-survivors").textContent = String(stage.survivors);
    for (const one of figures) {
      one.line.setAttribute("d", one.draw(one.cell.y[k]));
      one.formula.textContent = one.cell.formulas[k];
      one.svg.setAttribute("aria-label", "f(x) at " + stage.label + ": " + one.cell.formulas[k]);
    }
    stage.choices.forEach((choice, row) => {
      if (rows[row]) rows[row].lastElementChild.replaceChildren(...choice.best.map(([op, p]) => bar(op, p)));
    });
    for (const line of cursors) {
      const at = Number(line.dataset.zero) + Number(line.dataset.step) * stage.at;
      line.setAttribute("x1", at.toFixed(1));
      line.setAttribute("x2", at.toFixed(1));
    }
  };
  slider.addEventListener("input", () => show(Number(slider.value)));
  show(Number(slider.value));
})();

// Commands are copied; where the clipboard is closed to a page, they are at least selected.
for (const button of document.querySelectorAll(".copy")) {
  const code = button.parentElement.querySelector("code");
  button.addEventListener("click", async () => {
    let said = "Copied";
    try {
      await navigator.clipboard.writeText(code.textContent);
    } catch {
      getSelection().selectAllChildren(code);
      said = "Selected";
    }
    button.textContent = said;
    setTimeout(() => { button.textContent = "Copy"; }, 1500);
  });
}

// The table of contents shows where the reader is.
(() => {
  const links = new Map([...document.querySelectorAll(".contents a")].map((a) => [a.hash.slice(1), a]));
  const seen = new Set();
  const watch = new IntersectionObserver((entries) => {
    for (const entry of entries) entry.isIntersecting ? seen.add(entry.target.id) : seen.delete(entry.target.id);
    const first = [...links.keys()].find((id) => seen.has(id));
    for (const [id, link] of links) link.classList.toggle("here", id === first);
  }, { rootMargin: "-10% 0px -55% 0px" });
  for (const id of links.keys()) {
    const part = document.getElementById(id);
    if (part) watch.observe(part);
  }
})();

// On paper nothing is folded.
addEventListener("beforeprint", () => {
  for (const folded of document.querySelectorAll("details")) folded.open = true;
});
