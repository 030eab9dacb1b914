"use strict";
// Draws the figures in the colours of the page, sorts and searches the tables, and finds a row's node in the drawing.

const dark = window.matchMedia("(prefers-color-scheme: dark)");

function colours() {
  const style = getComputedStyle(document.documentElement);
  const [ink, line, panel] = ["--ink", "--line", "--panel"].map((name) => style.getPropertyValue(name).trim());
  return {
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", "font.color": ink,
    "hoverlabel.bgcolor": panel, "hoverlabel.font.color": ink, "hoverlabel.bordercolor": line, "legend.bgcolor": "rgba(0,0,0,0)",
    "modebar.bgcolor": "rgba(0,0,0,0)", "modebar.color": line, "modebar.activecolor": ink,
  };
}

function axesOf(layout) {
  const found = {};
  for (const name of Object.keys(layout).filter((key) => /^[xy]axis\d*$/.test(key))) {
    const line = getComputedStyle(document.documentElement).getPropertyValue("--line").trim();
    Object.assign(found, { [name + ".gridcolor"]: line, [name + ".zerolinecolor"]: line, [name + ".linecolor"]: line });
    if (layout[name].rangeslider) found[name + ".rangeslider.bordercolor"] = line;
  }
  return found;
}

for (const source of document.querySelectorAll("script[data-figure]")) {
  const { data, layout } = JSON.parse(source.textContent);
  const place = document.getElementById(source.dataset.figure);
  const narrow = window.innerWidth < 700;
  if (narrow) layout.height += 24 * data.filter((trace) => trace.showlegend !== false).length; // it stands in rows there
  const options = { responsive: true, displaylogo: false, modeBarButtons: [["zoomIn2d", "zoomOut2d", "resetScale2d", "toImage"]] };
  const paint = () => Plotly.relayout(place, { ...colours(), ...axesOf(layout) });
  Plotly.newPlot(place, data, layout, options).then(paint);
  dark.addEventListener("change", paint);
}

function keyOf(row, column) {
  const cell = row.cells[column];
  return "key" in cell.dataset ? Number(cell.dataset.key) : cell.textContent;
}

function sort(table, column, descending) {
  const rows = Array.from(table.tBodies[0].rows, (row) => ({ row, key: keyOf(row, column) }));
  const order = (a, b) => typeof a === "number" && typeof b === "number" ? a - b
    : String(a).localeCompare(String(b), "en", { numeric: true });
  rows.sort((a, b) => (descending ? -1 : 1) * order(a.key, b.key));
  table.tBodies[0].append(...rows.map(({ row }) => row));
}

for (const table of document.querySelectorAll("table")) {
  const heads = Array.from(table.tHead.rows[0].cells);
  heads.forEach((head, column) => head.querySelector("button").addEventListener("click", () => {
    const descending = head.ariaSort === "ascending";
    heads.forEach((other) => { other.ariaSort = null; });
    head.ariaSort = descending ? "descending" : "ascending";
    sort(table, column, descending);
  }));
  if (table.tBodies[0].rows.length > 8) {
    const filter = document.createElement("input");
    Object.assign(filter, { type: "search", className: "filter", placeholder: "search these rows" });
    filter.setAttribute("aria-label", "search these rows");
    filter.addEventListener("input", () => {
      const wanted = filter.value.toLowerCase();
      for (const row of table.tBodies[0].rows) row.hidden = !row.textContent.toLowerCase().includes(wanted);
    });
    table.parentElement.before(filter);
  }
}

// A row's node: the drawing moves there and tells what it is.
for (const button of document.querySelectorAll("button[data-focus]")) {
  button.addEventListener("click", () => {
    const place = document.getElementById("network"), wanted = Number(button.dataset.focus);
    place.data.forEach((trace, curve) => {
      const point = (trace.customdata || []).indexOf(wanted);
      if (point < 0) return;
      const x = trace.x[point];
      Plotly.relayout(place, { "xaxis.range": [x - 12, x + 12] }).then(() => {
        place.scrollIntoView({ behavior: "smooth", block: "center" });
        Plotly.Fx.hover(place, [{ curveNumber: curve, pointNumber: point }]);
      });
    });
  });
}
