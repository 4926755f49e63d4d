
// A review: one item of the queue at a time, answered with the keyboard or by touch, kept in this browser until saved.
// Everything that a model wrote enters the page as text, never as markup.
const { read, element, number, unpack, onTheme } = window.trajnote;
const byId = (id) => document.getElementById(id);
const about = read("review-data");
const total = about.items.length;
const isGold = about.kind === "gold";
const names = about.actions.map((action) => action.name);
const place = `trajnote review ${about.queue}`;
const VERDICTS = isGold ? ["answer", "unsure"] : ["accept", "correct", "reject", "unsure"];
const WORDS = { accept: "accepted", correct: "corrected", reject: "rejected", unsure: "unsure", answer: "answered" };
const MOST_UNDO = 500;
const state = { at: 0, shown: null, scene: 0, index: 0, content: null, answers: {}, history: [], saved: {}, name: "", seen: {} };

// ---- kept in the browser

function persist() {
  const { at, answers, history, saved, name, seen } = state;
  try {
    localStorage.setItem(place, JSON.stringify({ version: 1, at, answers, history, saved, name, seen }));
  } catch {
    warn("This browser cannot store answers for this page: save before you close it.");
  }
}

function restore() {
  let kept = null;
  try {
    kept = JSON.parse(localStorage.getItem(place));
  } catch {
    warn("The answers that this browser stored for this queue cannot be read; the review starts again.");
  }
  if (kept?.version !== 1) return 0;
  state.answers = Object.fromEntries(Object.entries(kept.answers ?? {}).map(([item, answer]) => [item, checked(item, answer)]).filter(([, answer]) => answer));
  state.history = (Array.isArray(kept.history) ? kept.history : []).filter((change) => isItem(change?.item)).map((change) => ({ item: Number(change.item), before: checked(change.item, change.before) }));
  state.saved = Object.fromEntries(Object.entries(kept.saved ?? {}).filter(([item, text]) => isItem(item) && typeof text === "string"));
  state.seen = Object.fromEntries(Object.entries(kept.seen ?? {}).filter(([item, value]) => isItem(item) && value === true));
  state.name = isName(kept.name) ? kept.name : "";
  state.at = Number.isInteger(kept.at) && kept.at >= 0 && kept.at < total ? kept.at : 0;
  return Object.keys(state.answers).length;
}

const isItem = (item) => Number.isInteger(Number(item)) && Number(item) >= 1 && Number(item) <= total;
const isName = (text) => typeof text === "string" && /^[\p{L}\p{N}][\p{L}\p{N}._ -]{0,59}$/u.test(text);

// An answer from storage, or null if it is none.
function checked(item, answer) {
  if (!isItem(item) || !answer || typeof answer !== "object") return null;
  const { verdict, critical, action, note, blind, at } = answer;
  const fits = about.discrete ? names.includes(action) : Array.isArray(action) && action.length === names.length && action.every(Number.isFinite);
  return {
    verdict: VERDICTS.includes(verdict) ? verdict : null,
    critical: typeof critical === "boolean" ? critical : null,
    action: fits ? action : null,
    note: typeof note === "string" ? note.slice(0, 1000) : "",
    blind: blind !== false,
    at: typeof at === "string" ? at.slice(0, 40) : new Date().toISOString(),
  };
}

// ---- answers

const item = () => state.at + 1;
const answer = () => state.answers[item()] ?? null;
const isDone = (found) => Boolean(found?.verdict) && (found.verdict !== "answer" || (found.action !== null && found.critical !== null));

function change(changes) {
  const before = answer();
  const now = { verdict: null, critical: null, action: null, note: "", ...before, ...changes, blind: !state.seen[item()], at: new Date().toISOString() };
  if (isGold && now.verdict !== "unsure") now.verdict = now.action !== null || now.critical !== null ? "answer" : null;
  put(item(), now);
  remember(item(), before);
  persist();
}

