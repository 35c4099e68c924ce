"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const all = (selector, from = document) => [...from.querySelectorAll(selector)];
const one = (id) => document.getElementById(id);
const make = (tag, values = {}, ...children) => {
  const made = Object.assign(document.createElement(tag), values);
  made.append(...children);
  return made;
};

// Theme: the choice is remembered where the browser allows it.
const wish = matchMedia("(prefers-color-scheme: dark)");
const root = document.documentElement;
let printing = false;
function remembered() {
  try { return localStorage.getItem("semiseg-theme"); } catch { return null; }
}
function applyTheme() {
  const chosen = one("theme").value;
  root.toggleAttribute("data-dark", !printing && (chosen === "dark" || (chosen === "auto" && wish.matches)));
  drawn.forEach((figure) => Plotly.relayout(plot(figure), colors()));
}
function colors() {
  const style = getComputedStyle(root);
  const [text, grid, card, line] = ["--text", "--grid", "--card", "--line"].map((name) => style.getPropertyValue(name).trim());
  const found = { paper_bgcolor: card, plot_bgcolor: card, "font.color": text, "hoverlabel.bgcolor": card, "hoverlabel.bordercolor": line, "legend.bgcolor": card };
  for (const axis of ["xaxis", "yaxis"]) Object.assign(found, { [`${axis}.gridcolor`]: grid, [`${axis}.linecolor`]: line, [`${axis}.zerolinecolor`]: line });
  return found;
}

// Charts are drawn when they come into view.
const drawn = new Set();
const chosenRuns = () => new Set(all("input[name=run]:checked").map((box) => Number(box.value)));
const plot = (figure) => figure.querySelector(".chart");
function visible(figure, traces) {
  const runs = chosenRuns();
  const select = figure.querySelector("[data-choice]");
  const followed = new Set(all("[data-follow]:checked", figure).map((box) => box.value));
  return traces.map(({ meta }) =>
    runs.has(meta.run) && (!meta.choice || meta.choice === select.value) && (!meta.follow || followed.has(meta.follow)));
}
function draw(figure) {
  if (drawn.has(figure)) return;
  drawn.add(figure);
  const chart = data.charts[figure.dataset.chart];
  const shown = visible(figure, chart.traces);
  const traces = chart.traces.map((trace, index) => ({ ...trace, visible: shown[index] }));
  const layout = { ...structuredClone(chart.layout), showlegend: hasLegend(chart, shown), font: { size: 12, family: getComputedStyle(document.body).fontFamily }, legend: { font: { size: 11 }, orientation: "h", yref: "container", y: 0, yanchor: "bottom" } };
  Plotly.newPlot(plot(figure), traces, layout, { responsive: true, displaylogo: false, modeBarButtonsToRemove: ["select2d", "lasso2d", "autoScale2d"] });
  Plotly.relayout(plot(figure), colors());
}
function hasLegend(chart, shown) {
  return chart.layout.showlegend || chart.traces.some(({ meta }, index) => meta.follow && shown[index]);
}
function refresh(figure) {
  const select = figure.querySelector("[data-choice]");
  if (select) select.closest(".choice").dataset.chosen = `: ${select.value}`;
  if (!drawn.has(figure)) return;
  const chart = data.charts[figure.dataset.chart];
  const shown = visible(figure, chart.traces);
  Plotly.update(plot(figure), { visible: shown }, { showlegend: hasLegend(chart, shown) });
}
const figures = all("[data-chart]");
const watcher = new IntersectionObserver((entries) => entries.forEach((entry) => entry.isIntersecting && draw(entry.target)), { rootMargin: "400px" });
figures.forEach((figure) => {
  const boxes = all("[data-follow]", figure);
  for (const word of ["hardest", "easiest"]) {
    const first = boxes.find((box) => box.value.includes(`(${word}, `));
    if (first) first.checked = true;
  }
  all("select, [data-follow]", figure).forEach((control) => control.addEventListener("change", () => refresh(figure)));
  all("[data-save]", figure).forEach((button) => button.addEventListener("click", () => {
    draw(figure);
    Plotly.downloadImage(plot(figure), { format: button.dataset.save, filename: figure.dataset.chart, width: 700, height: 420, scale: button.dataset.save === "png" ? 3 : 1 });
  }));
  refresh(figure);
  watcher.observe(figure);
});
function refreshRuns() {
  const runs = chosenRuns();
  all("[data-run]").forEach((part) => { part.hidden = !runs.has(Number(part.dataset.run)); });
  figures.forEach(refresh);
}
all("input[name=run]").forEach((box) => box.addEventListener("change", refreshRuns));

// Confusion matrix
function showMatrix() {
  const { rows, label } = data.confusions[Number(one("matrix").value)];
  const head = make("tr", {}, make("th", { scope: "col", textContent: "class" }), ...data.classes.map((name) => make("th", { scope: "col", textContent: name })));
  const body = rows.map((row, index) => {
    const total = row.reduce((sum, value) => sum + value, 0);
    const cells = row.map((value, column) => {
      const share = total ? value / total : 0;
      const cell = make("td", { textContent: total ? (100 * share).toFixed(1) : "-", title: `${value} pixels of ${data.classes[index]} taken for ${data.classes[column]}` });
      cell.style.background = `rgba(var(--shade), ${(0.75 * share).toFixed(3)})`;
      if (index === column) cell.style.fontWeight = "600";
      return cell;
    });
    return make("tr", {}, make("th", { scope: "row", textContent: data.classes[index] }), ...cells);
  });
  const caption = make("caption", { textContent: label });
  document.querySelector(".matrix").replaceChildren(make("table", {}, caption, make("thead", {}, head), make("tbody", {}, ...body)));
}
if (one("matrix")) {
  one("matrix").addEventListener("change", showMatrix);
  showMatrix();
}

