
// Light and dark: one palette in CSS, read from there by what draws; and what all scripts share.
const root = document.documentElement;
const listeners = [];
const probe = document.createElement("span");
probe.hidden = true;
document.body.append(probe);

function colour(name) {
  probe.style.color = `var(--${name})`;
  return getComputedStyle(probe).color;
}

function isDark() {
  const chosen = root.style.colorScheme;
  return chosen ? chosen === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
}

// Replace "@name" by the colour of that name, everywhere in a specification.
function paint(value) {
  if (typeof value === "string") return value.startsWith("@") ? colour(value.slice(1)) : value;
  if (Array.isArray(value)) return value.map(paint);
  if (value && typeof value === "object") {
    return Object.fromEntries(Object.entries(value).map(([key, item]) => [key, key === "values" ? item : paint(item)]));
  }
  return value;
}

// What all charts have in common; `width` is the place of the one that is drawn, which its legend has to fit.
function config(width = 880) {
  const [ink, muted, rule] = ["ink", "muted", "rule"].map(colour);
  const font = getComputedStyle(document.body).fontFamily;
  return {
    background: "transparent",
    font,
    view: { stroke: null },
    axis: {
      labelColor: muted, titleColor: muted, gridColor: rule, domainColor: rule, tickColor: rule,
      labelFontSize: 11.5, titleFontSize: 11.5, titleFontWeight: "normal", labelFont: font, titleFont: font, titlePadding: 8,
    },
    axisY: { domain: false, ticks: false },
    legend: {
      labelColor: ink, titleColor: muted, labelFontSize: 11.5, titleFontSize: 11.5, titleFontWeight: "normal",
      orient: "bottom", direction: "horizontal", columns: Math.max(1, Math.floor(width / 205)),
      labelLimit: 220, symbolStrokeWidth: 2, symbolOpacity: 1, rowPadding: 4,
      layout: { bottom: { anchor: "start", direction: "vertical", margin: 12 } },
    },
    title: { color: muted, fontWeight: "normal", font },
  };
}

const narrow = () => matchMedia("(max-width: 30rem)").matches;
const changed = () => listeners.forEach((listener) => listener());
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", changed);
document.getElementById("theme").addEventListener("click", () => {
  root.style.colorScheme = isDark() ? "light" : "dark";
  changed();
});


// What the other scripts share: texts become text, never markup, and an episode is unpacked only when it is looked at.
function element(tag, text) {
  const made = document.createElement(tag);
  if (text !== undefined) made.textContent = text;
  return made;
}

const number = (value, digits = 2) => (value === null || value === undefined ? "–" : value.toFixed(digits).replace(/^-(?=[0.]*$)/, "").replace("-", "−"));

async function unpack(id) {
  const bytes = Uint8Array.from(atob(document.getElementById(id).textContent), (letter) => letter.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  return JSON.parse(await new Response(stream).text());
}

const read = (id) => JSON.parse(document.getElementById(id).textContent);
window.trajnote = { paint, config, narrow, element, number, unpack, read, onTheme: (listener) => listeners.push(listener) };