function put(number_, found) {
  if (found && (found.verdict || found.critical !== null || found.note)) state.answers[number_] = found;
  else delete state.answers[number_];
}

function remember(number_, before) {
  state.history.push({ item: number_, before });
  if (state.history.length > MOST_UNDO) state.history.shift();
}

function decide(verdict, action = null) {
  if (isGold && verdict === "unsure") change({ verdict, action: null, critical: null });
  else change({ verdict, action });
  say(`${item()}: ${WORDS[verdict]}`);
  if (isDone(answer())) advance();
  else show();
}

function choose(action) {
  if (isGold) {
    change({ action, verdict: null });
    settle();
  } else {
    const claim = state.content.claim;
    if (about.discrete && about.kind === "labels" && action === claim.action) decide("accept");
    else decide("correct", action);
  }
}

function mark(critical) {
  const now = answer();
  change({ critical: now?.critical === critical ? null : critical, ...(isGold ? { verdict: null } : {}) });
  settle();
}

// In a gold set an item is done when both questions are answered.
function settle() {
  if (isGold && isDone(answer())) {
    say(`${item()}: ${describe(answer())}`);
    advance();
  } else show();
}

const describe = (found) => `${actionText(found.action)}, ${found.critical ? "critical" : "not critical"}`;
const actionText = (action) => (Array.isArray(action) ? action.map((value) => number(value)).join(", ") : String(action));

function advance() {
  const open = [...Array(total).keys()].map((n) => (state.at + 1 + n) % total).find((n) => !isDone(state.answers[n + 1]));
  if (open === undefined) {
    show();
    say("All items are answered: save them.", true);
  } else openItem(open);
}

function undo() {
  const last = state.history.pop();
  if (!last) return say("There is nothing to undo.");
  put(last.item, last.before);
  persist();
  say(`${last.item}: undone`);
  return openItem(last.item - 1);
}

function clear() {
  if (!answer()) return;
  remember(item(), answer());
  put(item(), null);
  persist();
  say(`${item()}: no answer`);
  show();
}

// ---- saving

function line(number_, found) {
  const asked = about.items[number_ - 1];
  const made = { queue: about.queue, item: number_, dataset_id: about.dataset };
  if (asked.episode !== null) Object.assign(made, { episode_id: asked.episode, step: asked.step });
  made.model = `human:${state.name}`;
  if (!found) return { ...made, verdict: "withdrawn", answered_at: new Date().toISOString() };
  made.verdict = found.verdict;
  if (found.critical !== null) made.critical = found.critical;
  if (found.action !== null && ["correct", "answer"].includes(found.verdict)) made.suggested_action = found.action;
  if (found.note) made.rationale = found.note;
  if (!isGold) made.blind = found.blind;
  return { ...made, answered_at: found.at };
}

const given = () => Object.entries(state.answers).filter(([, found]) => found.verdict).map(([n, found]) => [Number(n), found]);
const unsaved = () => given().filter(([n, found]) => state.saved[n] !== found.at).length + withdrawn().length;
const withdrawn = () => Object.keys(state.saved).map(Number).filter((n) => state.saved[n] !== "withdrawn" && !state.answers[n]?.verdict);

function askName() {
  if (!given().length && !withdrawn().length) return say("There is nothing to save yet.");
  byId("name").value = state.name;
  byId("saving").showModal();
  return byId("name").select();
}

function save() {
  const gone = Object.keys(state.saved).map(Number).filter((n) => !state.answers[n]?.verdict);
  const lines = [...given(), ...gone.map((n) => [n, null])].sort(([a], [b]) => a - b).map(([n, found]) => JSON.stringify(line(n, found)));
  const link = element("a");
  link.href = URL.createObjectURL(new Blob([`${lines.join("\n")}\n`], { type: "application/jsonl" }));
  link.download = `review-${about.queue}-${state.name.replace(/ /g, "_")}.jsonl`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
  for (const [n, found] of given()) state.saved[n] = found.at;
  for (const n of gone) state.saved[n] = "withdrawn";
  persist();
  show();
  say(`${given().length} answers saved: trajnote annotations import ${link.download}`, true);
}

