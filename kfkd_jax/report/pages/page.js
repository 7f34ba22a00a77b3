"use strict";
// Adds to a page that is complete without it: values under the pointer or the
// arrow keys, methods and runs to hide, tables to sort, and downloads.
// Names reach the page as text only.

function element(tag, attributes = {}, text = "") {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    made.setAttribute(name, value);
  }
  made.textContent = text;
  return made;
}

// Values of a figure's points.

const tip = element("div", { class: "tip", role: "status" });
document.body.append(tip);
let lit = null;

function quiet() {
  if (lit) lit.classList.remove("lit");
  lit = null;
  tip.classList.remove("shown");
}

function say(point) {
  if (lit === point) return;
  quiet();
  lit = point;
  point.classList.add("lit");
  tip.textContent = point.dataset.says;
  tip.classList.add("shown");
  const box = point.getBoundingClientRect();
  const width = document.documentElement.clientWidth;
  const left = box.left + box.width / 2 - tip.offsetWidth / 2;
  const above = box.top - tip.offsetHeight - 6;
  const room = width - tip.offsetWidth - 8;
  tip.style.left = `${Math.max(8, Math.min(left, room))}px`;
  tip.style.top = `${above < 4 ? box.bottom + 6 : above}px`;
}

function watchPoints(svg) {
  const points = [...svg.querySelectorAll("circle.point")];
  if (!points.length) return;
  for (const point of points) {
    const title = point.querySelector("title");
    point.dataset.says = title.textContent;
    title.remove(); // the browser would show it as well
  }
  const shown = () => points.filter((p) => !p.classList.contains("off"));
  const nearest = (event) => {
    let best = null;
    let distance = 24;
    for (const point of shown()) {
      const box = point.getBoundingClientRect();
      const away = Math.hypot(
        box.left + box.width / 2 - event.clientX,
        box.top + box.height / 2 - event.clientY,
      );
      if (away < distance) [best, distance] = [point, away];
    }
    if (best) say(best);
    else quiet();
  };
  svg.addEventListener("pointermove", nearest);
  svg.addEventListener("pointerdown", nearest);
  svg.addEventListener("pointerleave", quiet);
  svg.addEventListener("blur", quiet);
  svg.setAttribute("tabindex", "0");
  svg.setAttribute("aria-roledescription", "figure, arrow keys tell its values");
  svg.addEventListener("keydown", (event) => {
    const open = shown();
    const at = open.indexOf(lit);
    const next = {
      ArrowRight: at + 1,
      ArrowLeft: at < 0 ? open.length - 1 : at - 1,
      Home: 0,
      End: open.length - 1,
    }[event.key];
    if (event.key === "Escape") quiet();
    if (next === undefined || !open.length) return;
    event.preventDefault();
    say(open[(next + open.length) % open.length]);
  });
}

// Methods and runs to hide.

const hidden = { method: new Set(), run: new Set() };

function hide() {
  for (const part of document.querySelectorAll("[data-method], [data-run]")) {
    const { method, run } = part.dataset;
    part.classList.toggle(
      "off", hidden.method.has(method) || hidden.run.has(run),
    );
  }
  quiet();
}

function fillToggles(place) {
  const { kind, title } = place.dataset;
  const names = new Map();
  for (const part of document.querySelectorAll(`[data-${kind}][data-label]`)) {
    names.set(part.dataset[kind], part.dataset.label);
  }
  if (names.size < 2) return;
  place.setAttribute("role", "group");
  place.setAttribute("aria-label", title);
  place.append(element("span", {}, title));
  const buttons = [];
  const press = (button, on) => {
    button.setAttribute("aria-pressed", on);
    if (on) hidden[kind].delete(button.value);
    else hidden[kind].add(button.value);
  };
  for (const [name, label] of names) {
    const button = element("button", { type: "button" }, label);
    button.value = name;
    button.setAttribute("aria-pressed", true);
    button.addEventListener("click", () => {
      press(button, button.getAttribute("aria-pressed") !== "true");
      hide();
    });
    buttons.push(button);
  }
  for (const [label, on] of [["All", true], ["None", false]]) {
    const button = element("button", { type: "button", class: "all" }, label);
    button.addEventListener("click", () => {
      for (const other of buttons) press(other, on);
      hide();
    });
    place.append(button);
  }
  place.append(...buttons);
}

