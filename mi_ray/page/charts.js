"use strict";
// The charts of the page: specifications of Vega-Lite, and how a chart takes the keyboard and has a table behind it.
// Colours are the style sheet's variables, so that dark mode and paper change a chart without drawing it again.

const PATHS = {
  // matplotlib's markers, in a square from -1 to 1
  o: "M-1,0A1,1,0,1,1,1,0A1,1,0,1,1,-1,0Z",
  s: "M-.9,-.9H.9V.9H-.9Z",
  D: "M0,-1.15L1.15,0L0,1.15L-1.15,0Z",
  "^": "M0,-1.1L1.1,.9H-1.1Z",
  v: "M0,1.1L1.1,-.9H-1.1Z",
  "<": "M-1.1,0L.9,-1.1V1.1Z",
  ">": "M1.1,0L-.9,-1.1V1.1Z",
  P: "M-.4,-1H.4V-.4H1V.4H.4V1H-.4V.4H-1V-.4H-.4Z",
  X: "M-.55,-1.1L0,-.55L.55,-1.1L1.1,-.55L.55,0L1.1,.55L.55,1.1L0,.55L-.55,1.1L-1.1,.55L-.55,0L-1.1,-.55Z",
  h: "M0,-1.1L.95,-.55V.55L0,1.1L-.95,.55V-.55Z",
  p: "M0,-1.1L1.05,-.34L.65,.9H-.65L-1.05,-.34Z",
  H: "M-1.1,0L-.55,-.95H.55L1.1,0L.55,.95H-.55Z",
  d: "M0,-1.2L.7,0L0,1.2L-.7,0Z",
  "8": "M-.4,-1H.4L1,-.4V.4L.4,1H-.4L-1,.4V-.4Z",
  "+": "M-.15,-1H.15V-.15H1V.15H.15V1H-.15V.15H-1V-.15H-.15Z",
  x: "M-.9,-1.1L0,-.2L.9,-1.1L1.1,-.9L.2,0L1.1,.9L.9,1.1L0,.2L-.9,1.1L-1.1,.9L-.2,0L-1.1,-.9Z",
  "1": "M-.12,1.1V.07L-1,-.5L-.88,-.7L0,-.13L.88,-.7L1,-.5L.12,.07V1.1Z",
  "2": "M-.12,-1.1V-.07L-1,.5L-.88,.7L0,.13L.88,.7L1,.5L.12,-.07V-1.1Z",
  "3": "M-1.1,-.12H-.07L.5,-1L.7,-.88L.13,0L.7,.88L.5,1L-.07,.12H-1.1Z",
  "*": "M0,-1.4L.34,-.47L1.33,-.43L.55,.18L.82,1.13L0,.58L-.82,1.13L-.55,.18L-1.33,-.43L-.34,-.47Z",
};
const SERIES = ["o", "s", "D", "^", "v", "<", ">", "P", "X", "h"]; // of lines that have no look of their own
const TINTS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#999999", "#A6A61B"];
const INK = "var(--ink)";
const CONFIG = {
  background: "transparent",
  font: 'system-ui, "Segoe UI", "DejaVu Sans", sans-serif',
  view: { stroke: "var(--line)" },
  axis: {
    labelColor: INK, titleColor: INK, tickColor: "var(--soft)", domainColor: "var(--soft)", gridColor: "var(--line)",
    gridOpacity: 0.6, labelFontSize: 12, titleFontSize: 13, titleFontWeight: "normal",
  },
  legend: { labelColor: INK, titleColor: INK, labelFontSize: 12, orient: "top", direction: "horizontal", columns: 2, labelLimit: 600 },
};

const shape = (marker) => PATHS[marker] || PATHS.o;
const ink = (colour) => (colour.toLowerCase() === "#000000" || colour === "black" ? INK : colour);
/** A number as Python writes it in tables and in the answer: what lies half way (odd / 2^(digits + 1), exactly) goes to the even digit. */
const fixed = (value, digits) => {
  if (Math.abs((value * 2 ** (digits + 1)) % 2) !== 1) return value.toFixed(digits);
  const below = Math.floor(Math.abs(value) * 10 ** digits);
  return ((Math.sign(value) * (below + (below % 2))) / 10 ** digits).toFixed(digits);
};
const percent = (value) => (value === null || value === undefined ? "–" : fixed(100 * value, 1));
const interval = (value, low, high) => (value === null ? "–" : `${percent(value)} [${percent(low)}, ${percent(high)}]`);