byId("saving-form").addEventListener("submit", (event) => {
  const name = byId("name").value.trim();
  if (!isName(name)) {
    event.preventDefault();
    byId("name-problem").textContent = "A name has letters, digits, spaces and . _ - only.";
    return;
  }
  byId("name-problem").textContent = "";
  state.name = name;
  save();
});
byId("not-now").addEventListener("click", () => byId("saving").close());

// ---- what is shown

async function openItem(at) {
  state.at = Math.min(Math.max(at, 0), total - 1);
  const wanted = state.at;
  const content = await unpack(`pack-${wanted}`);
  if (wanted !== state.at) return;
  Object.assign(state, { content, shown: wanted, scene: 0 });
  byId("numbers").hidden = true;
  rewind();
  fillScenes();
  show();
  persist();
}

const scene = () => state.content.scenes[state.scene] ?? null;

function rewind() {
  const shown = scene();
  state.index = shown ? shown.t.indexOf(shown.step) : 0;
  fillState();
}

function goTo(index) {
  const shown = scene();
  if (!shown) return;
  state.index = Math.min(Math.max(index, 0), shown.t.length - 1);
  look();
}

function goToScene(index) {
  state.scene = Math.min(Math.max(index, 0), Math.max(0, state.content.scenes.length - 1));
  rewind();
  show();
}

function show() {
  const review = byId("review");
  const asked = scene();
  byId("item").textContent = `${item()} of ${total}`;
  byId("origin").textContent = asked ? `episode ${asked.episode}, step ${asked.step} of ${asked.length} · return ${number(asked.return, 1)}, ${asked.end}` : "no step of the dataset matches";
  fillClaim();
  fillAnswer();
  fillQueue();
  look();
  for (const [n, button] of [...byId("scenes").children].entries()) button.setAttribute("aria-current", String(n === state.scene));
  Object.assign(review.dataset, { item: String(item()), answer: answer()?.verdict ?? "", answered: String(given().length), ready: "yes" });
}

// The picture, the place in time and the numbers of the step that is looked at.
function look() {
  const shown = scene();
  byId("review").dataset.step = shown ? String(shown.t[state.index]) : "";
  if (!shown) return;
  const now = shown.t[state.index];
  byId("slider").max = String(shown.t.length - 1);
  byId("slider").value = String(state.index);
  byId("slider").setAttribute("aria-valuetext", `step ${now} of ${shown.length}`);
  const away = now - shown.step;
  byId("where").textContent = away ? `step ${now} (${away > 0 ? "+" : "−"}${Math.abs(away)})` : `step ${now}`;
  showPicture(shown, now);
  for (const update of state.rows) update(shown, state.index);
}

function showPicture(shown, now) {
  const steps = Object.keys(shown.pictures).map(Number);
  byId("review").querySelector(".desk").classList.toggle("blank", !steps.length);
  if (!steps.length) return;
  const nearest = steps.reduce((best, value) => (Math.abs(value - now) < Math.abs(best - now) ? value : best));
  const frame = byId("frame");
  let image = frame.querySelector("img");
  if (!image) {
    image = element("img");
    frame.replaceChildren(image, element("span"));
  }
  const source = `data:image/webp;base64,${shown.pictures[nearest]}`;
  if (image.src !== source) image.src = source;
  image.alt = `Episode ${shown.episode}, rendered at step ${nearest}`;
  frame.querySelector("span").textContent = nearest === now ? `step ${nearest}` : `nearest picture: step ${nearest}`;
}

function fillScenes() {
  const found = state.content.scenes;
  byId("scenes").hidden = about.kind !== "rules";
  byId("scenes").replaceChildren(...(about.kind === "rules" ? found : []).map((each, n) => {
    const button = element("button", `${each.episode}:${each.step}`);
    button.type = "button";
    button.setAttribute("aria-label", `Episode ${each.episode}, step ${each.step}`);
    button.addEventListener("click", () => goToScene(n));
    return button;
  }));
}