// Tables to sort.

function valueOf(cell) {
  const text = cell.dataset.value ?? cell.textContent.trim();
  if (text === "" || text === "–") return null;
  return Number.isNaN(Number(text)) ? text : Number(text);
}

function compare(a, b) {
  if (typeof a === "number" && typeof b === "number") return a - b;
  return String(a).localeCompare(String(b), undefined, { numeric: true });
}

function sortBody(body, column, direction) {
  const rows = [...body.rows].filter((row) => !row.matches(".fold"));
  rows.forEach((row, place) => { row.dataset.place ??= place; });
  rows.sort((a, b) => {
    if (!direction) return a.dataset.place - b.dataset.place;
    const [x, y] = [valueOf(a.cells[column]), valueOf(b.cells[column])];
    if (x === null || y === null) return (x === null) - (y === null);
    return direction * compare(x, y);
  });
  body.append(...rows);
}

function makeSortable(table) {
  const heads = table.querySelectorAll("th[data-sort]");
  for (const head of heads) {
    const button = element("button", { type: "button", class: "sort" });
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const column = Number(head.dataset.sort);
      const cell = table.tBodies[0].querySelector("tr:not(.fold)").cells[column];
      const first = typeof valueOf(cell) === "string" ? "ascending" : "descending";
      const second = first === "ascending" ? "descending" : "ascending";
      const before = head.getAttribute("aria-sort");
      const now = { [first]: second, [second]: null }[before] ?? (before ? null : first);
      for (const other of heads) other.removeAttribute("aria-sort");
      if (now) head.setAttribute("aria-sort", now);
      const direction = { ascending: 1, descending: -1 }[now] ?? 0;
      for (const body of table.tBodies) sortBody(body, column, direction);
    });
  }
}

// Downloads.

function download(name, content, type) {
  const blob = content instanceof Blob ? content : new Blob([content], { type });
  const link = element("a", { download: name, href: URL.createObjectURL(blob) });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}

