
// The episode viewer: one episode unpacked at a time, one step looked at, both sides moved together.
// Everything that a model wrote enters the page as text, never as markup.
const { paint, config, narrow, element, number, read, unpack: unpackPart, onTheme } = window.trajnote;
const MOST_POINTS = 300;
const viewer = document.getElementById("viewer");
const byId = (id) => document.getElementById(id);
const stance = (note) => (note.agrees === null ? "none" : note.agrees ? "confirms" : "corrects");

if (viewer) start();

async function start() {
  const listed = read("viewer-data");
  const kept = new Map();
  const state = { place: 0, index: 0, episode: null, view: null };

  async function unpack(place) {
    if (!kept.has(place)) {
      kept.set(place, await unpackPart(`pack-${place}`));
      if (kept.size > 8) kept.delete(kept.keys().next().value);
    }
    return kept.get(place);
  }

  // The rows that are drawn: one for each pixel or so, each with the largest reward of those it stands for.
  function rows(run) {
    const stride = Math.ceil(run.t.length / MOST_POINTS);
    const drawn = [];
    for (let n = 0; n < run.t.length; n += stride) {
      const at = n + stride >= run.t.length ? run.t.length - 1 : n;
      const rewards = run.r.slice(n, n + stride);
      const row = { t: run.t[at], g: run.g[at], r: rewards.reduce((most, value) => (Math.abs(value ?? 0) > Math.abs(most ?? 0) ? value : most)) };
      run.c.forEach((column, place) => { row[`c${place}`] = column[at]; });
      drawn.push(row);
    }
    return drawn;
  }

  async function embedLanes() {
    const spec = read("charts-data").specs.timeline;
    const width = Math.max(160, byId("lanes").clientWidth - 66);
    for (const lane of spec.vconcat) {
      lane.width = width;
      if (narrow()) lane.height = 36;
    }
    const empty = { t: 0, g: 0, r: 0, stance: "none", ...Object.fromEntries(listed.components.map((_, place) => [`c${place}`, 0])) };
    spec.datasets = { logged: [empty, { ...empty, t: 1 }], rematch: [empty], notes: [empty] };
    const made = await window.vegaEmbed(byId("lanes"), paint(spec), { actions: false, ast: true, renderer: "canvas", config: config() });
    state.view = made.view.resize(); // once more with the real numbers, whose labels have other sizes
    Object.assign(byId("slider").style, { marginLeft: `${leftEdge() - 8}px`, width: `${width + 16}px` });
    if (state.episode) {
      fillLanes();
      moveCursor();
    }
  }

  function fillLanes() {
    const { episode, view } = state;
    const logged = rows(episode);
    const notes = episode.notes.map((note) => ({ t: note.step, stance: stance(note) === "none" ? "no suggestion" : stance(note) }));
    view.data("logged", logged).data("rematch", episode.rematch ? rows(episode.rematch) : logged.slice(0, 1));
    view.data("notes", notes.length ? notes : [{ t: 0, stance: "none" }]); // one that is not drawn, for a scale needs data
    view.run();
  }

  const leftEdge = () => state.view.origin()[0] + state.view.padding().left;

  // The cursor is an element of its own above the canvas: moving it draws nothing again.
  function moveCursor() {
    const scale = state.view.scale("x");
    const x = leftEdge() + scale(step());
    byId("cursor").style.transform = `translateX(${Math.round(x)}px)`;
  }

  const step = () => state.episode.t[state.index];

  async function openEpisode(place, wanted) {
    state.place = Math.min(Math.max(place, 0), listed.episodes.length - 1);
    state.episode = await unpack(state.place);
    byId("episode").value = String(state.place);
    viewer.dataset.episode = String(listed.episodes[state.place].id);
    byId("slider").max = String(state.episode.t.length - 1);
    fillChips();
    state.index = nearest(wanted ?? firstCorrection(state.episode.notes));
    show();
    requestAnimationFrame(() => setTimeout(() => { fillLanes(); moveCursor(); })); // words and pictures come first
  }

  function firstCorrection(notes) {
    return (notes.find((note) => note.agrees === false && note.step > 0) ?? notes[0])?.step ?? 0;
  }

  function nearest(wanted) {
    const steps = state.episode.t;
    let best = 0;
    steps.forEach((value, place) => { if (Math.abs(value - wanted) < Math.abs(steps[best] - wanted)) best = place; });
    return best;
  }

  function goTo(index) {
    const last = state.episode.t.length - 1;
    state.index = Math.min(Math.max(index, 0), last);
    show();
  }

  function goToNote(direction) {
    const steps = [...new Set(state.episode.notes.map((note) => note.step))].sort((a, b) => a - b);
    const now = step();
    const target = direction > 0 ? steps.find((value) => value > now) : steps.findLast((value) => value < now);
    if (target !== undefined) goTo(nearest(target));
  }

  function show() {
    const { episode, index } = state;
    const now = step();
    const notes = episode.notes.filter((note) => note.step === now);
    viewer.dataset.step = String(now);
    moveCursor();
    byId("slider").value = String(index);
    byId("slider").setAttribute("aria-valuetext", `step ${now} of ${episode.length}`);
    byId("where").textContent = `step ${now} of ${episode.length}`;
    showSide("logged", episode, now, index);
    if (episode.rematch) showSide("rematch", episode.rematch, now, null);
    else if (listed.opponent) emptySide("rematch", "not played from this seed");
    byId("margin").replaceChildren(...(notes.length ? notes.map(card) : [nothingSaid()]));
    for (const chip of byId("chips").children) chip.setAttribute("aria-current", String(Number(chip.value) === now));
    clearTimeout(state.address);
    state.address = setTimeout(() => history.replaceState(null, "", `#episode=${viewer.dataset.episode}&step=${now}`), 300);
  }

  function showSide(side, run, now, known) {
    const over = now > run.length;
    let index = known ?? run.t.findLastIndex((value) => value <= now);
    if (over) index = run.t.length - 1;
    showPicture(byId(`frame-${side}`), run, run.t[index], side);
    const facts = [
      ["action", over || run.t[index] === run.length ? run.end : run.a[index]],
      ["reward", number(run.r[index], 3)],
      ["return so far", number(run.g[index], 1)],
      ["in the end", `${number(run.return, 1)} after ${run.length}`],
    ];
    byId(`facts-${side}`).replaceChildren(...facts.flatMap(([name, value]) => [element("dt", name), element("dd", value)]));
  }

  function emptySide(side, why) {
    byId(`frame-${side}`).replaceChildren(element("p", why));
    byId(`facts-${side}`).replaceChildren();
  }

  function showPicture(frame, run, now, side) {
    const steps = Object.keys(run.pictures).map(Number);
    if (!steps.length) {
      frame.replaceChildren(element("p", "no picture"));
      return;
    }
    const shown = steps.reduce((best, value) => (Math.abs(value - now) < Math.abs(best - now) ? value : best));
    let image = frame.querySelector("img");
    if (!image) {
      image = element("img");
      frame.replaceChildren(image, element("span"));
    }
    const source = `data:image/webp;base64,${run.pictures[shown]}`;
    if (image.src !== source) image.src = source;
    image.alt = `${side === "logged" ? "Logged" : "Refined"} episode, rendered at step ${shown}`;
    frame.querySelector("span").textContent = shown === now ? `step ${shown}` : `nearest picture: step ${shown}`;
  }

  function nothingSaid() {
    const steps = state.episode.notes.map((note) => note.step);
    const next = steps.filter((value) => value > step()).sort((a, b) => a - b)[0];
    const text = !steps.length ? "No labels in this episode." : next === undefined ? "No label on this step." : `No label on this step; the next one is on step ${next}.`;
    return element("p", text);
  }

  function card(note) {
    const made = element("article");
    made.className = "card";
    const change = element("p");
    change.className = "change";
    const words = { confirms: "confirms", corrects: "corrects to", none: "suggests nothing instead of" };
    const verb = element("span", `${words[stance(note)]} `);
    verb.className = stance(note);
    if (stance(note) === "corrects") change.append(element("b", note.logged), " ", verb, element("b", note.suggested ?? "–"));
    else change.append(verb, element("b", note.logged));
    const said = element("p", note.rationale ?? "(no reason given)");
    said.className = "said";
    said.dir = "auto";
    const facts = element("dl");
    facts.append(fact("implicit reward", number(note.grade), meter(note.grade, -1)), fact("confidence", number(note.confidence), meter(note.confidence, 0)));
    facts.append(fact("critical", note.critical ? "yes" : "no"));
    if (note.advantage !== null) {
      const error = note.error === null ? "" : ` ± ${number(note.error, 1)}`;
      facts.append(fact("replay advantage", `${number(note.advantage, 1)}${error} (${note.pairs} pairs)`));
    }
    facts.append(fact("annotator", note.model));
    made.append(change, said, facts);
    const reply = state.episode.replies[note.request];
    if (reply) made.append(replyOf(reply));
    return made;
  }

  function replyOf(reply) {
    const made = element("details");
    const text = element("pre", reply.text);
    text.dir = "auto";
    made.append(element("summary", "the raw reply"), element("p", `${reply.file}, line ${reply.line}`), text);
    return made;
  }

  function fact(name, value, extra) {
    const made = element("div");
    const content = element("dd", value);
    if (extra) content.append(extra);
    made.append(element("dt", name), content);
    return made;
  }

  function meter(value, low) {
    if (value === null) return "";
    const made = element("div");
    made.className = "meter";
    const bar = element("i");
    const place = (number) => (100 * (number - low)) / (1 - low);
    bar.style.left = `${Math.min(place(0), place(value))}%`;
    bar.style.width = `${Math.abs(place(value) - place(0))}%`;
    made.append(bar);
    return made;
  }

  function fillChips() {
    const found = new Map();
    for (const note of state.episode.notes) found.set(note.step, found.get(note.step) === "corrects" ? "corrects" : stance(note));
    byId("chips").replaceChildren(...[...found].map(([at, kind]) => {
      const chip = element("button", String(at));
      chip.type = "button";
      chip.value = String(at);
      chip.className = kind;
      chip.setAttribute("aria-label", `label on step ${at}, ${kind}`);
      chip.addEventListener("click", () => goTo(nearest(at)));
      return chip;
    }));
  }

  function listEpisodes() {
    byId("episode").append(...listed.episodes.map((row, place) => {
      const notes = row.labels ? ` · ${row.labels} labels` : "";
      const after = row.rematch === null ? "" : ` → ${number(row.rematch, 0)}`;
      return new Option(`${row.id} · return ${number(row.return, 0)}${after} · ${row.length} steps${notes}`, String(place));
    }));
    byId("episode").addEventListener("change", (event) => openEpisode(Number(event.target.value)));
  }

  const moves = {
    "back": () => goTo(state.index - 1), "on": () => goTo(state.index + 1),
    "note-back": () => goToNote(-1), "note-on": () => goToNote(1),
  };
  for (const button of viewer.querySelectorAll("[data-go]")) button.addEventListener("click", moves[button.dataset.go]);
  byId("slider").addEventListener("input", (event) => goTo(Number(event.target.value)));

  viewer.addEventListener("keydown", (event) => {
    if (event.altKey || event.ctrlKey || event.metaKey || ["SELECT", "PRE"].includes(event.target.tagName)) return;
    const keys = {
      ArrowLeft: event.shiftKey ? moves["note-back"] : moves.back, ArrowRight: event.shiftKey ? moves["note-on"] : moves.on,
      ArrowUp: () => openEpisode(state.place - 1), ArrowDown: () => openEpisode(state.place + 1),
      Home: () => goTo(0), End: () => goTo(Infinity),
    };
    if (!keys[event.key]) return;
    event.preventDefault();
    keys[event.key]();
  });

  let scrubbing = false;
  function scrub(event) {
    const bounds = byId("lanes").querySelector("canvas").getBoundingClientRect();
    const scale = state.view.scale("x");
    goTo(nearest(scale.invert(event.clientX - bounds.left - leftEdge())));
  }
  byId("lanes").addEventListener("pointerdown", (event) => { scrubbing = true; scrub(event); });
  addEventListener("pointerup", () => { scrubbing = false; });
  byId("lanes").addEventListener("pointermove", (event) => { if (scrubbing) scrub(event); });

  let waiting = 0;
  let width = innerWidth;
  addEventListener("resize", () => {
    clearTimeout(waiting);
    if (innerWidth !== width) waiting = setTimeout(() => { width = innerWidth; embedLanes(); }, 150);
  });
  onTheme(embedLanes);
  listEpisodes();
  await embedLanes();
  const asked = new URLSearchParams(location.hash.slice(1));
  const place = listed.episodes.findIndex((row) => String(row.id) === asked.get("episode"));
  await openEpisode(place < 0 ? mostTelling(listed.episodes) : place, asked.has("step") ? Number(asked.get("step")) : undefined);
  viewer.dataset.ready = "yes";
}

// The episode to open first: the one with notes where the refined policy does best by comparison.
function mostTelling(episodes) {
  const gain = (row) => (row.rematch === null ? row.corrections : row.rematch - row.return);
  let best = 0;
  episodes.forEach((row, place) => { if (gain(row) > gain(episodes[best])) best = place; });
  return best;
}
