"use strict";
const text = document.getElementById("figures").textContent;
const swaps = Object.entries(JSON.parse(document.getElementById("dark").textContent));
const night = window.matchMedia("(prefers-color-scheme: dark)");
const picker = document.getElementById("layer");
const options = { responsive: true, displaylogo: false, displayModeBar: false };

// Figures carry the light paper's colours; one pass turns each into its counterpart, so none is swapped twice.
function figures() {
  if (!night.matches) return JSON.parse(text);
  const counterpart = new Map(swaps);
  const pattern = new RegExp(swaps.map(([light]) => light).join("|"), "g");
  return JSON.parse(text.replace(pattern, (light) => counterpart.get(light)));
}

function draw() {
  const all = figures();
  const shown = { model: all.model, timeline: all.timeline, layer: all.layers[Number(picker.value)] };
  const narrow = window.innerWidth < 560;
  for (const place of document.querySelectorAll("[data-figure]")) {
    const figure = place.dataset.figure.split(".").reduce((part, key) => part && part[key], shown);
    if (!figure) continue;
    figure.layout.dragmode = narrow ? false : "zoom"; // a finger scrolls the page
    figure.layout.hoverlabel.bgcolor = night.matches ? "#232b34" : "#ffffff";
    Plotly.react(place, figure.data, figure.layout, options);
  }
}

picker.addEventListener("change", draw);
night.addEventListener("change", draw);
draw();