// The rows of the state's table are made once for a scene; stepping through time only changes their numbers.
function fillState() {
  const shown = scene();
  const rows = [];
  state.rows = [];
  if (shown) {
    addRow(rows, "action", (run, at) => run.a[at] || run.end, null, "note");
    addRow(rows, "reward", (run, at) => number(run.r[at], 3), shown.r, "note");
    addRow(rows, "return so far", (run, at) => number(run.g[at], 2), shown.g, "note");
    about.components.forEach((component, n) => addRow(rows, component, (run, at) => number(run.c[n][at], component.decimals), shown.c[n]));
  }
  byId("state").tBodies[0].replaceChildren(...rows);
}

function addRow(rows, named, text, values, kind = "") {
  const row = element("tr");
  row.className = kind;
  const head = element("th", named.name ?? named);
  head.scope = "row";
  if (named.meaning) head.title = named.meaning;
  const cell = element("td");
  cell.className = "n";
  const content = element("span");
  cell.append(content);
  if (named.unit) head.append(" ", element("small", named.unit));
  row.append(head, cell);
  if (values) {
    const [drawing, marker] = spark(values);
    const last = element("td");
    last.append(drawing);
    row.append(last);
    state.rows.push((run, at) => marker(at));
  } else cell.colSpan = 2;
  state.rows.push((run, at) => { content.textContent = text(run, at); });
  rows.push(row);
}

const SVG = "http://www.w3.org/2000/svg";
function svg(tag, attributes) {
  const made = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  return made;
}

// A small curve of a number over the steps shown, with a line at the step in question and one at the step looked at.
function spark(values) {
  const known = values.filter((value) => value !== null);
  const [low, high] = [Math.min(...known), Math.max(...known)];
  const x = (at) => (values.length > 1 ? (100 * at) / (values.length - 1) : 50);
  const y = (value) => (high > low ? 18 - (16 * (value - low)) / (high - low) : 10);
  const points = values.map((value, at) => (value === null ? null : `${x(at).toFixed(2)},${y(value).toFixed(2)}`)).filter(Boolean);
  const drawing = svg("svg", { viewBox: "0 0 100 20", preserveAspectRatio: "none", "aria-hidden": "true" });
  const asked = x(scene().t.indexOf(scene().step));
  const cursor = svg("line", { x1: asked, x2: asked, y1: 0, y2: 20 });
  drawing.append(svg("line", { x1: asked, x2: asked, y1: 0, y2: 20, class: "asked" }), svg("polyline", { points: points.join(" ") }), cursor);
  return [drawing, (at) => { cursor.setAttribute("x1", x(at)); cursor.setAttribute("x2", x(at)); }];
}

function fillClaim() {
  const { claim } = state.content;
  const asked = scene();
  const parts = [];
  const logged = asked ? asked.a[asked.t.indexOf(asked.step)] : null;
  if (claim?.predicate) parts.push(rule(claim));
  if (asked && about.discrete) parts.push(sentence("did", about.kind === "rules" ? "In this step the agent did " : "The agent did ", logged));
  if (claim && !claim.predicate && about.discrete) parts.push(suggestion(claim));
  if (!about.discrete && asked) parts.push(vector(asked, claim));
  if (claim && state.seen[item()]) parts.push(reason(claim));
  else if (claim) parts.push(button("reason", "Show the reason", "r"));
  byId("claim").replaceChildren(...parts);
}

function sentence(kind, words, strong) {
  const made = element("p", words);
  made.className = kind;
  made.append(element("b", strong));
  return made;
}

function suggestion(claim) {
  const made = element("p");
  made.className = `says ${claim.agrees === null ? "" : claim.agrees ? "confirms" : "corrects"}`;
  made.append(element("small", claim.agrees ? "the suggestion confirms it" : "the suggestion"), claim.action ?? "–");
  return made;
}