/** An element with attributes (functions are listeners) and children, of which texts stay texts. */
function h(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === "function") made.addEventListener(name, value);
    else if (value !== null && value !== false) made.setAttribute(name, value === true ? "" : value);
  }
  made.append(...children.flat().filter((child) => child !== null));
  return made;
}

const byId = (id) => document.getElementById(id);
const fill = (host, ...children) => (host.replaceChildren(...children.flat().filter((child) => child !== null)), host);

/** A plain table. columns: [title, function of a row, whether it is a number]. */
function table(caption, columns, rows) {
  const head = h("tr", {}, columns.map(([title, , isNumber]) => h("th", { scope: "col", class: isNumber ? "num" : null }, title)));
  const body = rows.map((row) =>
    h("tr", {}, columns.map(([, text, isNumber]) => h("td", { class: isNumber ? "num" : null }, text(row)))));
  const made = h("table", {}, h("caption", {}, caption), h("thead", {}, head), h("tbody", {}, body));
  return h("div", { class: "scroll", tabindex: "0", role: "group", "aria-label": caption }, made);
}

/** The table behind a chart, for whoever does not see it. */
const behind = (caption, columns, rows) => h("details", {}, h("summary", {}, "Table of this chart"), table(caption, columns, rows));

const drawings = new WeakMap(); // the latest drawing of each place: an earlier one that ends later is dropped

/** Draw a chart into a place; returns its view. label: what it shows, in words. */
async function draw(host, spec, label) {
  const turn = {};
  drawings.set(host, turn);
  host.setAttribute("role", "group");
  host.setAttribute("aria-label", label);
  const inside = h("div", { style: "width: 100%" });
  fill(host, inside);
  const whole = { ...spec, width: "container", autosize: { type: "fit-x", contains: "padding" }, config: CONFIG };
  const { view } = await vegaEmbed(inside, whole, { renderer: "svg", actions: false, tooltip: () => {} });
  if (drawings.get(host) !== turn) view.finalize();
  return view;
}

/** The ends of an axis that holds these values, from `least` to `most` at the furthest. */
function ends(values, least = -Infinity, most = Infinity) {
  const known = values.filter((value) => value !== null && value !== undefined);
  const [low, high] = [Math.min(...known), Math.max(...known)];
  const room = 0.05 * (high - low || Math.abs(high) || 1);
  return [Math.max(least, low - room), Math.min(most, high + room)];
}

const accuracyAxis = (field, title, values) => ({
  field, type: "quantitative", scale: { domain: ends(values, 0, 100), nice: false, padding: 12 }, axis: { title, tickCount: 6 },
});

/** Clean against adversarial accuracy. rows: of `frontierRows`; looks: of the defenses that they have; all: what axes hold. */
function frontierSpec(rows, looks, height, all = rows) {
  const names = Object.keys(looks);
  const colour = { field: "defense", type: "nominal", legend: null, scale: { domain: names, range: names.map((n) => ink(looks[n].colour)) } };
  const marker = { ...colour, scale: { domain: names, range: names.map((n) => shape(looks[n].marker)) } };
  const clean = accuracyAxis("clean", "Clean accuracy (%)", all.flatMap((row) => [row.clean, ...(row.undominated ? [row.clean_low, row.clean_high] : [])]));
  const left = accuracyAxis("left", "Adversarial accuracy (%)", all.flatMap((row) => [row.left, row.worst, ...(row.undominated ? [row.low, row.high] : [])]));
  const bars = { type: "rule", color: INK, opacity: 0.55, aria: false, clip: true };
  const symbol = { type: "point", filled: true, stroke: INK, opacity: 1 };
  return {
    height,
    data: { values: rows },
    params: [{ name: "chosen", value: -1 }],
    layer: [
      { transform: [{ filter: "datum.bare" }], mark: { type: "rule", color: INK, strokeDash: [5, 4], opacity: 0.6, aria: false },
        encoding: { y: left } },
      { transform: [{ filter: "datum.line && !datum.bare" }], mark: { type: "line", opacity: 0.55, strokeWidth: 1.6, aria: false },
        encoding: { x: clean, y: left, color: colour, detail: { field: "line_of" }, order: { field: "clean" } } },
      { transform: [{ filter: "isValid(datum.worst)" }], mark: { ...bars, strokeDash: [1, 2] },
        encoding: { x: clean, y: left, y2: { field: "worst" } } },
      { transform: [{ filter: "isValid(datum.worst)" }],
        mark: { type: "point", filled: false, strokeWidth: 1.4, size: 40, opacity: 0.9, aria: false },
        encoding: { x: clean, y: { ...left, field: "worst" }, color: colour, shape: marker } },
      { transform: [{ filter: "datum.undominated" }], mark: bars, encoding: { x: clean, y: { ...left, field: "low" }, y2: { field: "high" } } },
      { transform: [{ filter: "datum.undominated" }], mark: bars, encoding: { x: { ...clean, field: "clean_low" }, x2: { field: "clean_high" }, y: left } },
      { name: "settings", mark: symbol,
        encoding: {
          x: clean, y: left, color: colour, shape: marker, description: { field: "said" },
          size: { condition: { test: "datum.setting === chosen", value: 260 }, value: 85 },
          strokeWidth: { condition: { test: "datum.setting === chosen", value: 3 }, value: 0.7 },
          order: { field: "undominated" } } },
      { transform: [{ filter: "datum.failed" }], mark: { type: "text", text: "✗", dx: 9, dy: -8, fontSize: 12, color: "var(--bad)", aria: false },
        encoding: { x: clean, y: left } },
    ],
  };
}