// As on paper: its own colours on white, without what is hidden.
function asFile(svg) {
  const copy = svg.cloneNode(true);
  for (const part of copy.querySelectorAll(".point, .off")) part.remove();
  for (const name of ["tabindex", "aria-roledescription", "data-on"]) {
    copy.removeAttribute(name);
  }
  const ground = document.createElementNS(svg.namespaceURI, "rect");
  for (const [name, value] of [["width", "100%"], ["height", "100%"], ["fill", "#ffffff"]]) {
    ground.setAttribute(name, value);
  }
  copy.prepend(ground);
  const box = svg.viewBox.baseVal;
  copy.setAttribute("width", box.width);
  copy.setAttribute("height", box.height);
  for (const part of [copy, ...copy.querySelectorAll("*")]) {
    for (const { name, value } of [...part.attributes]) {
      if (!["style", "fill", "stroke"].includes(name)) continue;
      const plain = value.replace(/var\(--\w+, (#\w+)\)/g, "$1");
      part.setAttribute(name, plain.replaceAll("currentColor", "#1f2328"));
    }
  }
  return new XMLSerializer().serializeToString(copy);
}

function asPicture(svg) {
  const scale = 3;
  const box = svg.viewBox.baseVal;
  const picture = new Image();
  return new Promise((resolve, reject) => {
    picture.onerror = reject;
    picture.onload = () => {
      const canvas = element("canvas");
      canvas.width = scale * box.width;
      canvas.height = scale * box.height;
      canvas.getContext("2d").drawImage(picture, 0, 0, canvas.width, canvas.height);
      canvas.toBlob(resolve, "image/png");
    };
    picture.src = `data:image/svg+xml,${encodeURIComponent(asFile(svg))}`;
  });
}

// The heading over every column, spans resolved.
function headings(table) {
  const grid = [];
  [...table.tHead.rows].forEach((row, r) => {
    let c = 0;
    for (const cell of row.cells) {
      while (grid[c]?.[r]) c += 1;
      for (let i = c; i < c + cell.colSpan; i += 1) {
        for (let j = r; j < r + cell.rowSpan; j += 1) {
          grid[i] ??= [];
          grid[i][j] = cell;
        }
      }
      c += cell.colSpan;
    }
  });
  return grid.map((cells) => [...new Set(cells)].map(textOf).join(" ").trim());
}

function textOf(cell) {
  return cell.innerText.replace(/\s+/g, " ").trim();
}

function contentOf(table) {
  const parts = [...table.tBodies].some((body) => body.querySelector(".fold"));
  const lines = [[...(parts ? ["Part"] : []), ...headings(table)]];
  for (const body of table.tBodies) {
    const part = body.querySelector(".fold");
    for (const row of body.rows) {
      if (row === part || row.matches(".off")) continue;
      const cells = [...row.cells];
      lines.push([
        ...(parts ? [part ? textOf(part) : ""] : []),
        ...cells.map((cell) => cell.dataset.value ?? textOf(cell)),
      ]);
    }
  }
  return lines;
}

// As stages/text.py: what a spreadsheet would run begins with an apostrophe.
function asCsv(lines) {
  const inert = (text) => /^\s*[=+\-@＝＋－＠]/.test(text) && Number.isNaN(Number(text))
    ? `'${text}` : text;
  const quote = (cell) => {
    const text = inert(cell);
    return /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
  };
  return lines.map((line) => `${line.map(quote).join(",")}\n`).join("");
}

function asMarkdown(lines) {
  const entities = { "&": "&amp;", "<": "&lt;", ">": "&gt;" };
  const inert = (text) => text.replace(/[&<>]/g, (c) => entities[c])
    .replace(/[\\`*[\]|~$]|(?<![\p{L}\p{N}])_|_(?![\p{L}\p{N}])/gu, "\\$&");
  const [head, ...rest] = lines.map((line) => line.map(inert));
  const all = [head, head.map(() => "---"), ...rest];
  return all.map((line) => `| ${line.join(" | ")} |\n`).join("");
}

function tools(what, acts) {
  const place = element("p", { class: "tools" });
  for (const [label, act] of acts) {
    const button = element("button", { type: "button" }, label);
    button.setAttribute("aria-label", `${label}: download ${what}`);
    button.addEventListener("click", act);
    place.append(button);
  }
  return place;
}

for (const figure of document.querySelectorAll("figure[data-name]")) {
  const svg = figure.querySelector("svg");
  const { name } = figure.dataset;
  watchPoints(svg);
  figure.querySelector("figcaption").append(tools(`figure ${name}`, [
    ["SVG", () => download(`${name}.svg`, asFile(svg), "image/svg+xml")],
    ["PNG", async () => download(`${name}.png`, await asPicture(svg))],
  ]));
}
document.querySelectorAll(".toggles").forEach(fillToggles);
for (const table of document.querySelectorAll("table[data-name]")) {
  const { name } = table.dataset;
  makeSortable(table);
  table.after(tools(`table ${name}`, [
    ["CSV", () => download(`${name}.csv`, asCsv(contentOf(table)), "text/csv")],
    ["Markdown", () => download(`${name}.md`, asMarkdown(contentOf(table)), "text/markdown")],
  ]));
}
addEventListener("scroll", quiet, { passive: true });
addEventListener("beforeprint", () => {
  quiet();
  for (const part of document.querySelectorAll("details")) part.open = true;
});