function rule(claim) {
  const made = element("div");
  const when = element("p", "when ");
  when.className = "when";
  when.append(element("code", claim.predicate));
  const terms = element("dl");
  terms.className = "terms";
  for (const term of claim.terms) {
    const each = element("div");
    const name = element("dt");
    name.append(element("code", `${term.name} = ${term.expression}`));
    each.append(name, element("dd", term.meaning ? ` ${term.meaning}` : ""));
    terms.append(each);
  }
  const then = element("p", claim.action);
  then.className = "says";
  then.prepend(element("small", "do"));
  const agent = claim.logged === null ? "" : `; the agent did so in ${(100 * claim.logged).toFixed(0)}% of them`;
  const covers = element("p", `It matches ${(100 * claim.covers).toFixed(1)}% of all steps and decides ${claim.decides}${agent}.`);
  covers.className = "question";
  made.append(when, terms, then, covers);
  return made;
}

// Continuous actions beside each other, one row for each dimension.
function vector(asked, claim) {
  const made = element("table");
  const said = asked.suggested_values ?? claim?.values ?? null;
  const head = element("tr");
  head.append(...["dimension", "logged", ...(said ? ["suggested"] : [])].map((text) => Object.assign(element("th", text), { scope: "col" })));
  const top = element("thead");
  top.append(head);
  const body = element("tbody");
  names.forEach((name, n) => {
    const row = element("tr");
    const { low, high } = about.actions[n];
    const far = said && Math.abs((said[n] ?? 0) - asked.acted[n]) > 0.05 * (low !== null && high !== null ? high - low : Math.max(1, Math.abs(asked.acted[n])));
    row.append(Object.assign(element("th", name), { scope: "row", title: about.actions[n].meaning }), element("td", number(asked.acted[n])));
    if (said) row.append(Object.assign(element("td", number(said[n])), { className: far ? "other" : "" }));
    body.append(row);
  });
  made.append(top, body);
  return made;
}

function reason(claim) {
  const made = element("div");
  made.className = "reason";
  const said = element("p", claim.rationale || "(no reason given)");
  said.className = "said";
  said.dir = "auto";
  const facts = element("dl");
  const known = [["annotator", claim.model], ["confidence", number(claim.confidence)], ["critical", claim.critical === null ? "–" : claim.critical ? "yes" : "no"]];
  if (typeof claim.grade === "number") known.push(["grade of what was done", number(claim.grade)]);
  if (typeof claim.advantage === "number") known.push(["replayed gain", number(claim.advantage, 1)]);
  if (claim.contested) known.push(["other opinions", "differ"]);
  for (const [name, value] of known) {
    const fact = element("div");
    fact.append(element("dt", name), element("dd", value));
    facts.append(fact);
  }
  made.append(said, facts);
  return made;
}

function button(what, words, key, kind = "") {
  const made = element("button", `${words} `);
  made.type = "button";
  made.className = kind;
  made.dataset.do = what;
  if (key) {
    made.append(element("kbd", key));
    made.setAttribute("aria-keyshortcuts", key);
  }
  return made;
}

function fillAnswer() {
  const found = answer();
  const verdicts = isGold
    ? [["unsure", "Unsure", "u"]]
    : [["accept", "Accept", "a"], ["correct", "Correct", "c"], ["reject", "Reject", "x"], ["unsure", "Unsure", "u"]];
  byId("verdicts").replaceChildren(...verdicts.map(([verdict, words, key]) => pressed(button(verdict, words, key, verdict), found?.verdict === verdict)));
  byId("actions").replaceChildren(...(about.discrete && isAsked() ? about.actions.map(actionButton) : isGold || !about.discrete && isAsked() ? [button("logged", "As logged", "l"), button("correct", "Other numbers", "c")] : []));
  byId("actions").hidden = !byId("actions").children.length;
  byId("critical").hidden = about.kind === "rules";
  for (const [what, value] of [["yes", true], ["no", false]]) pressed(byId("critical").querySelector(`[data-do=${what}]`), found?.critical === value);
  if (document.activeElement !== byId("note")) byId("note").value = found?.note ?? "";
  byId("bar").value = [...Array(total).keys()].filter((n) => isDone(state.answers[n + 1])).length;
  byId("count").textContent = `${byId("bar").value} of ${total}`;
  byId("save").classList.toggle("unsaved", unsaved() > 0);
}