/** Lines over a number, one a series. rows: {x, y, series}, with low and high where they have intervals. */
function linesSpec(rows, across, up, height = 220, zero = false, whole = true) {
  const series = [...new Set(rows.map((row) => row.series))];
  const [from, to] = [Math.min(...rows.map((row) => row.x)), Math.max(...rows.map((row) => row.x))];
  const few = whole && to - from < 9 ? { values: Array.from({ length: to - from + 1 }, (_, at) => from + at) } : { tickCount: 8 };
  const x = { field: "x", type: "quantitative", scale: { domain: [from, to], nice: false, padding: 12 }, axis: { title: across, ...(whole ? { format: "d" } : {}), ...few } };
  const [low, high] = ends(rows.map((row) => row.y));
  const y = { field: "y", type: "quantitative", scale: { domain: [zero ? 0 : low, high], nice: false }, axis: { title: up, tickCount: 5 } };
  const scale = { domain: series, range: series.map((_, at) => TINTS[at % TINTS.length]) };
  const shapes = { domain: series, range: series.map((_, at) => PATHS[SERIES[at % SERIES.length]]) };
  const legend = series.length > 1 ? { title: null, columns: 1 } : null;
  const encoding = { x, y, color: { field: "series", type: "nominal", scale, legend } };
  return {
    height,
    data: { values: rows },
    layer: [
      { mark: { type: "line", strokeWidth: 2, aria: false }, encoding },
      { mark: { type: "point", filled: true, size: rows.length < 40 * series.length ? 50 : 14, opacity: 1, aria: false },
        encoding: { ...encoding, shape: { field: "series", type: "nominal", scale: shapes, legend } } },
    ],
  };
}

/** Let the marks of a chart be reached by Tab and the arrow keys, shown by focus or pointer, and chosen by Enter or a click. */
function reachable(host, view, { show, hide, choose }) {
  const marks = [...host.querySelectorAll(".settings_marks path")].sort((a, b) => a.__data__.datum.clean - b.__data__.datum.clean);
  const go = (at) => {
    for (const mark of marks) mark.tabIndex = -1;
    marks[at].tabIndex = 0;
    marks[at].focus();
  };
  const steps = { ArrowRight: 1, ArrowUp: 1, ArrowLeft: -1, ArrowDown: -1 };
  marks.forEach((mark, at) => {
    const row = mark.__data__.datum;
    mark.setAttribute("role", "button");
    mark.removeAttribute("aria-roledescription");
    mark.tabIndex = at ? -1 : 0;
    mark.addEventListener("focus", () => show(row, mark.getBoundingClientRect()));
    mark.addEventListener("blur", hide);
    mark.addEventListener("keydown", (event) => {
      if (event.key in steps) go((at + steps[event.key] + marks.length) % marks.length);
      else if (event.key === "Home") go(0);
      else if (event.key === "End") go(marks.length - 1);
      else if (event.key === "Enter" || event.key === " ") choose(row, true);
      else return;
      event.preventDefault();
    });
  });
  const of = (item) => (item && item.mark && item.mark.marktype === "symbol" && item.datum && "setting" in item.datum ? item.datum : null);
  view.addEventListener("mousemove", (event, item) => {
    const row = of(item);
    if (row) show(row, { left: event.clientX, right: event.clientX, top: event.clientY, bottom: event.clientY });
    else hide();
  });
  host.addEventListener("mouseleave", hide);
  view.addEventListener("click", (event, item) => of(item) && choose(of(item), false));
}
