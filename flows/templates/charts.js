
// The charts that only need to be drawn: at once, and again when the palette or the axes change.
const { paint, config, read, onTheme } = window.trajnote;
const charts = read("charts-data");
const options = (place) => ({ actions: false, ast: true, renderer: "svg", config: config(place.clientWidth) });

async function draw(place) {
  const name = place.dataset.chart;
  const spec = structuredClone(charts.specs[name]);
  if (!spec) return;
  if (name === "states") {
    chooseAxes(spec);
    spec.datasets = { states: charts.states };
  }
  await window.vegaEmbed(place, paint(spec), options(place));
  place.dataset.drawn = "yes";
}

const across = document.getElementById("axis-x");
const up = document.getElementById("axis-y");

function chooseAxes(spec) {
  for (const [channel, select] of [["x", across], ["y", up]]) {
    for (const layer of spec.layer) {
      layer.encoding[channel].field = `c${select.value}`;
      layer.encoding[channel].title = select.selectedOptions[0].dataset.title;
    }
  }
}

function offerAxes() {
  for (const [select, chosen] of [[across, charts.axes[0]], [up, charts.axes[1]]]) {
    charts.components.forEach((component, place) => {
      const option = new Option(component.name, String(place), false, place === chosen);
      option.dataset.title = component.unit ? `${component.name}, ${component.unit}` : component.name;
      select.append(option);
    });
    select.addEventListener("change", () => draw(document.querySelector('[data-chart="states"]')));
  }
}

const drawAll = () => Promise.all([...document.querySelectorAll("[data-chart]")].map(draw));
if (across && charts.components.length) offerAxes();
onTheme(drawAll);
await drawAll();
document.documentElement.dataset.charts = "drawn";