const isAsked = () => isGold || state.correcting === item() || answer()?.verdict === "correct";

function actionButton(action, n) {
  const made = button("act", action.name, n < 9 ? String(n + 1) : "", "");
  made.dataset.action = action.name;
  if (action.meaning) made.append(element("small", action.meaning));
  return pressed(made, answer()?.action === action.name);
}

function pressed(made, is) {
  made.setAttribute("aria-pressed", String(is));
  return made;
}

function fillQueue() {
  const chips = byId("queue");
  if (!chips.children.length) {
    chips.append(...about.items.map((_, n) => {
      const chip = element("button", String(n + 1));
      chip.type = "button";
      chip.addEventListener("click", () => openItem(n));
      return chip;
    }));
  }
  [...chips.children].forEach((chip, n) => {
    const found = state.answers[n + 1];
    const verdict = isDone(found) ? found.verdict : "";
    if (chip.className !== verdict) chip.className = verdict;
    chip.setAttribute("aria-label", `Item ${n + 1}${verdict ? `, ${WORDS[verdict]}` : ""}`);
    chip.setAttribute("aria-current", String(n === state.at));
  });
}

// ---- numbers of a continuous action

function openNumbers() {
  const form = byId("numbers");
  const shown = scene();
  const from = answer()?.action ?? state.content.claim?.values ?? shown?.acted ?? [];
  form.replaceChildren(...about.actions.map((action, n) => {
    const field = element("label");
    field.className = "field";
    field.append(element("span", action.name));
    const input = Object.assign(element("input"), { type: "number", step: "any", required: true, value: String(Number((from[n] ?? 0).toPrecision(4))) });
    if (typeof action.low === "number") input.min = String(action.low);
    if (typeof action.high === "number") input.max = String(action.high);
    field.append(input);
    return field;
  }), Object.assign(button("use", "Use", "Enter", "main"), { type: "submit" }));
  form.hidden = false;
  form.querySelector("input").select();
}

byId("numbers").addEventListener("submit", (event) => {
  event.preventDefault();
  const values = [...byId("numbers").querySelectorAll("input")].map((input) => input.valueAsNumber);
  if (!values.every(Number.isFinite)) return;
  byId("numbers").hidden = true;
  document.activeElement?.blur();
  act(event, () => choose(values));
});

function correct() {
  if (!about.discrete) return openNumbers();
  state.correcting = item();
  show();
  return byId("actions").querySelector("button")?.focus();
}

function asLogged() {
  const shown = scene();
  if (!shown) return;
  if (about.discrete) choose(shown.a[shown.t.indexOf(shown.step)]);
  else choose(shown.acted);
}

// ---- words to the reader

let silence = 0;
function say(text, stays = false) {
  clearTimeout(silence);
  byId("said").textContent = text;
  if (!stays) silence = setTimeout(() => { byId("said").textContent = ""; }, 2_500);
}

function warn(text) {
  byId("warning").textContent = text;
  byId("warning").hidden = false;
}

function showReason() {
  if (!state.content.claim) return;
  state.seen[item()] = true;
  persist();
  show();
}

// ---- keys and buttons

