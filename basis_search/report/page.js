"use strict";
const text = document.getElementById("figures").textContent;
const swaps = new Map(Object.entries(JSON.parse(document.getElementById("dark").textContent)));
const night = window.matchMedia("(prefers-color-scheme: dark)");
const picker = document.getElementById("layer");
const otherPicker = document.getElementById("against-layer");
const options = { responsive: true, displaylogo: false, displayModeBar: false };
const hidden = {}; // legend -> groups that the reader has hidden

const SHAPES = {
  circle: "M10 6a4 4 0 1 1-8 0a4 4 0 1 1 8 0Z",
  square: "M2.4 2.4h7.2v7.2h-7.2Z",
  diamond: "M6 1.2L10.8 6L6 10.8L1.2 6Z",
  "triangle-up": "M6 1.6L10.6 9.8H1.4Z",
  star: "M6 .6l1.5 3.6l3.9.3l-3 2.5l1 3.8L6 8.7l-3.4 2.1l1-3.8l-3-2.5l3.9-.3Z",
  x: "M2 3.6L3.6 2L6 4.4L8.4 2L10 3.6L7.6 6L10 8.4L8.4 10L6 7.6L3.6 10L2 8.4L4.4 6Z",
  hexagon: "M6 1.2l4.2 2.4v4.8L6 10.8L1.8 8.4V3.6Z",
  pentagon: "M6 1.2L10.8 4.7L9 10.3H3L1.2 4.7Z",
  cross: "M4.6 1.4H7.4V4.6H10.6V7.4H7.4V10.6H4.6V7.4H1.4V4.6H4.6Z",
  "triangle-down": "M6 10.4L1.4 2.2H10.6Z",
  "triangle-left": "M1.6 6L9.8 1.4V10.6Z",
  "triangle-right": "M10.4 6L2.2 1.4V10.6Z",
};

// Figures have the colours of the light theme; one pass replaces all of them, so that none is replaced twice.
function figures() {
  if (!night.matches) return JSON.parse(text);
  const pattern = new RegExp([...swaps.keys()].join("|"), "g");
  return JSON.parse(text.replace(pattern, (light) => swaps.get(light)));
}

function glyph(trace) {
  const symbol = trace.marker.symbol || "square";
  const hollow = symbol.endsWith("-open");
  const shape = SHAPES[symbol.replace("-open", "")] || SHAPES.circle;
  const paint = hollow ? `fill="none" stroke="${trace.marker.color}" stroke-width="1.4"` : `fill="${trace.marker.color}"`;
  return `<svg width="12" height="12" viewBox="0 0 12 12" aria-hidden="true"><path d="${shape}" ${paint}/></svg>`;
}

function legend(name, traces) {
  const place = document.querySelector(`[data-legend="${name}"]`);
  if (!place) return;
  hidden[name] ||= new Set();
  const entries = new Map();
  for (const trace of traces) {
    if (!trace.legendgroup || !trace.marker?.color) continue;
    const filled = !String(trace.marker.symbol || "").endsWith("-open");
    if (!entries.has(trace.legendgroup) || filled) entries.set(trace.legendgroup, trace);
  }
  place.replaceChildren(
    ...[...entries].map(([group, trace]) => {
      const button = document.createElement("button");
      button.type = "button";
      button.innerHTML = glyph(trace);
      const label = document.createElement("span");
      label.innerHTML = group; // escaped by the generator, as plotly needs it
      button.append(label);
      button.setAttribute("aria-pressed", String(!hidden[name].has(group)));
      button.title = "Click to hide or show";
      button.addEventListener("click", () => {
        if (!hidden[name].delete(group)) hidden[name].add(group);
        draw();
      });
      return button;
    }),
  );
}

function draw() {
  const all = figures();
  const shown = { model: all.model, layer: all.layers[Number(picker.value)], timeline: all.timeline };
  if (all.against) {
    shown.against = all.against.model;
    shown.fronts = all.against.layers[Number(otherPicker?.value ?? 0)];
    const traces = [...(shown.against?.flops.data ?? []), ...(shown.fronts?.flops.data ?? [])];
    for (const name of ["against", "fronts"]) legend(name, traces);
  }
  if (shown.model) legend("model", shown.model.flops.data);
  legend("layer", [...shown.layer.flops.data, ...shown.layer.latency.data]);
  if (shown.timeline) legend("timeline", shown.timeline.data);
  const narrow = window.innerWidth < 560;
  for (const place of document.querySelectorAll("[data-figure]")) {
    const path = place.dataset.figure.split(".");
    const figure = path.reduce((part, key) => part && part[key], shown);
    if (!figure) continue;
    for (const trace of figure.data) trace.visible = !hidden[path[0]].has(trace.legendgroup);
    figure.layout.dragmode = narrow ? false : "zoom"; // dragging scrolls the page on touch screens
    figure.layout.hoverlabel.bgcolor = night.matches ? "#232b34" : "#ffffff";
    Plotly.react(place, figure.data, figure.layout, options);
  }
}

picker.addEventListener("change", draw);
otherPicker?.addEventListener("change", draw);
night.addEventListener("change", draw);
draw();
