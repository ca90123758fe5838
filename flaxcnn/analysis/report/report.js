"use strict";
document.documentElement.classList.add("script");

function shown(count, total) {
  return count === total ? `${total} shown` : `${count} of ${total} shown`;
}

for (const form of document.querySelectorAll("form.filters")) {
  const grid = document.getElementById(form.dataset.for);
  const all = [...grid.children];
  const update = () => {
    const by = form.elements.sort.value;
    const number = (figure) => {
      const [text, value] = [figure.dataset[by], Number(figure.dataset[by])];
      return text === "" ? -1 : Number.isNaN(value) ? Infinity : value; // NaN is the worst loss
    };
    const order = by === "index" ? 1 : -1;
    let count = 0;
    for (const figure of [...all].sort((a, b) => order * (number(a) - number(b) || 0))) {
      const fits = ["true", "predicted"].every((name) => {
        const wanted = form.elements[name].value;
        return form.elements[name].selectedIndex === 0 || figure.dataset[name] === wanted;
      });
      figure.hidden = !fits;
      count += fits;
      grid.append(figure);
    }
    form.querySelector("output").textContent = shown(count, all.length);
  };
  form.addEventListener("change", update);
  form.addEventListener("submit", (event) => event.preventDefault());
  form.hidden = false;
  update();
}

for (const box of document.querySelectorAll(".confusion")) {
  const { epochs, names } = JSON.parse(box.querySelector("script").textContent);
  const rows = [...box.querySelectorAll("tbody tr")].map((row) => [...row.querySelectorAll("td")]);
  const range = box.querySelector("input");
  const draw = () => {
    const { counts, split, epoch } = epochs[range.value];
    box.querySelector(".when").textContent = `${split}, epoch ${epoch}`;
    rows.forEach((cells, i) => {
      const total = Math.max(1, counts[i].reduce((a, b) => a + b, 0));
      cells.forEach((cell, j) => {
        cell.textContent = counts[i][j];
        cell.style.setProperty("--s", counts[i][j] / total);
      });
    });
  };
  range.addEventListener("input", draw);
  box.querySelector(".slider").hidden = epochs.length < 2;
  const form = document.querySelector(`form[data-for="${box.id.replace("confusion", "mistakes")}"]`);
  rows.forEach((cells, i) => cells.forEach((cell, j) => {
    cell.addEventListener("click", () => {
      if (form === null || i === j) return;
      for (const [name, k] of [["true", i], ["predicted", j]]) {
        const options = [...form.elements[name].options];
        const at = options.findIndex((option, place) => place > 0 && option.value === names[k]);
        if (at < 0) return;
        form.elements[name].selectedIndex = at;
      }
      form.dispatchEvent(new Event("change"));
      form.scrollIntoView({ behavior: "smooth" });
    });
  }));
}

for (const table of document.querySelectorAll("table.sortable")) {
  table.classList.add("script");
  const body = table.tBodies[0];
  [...table.tHead.rows[0].cells].forEach((head, column) => {
    let order = -1;
    head.title = "sort";
    head.addEventListener("click", () => {
      order = -order;
      const value = (row) => row.cells[column].dataset.value ?? row.cells[column].textContent;
      const compare = (a, b) => {
        const [x, y] = [value(a), value(b)];
        const difference = Number(x) - Number(y);
        return order * (Number.isNaN(difference) ? x.localeCompare(y) : difference);
      };
      body.append(...[...body.rows].sort(compare));
    });
  });
}