const doing = {
  accept: () => decide("accept"), correct, reject: () => decide("reject"), unsure: () => decide("unsure"),
  yes: () => mark(true), no: () => mark(false), reason: showReason, logged: asLogged, undo, clear, save: askName,
  back: () => goTo(state.index - 1), on: () => goTo(state.index + 1), previous: () => openItem(state.at - 1), next: () => openItem(state.at + 1),
  note: () => byId("note").focus(), keys: () => byId("help").showModal(),
};
const ANY_TIME = [doing.previous, doing.next, doing.undo, doing.save, doing.keys];
const KEYS = {
  ...(isGold ? {} : { a: "accept", x: "reject", r: "reason" }),
  ...(isGold && about.discrete ? {} : { c: "correct" }),
  ...(about.kind === "rules" ? {} : { y: "yes", n: "no", l: "logged" }),
  u: "unsure", e: "note", z: "undo", Backspace: "clear", s: "save", "?": "keys", j: "next", k: "previous",
  ArrowLeft: "back", ArrowRight: "on", ArrowUp: "previous", ArrowDown: "next",
};
const EXPLAINED = [
  ...(isGold ? [] : [["a", "accept the suggestion"], ["c", "correct it: choose another action"], ["x", "reject it"], ["r", "show the reason"]]),
  ["u", "unsure"],
  ...(about.discrete ? [["1 … 9", "this action is best"]] : isGold ? [["c", "give the numbers"]] : []),
  ...(about.kind === "rules" ? [["[ ]", "another step of the rule"]] : [["l", "the logged action is best"], ["y n", "critical, not critical"]]),
  ["← →", "step through time; with Shift five steps"], ["Home", "back to the step in question"], ["↑ ↓", "previous, next item (also k j)"],
  ["e", "write a note; Esc leaves it"], ["z", "undo"], ["⌫", "clear the answer"], ["s", "save"],
];

// A field of a dialog that has closed keeps the focus until the browser draws again; nobody types into it.
const isTypingInto = (target) => target.closest("input:not([type=range]), textarea, select")?.getClientRects().length > 0;

function press(event) {
  const isTyping = isTypingInto(event.target);
  if (event.key === "Escape" && isTyping) return leave(event);
  const isControl = event.ctrlKey || event.metaKey;
  if (isControl && !isTyping && ["z", "s"].includes(event.key)) return act(event, doing[KEYS[event.key]]);
  if (isTyping || isControl || event.altKey || document.querySelector("dialog[open]")) return undefined;
  if (event.shiftKey && event.key.startsWith("Arrow")) return act(event, () => goTo(state.index + { ArrowLeft: -5, ArrowRight: 5 }[event.key] || state.index));
  if (event.key === "Home") return act(event, () => { rewind(); show(); });
  if (about.kind === "rules" && "[]".includes(event.key)) return act(event, () => goToScene(state.scene + (event.key === "]" ? 1 : -1)));
  const digit = Number(event.key);
  if (about.discrete && digit >= 1 && digit <= Math.min(9, names.length)) return act(event, () => choose(names[digit - 1]));
  return KEYS[event.key] ? act(event, doing[KEYS[event.key]]) : undefined;
}

// An answer counts only for the item that is on the screen, never for one that is still being unpacked.
function act(event, what) {
  event.preventDefault();
  if (state.shown === state.at || ANY_TIME.includes(what)) what();
}

function leave(event) {
  event.preventDefault();
  event.target.blur();
  byId("numbers").hidden = true;
}

addEventListener("keydown", press);
byId("review").addEventListener("click", (event) => {
  const pressedButton = event.target.closest("button[data-do]");
  if (!pressedButton) return;
  const { do: what, action } = pressedButton.dataset;
  if (what === "act") act(event, () => choose(action));
  else if (doing[what]) act(event, doing[what]);
});
byId("save").addEventListener("click", askName);
byId("slider").addEventListener("input", (event) => goTo(Number(event.target.value)));
byId("note").addEventListener("change", (event) => {
  change({ note: event.target.value });
  show();
});
addEventListener("storage", (event) => {
  if (event.key !== place) return;
  restore();
  openItem(state.at);
});
onTheme(() => {});
byId("keys").append(...EXPLAINED.flatMap(([key, words]) => {
  const term = element("dt");
  term.append(element("kbd", key));
  return [term, element("dd", words)];
}));

const restored = restore();
if (total) await openItem(state.at);
if (restored) say(`${restored} answers of an earlier visit were restored.`);