// Pictures: two layers, the right one cut off at the divider.
function pictures(entry, layer) {
  const photo = make("img", { src: entry.layers[0].uri, alt: layer.mask ? "" : `${entry.name}, image` });
  const mask = layer.mask ? [make("img", { src: layer.uri, className: "mask", alt: `${entry.name}, ${layer.label}` })] : [];
  return [photo, ...mask];
}
function showSides() {
  const entry = data.images[Number(one("image").value)];
  for (const side of ["left", "right"]) {
    const layer = entry.layers[one(side).selectedIndex];
    const place = one(`layer-${side}`);
    place.replaceChildren(...pictures(entry, layer));
    document.querySelector(`.tag.${side}`).textContent = layer.label;
    const photo = place.firstChild;
    photo.addEventListener("load", () => {
      const stage = document.querySelector(".stage");
      stage.style.aspectRatio = `${photo.naturalWidth} / ${photo.naturalHeight}`;
      stage.style.width = `min(100%, ${(560 * photo.naturalWidth / photo.naturalHeight).toFixed(0)}px)`;
    });
  }
}
function showImage() {
  const entry = data.images[Number(one("image").value)];
  for (const [side, fallback] of [["left", 1], ["right", 2]]) {
    const wanted = one(side).value;
    one(side).replaceChildren(...entry.layers.map(({ label }) => make("option", { textContent: label })));
    const kept = entry.layers.findIndex(({ label }) => label === wanted);
    one(side).selectedIndex = kept >= 0 ? kept : Math.min(fallback, entry.layers.length - 1);
  }
  const rows = Object.entries(entry.miou).map(([label, value]) =>
    make("tr", {}, make("th", { scope: "row", textContent: label }), make("td", { textContent: (100 * value).toFixed(1) })));
  document.querySelector(".scores tbody").replaceChildren(...rows);
  showSides();
}
function moveDivider() {
  const at = Number(one("divider").value);
  one("layer-right").style.clipPath = `inset(0 0 0 ${at}%)`;
  document.querySelector(".handle").style.left = `${at}%`;
}
if (one("image")) {
  const stage = document.querySelector(".stage");
  const step = (by) => {
    const count = data.images.length;
    one("image").value = (Number(one("image").value) + by + count) % count;
    showImage();
  };
  one("image").addEventListener("change", showImage);
  one("left").addEventListener("change", showSides);
  one("right").addEventListener("change", showSides);
  one("before").addEventListener("click", () => step(-1));
  one("after").addEventListener("click", () => step(1));
  one("divider").addEventListener("input", moveDivider);
  one("opacity").addEventListener("input", () => stage.style.setProperty("--mask", one("opacity").value / 100));
  const drag = (event) => {
    if (event.type === "pointermove" && !event.buttons) return;
    const box = stage.getBoundingClientRect();
    one("divider").value = (100 * (event.clientX - box.left)) / box.width;
    moveDivider();
  };
  stage.addEventListener("pointerdown", (event) => { event.preventDefault(); stage.setPointerCapture(event.pointerId); drag(event); });
  stage.addEventListener("pointermove", drag);
  all("[data-show]").forEach((card) => {
    const entry = data.images[Number(card.dataset.show)];
    const own = entry.layers.find(({ run }) => run === Number(card.dataset.of));
    const shown = [entry.layers[0], entry.layers[1], own];
    card.querySelector(".trio").append(...shown.map(({ uri }) => make("img", { src: uri, alt: "" })));
    card.lastElementChild.textContent = `${entry.name} · mIoU ${(100 * entry.miou[own.label]).toFixed(1)} %`;
    card.addEventListener("click", () => {
      one("image").value = card.dataset.show;
      showImage();
      const labels = entry.layers.map(({ label }) => label);
      one("right").selectedIndex = labels.indexOf(own.label);
      showSides();
      document.querySelector(".viewer").scrollIntoView({ block: "center" });
      one("image").focus({ preventScroll: true });
    });
  });
  showImage();
  moveDivider();
}

one("theme").value = remembered() || "auto";
one("theme").addEventListener("change", () => {
  try { localStorage.setItem("semiseg-theme", one("theme").value); } catch { /* a file's storage may be closed */ }
  applyTheme();
});
wish.addEventListener("change", applyTheme);
applyTheme();
addEventListener("beforeprint", () => {
  printing = true;
  all("#recipe details").forEach((part) => { part.open = true; });
  figures.forEach(draw);
  applyTheme();
  drawn.forEach((figure) => Plotly.relayout(plot(figure), { width: 330, height: 230 }));
});
addEventListener("afterprint", () => {
  printing = false;
  drawn.forEach((figure) => Plotly.relayout(plot(figure), { width: null, height: null, autosize: true }));
  applyTheme();
});
