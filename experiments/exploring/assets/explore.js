// The page of `servetwin explore`: what is changed is sent, and what came of it drawn. Its state is in the address.
const TOKEN = "servetwin token";
const SOON = 300; // milliseconds after which a newer state no longer waits for the answer to an older one
const tab = crypto.randomUUID ? crypto.randomUUID() : String(Math.random());
const $ = (id) => document.getElementById(id);

let offer = null; // what the page offers
let base = {}; // the values that the experiment has
let state = { changed: {}, other: null, look: 0 };
let number = 0, shown = 0, flying = 0, owed = false, timer = 0;
const off = new Set(); // lines that were clicked away

// -- asking ---------------------------------------------------------------------------------------------

function token() {
  try { return localStorage.getItem(TOKEN) || ""; } catch { return token.kept || ""; }
}

function keep(value) {
  token.kept = value;
  try { localStorage.setItem(TOKEN, value); } catch { /* a browser that keeps nothing: this tab knows it */ }
}

async function ask(what, more) {
  const answer = await fetch(`/api/${what}`, {
    method: "POST",
    headers: { "Content-Type": "application/json", "X-ServeTwin-Token": token() },
    body: JSON.stringify({ tab, ...more }),
  });
  if (!answer.ok) throw new Error((await answer.text()).trim());
  return answer.json();
}

// One question is under way at a time, and the newest state follows it; one that takes long is given up.
function change() {
  history.replaceState(null, "", link());
  mark();
  if (flying && performance.now() - flying < SOON) {
    owed = true;
    clearTimeout(timer);
    timer = setTimeout(() => { if (owed) send(); }, SOON - (performance.now() - flying));
    return;
  }
  send();
}

async function send() {
  owed = false;
  clearTimeout(timer);
  const mine = ++number;
  const began = performance.now();
  flying = began;
  const waits = setTimeout(() => $("results").classList.add("late"), 400);
  document.documentElement.dataset.busy = "yes";
  try {
    const answer = await ask("run", { number: mine, state });
    if (answer.stale || mine <= shown) return;
    shown = mine;
    if (answer.error) tell(answer.error);
    else { tell(""); show(answer); $("strip").lastChild.textContent = ` · answered in ${seconds(performance.now() - began)}`; }
  } catch (error) {
    if (mine === number) tell(error instanceof TypeError ? "servetwin explore has ended: start it again" : error.message);
  } finally {
    clearTimeout(waits);
    if (mine === number) {
      flying = 0;
      $("results").classList.remove("late");
      if (owed) send();
      else document.documentElement.dataset.busy = "no";
    }
  }
}

const seconds = (ms) => `${(ms / 1000).toFixed(2)} s`;

function tell(trouble) {
  $("trouble").textContent = trouble;
  $("trouble").hidden = !trouble;
}

// -- what came of it ------------------------------------------------------------------------------------

function show(answer) {
  const results = $("results");
  const fresh = document.createElement("div");
  fresh.innerHTML = answer.html;
  const old = [...results.querySelectorAll(".canvas")];
  const unfolded = new Set([...results.querySelectorAll("details[open]")].map((d) => d.querySelector("summary").textContent));
  for (const details of fresh.querySelectorAll("details")) details.open = unfolded.has(details.querySelector("summary").textContent);
  for (const button of fresh.querySelectorAll("button[data-line]")) {
    button.setAttribute("aria-pressed", String(!off.has(button.dataset.line)));
    button.addEventListener("click", () => toggle(button.dataset.line));
  }
  const pairs = [...fresh.querySelectorAll(".canvas")].map((canvas, i) => {
    const figure = answer.figures[Number(canvas.dataset.figure)];
    const used = old[i] || canvas;
    if (used !== canvas) {
      used.setAttribute("aria-label", canvas.getAttribute("aria-label"));
      canvas.replaceWith(used);
    }
    used.style.minHeight = `${figure.layout.height || 270}px`;
    return [used, figure];
  });
  results.replaceChildren(...fresh.childNodes);
  for (const unused of old.slice(pairs.length)) Plotly.purge(unused);
  for (const [canvas, figure] of pairs) canvas.figure = figure;
  drawn(pairs.map(([canvas]) => canvas));
  const strip = $("strip");
  strip.textContent = "";
  for (const div of [...results.querySelectorAll(".facts div")].slice(0, 2)) {
    const values = [...div.querySelectorAll("dd")].map((dd) => dd.textContent);
    const bold = document.createElement("b");
    bold.textContent = values.join(" | ");
    if (strip.childNodes.length) strip.append(" · ");
    strip.append(`${div.querySelector("dt").textContent} `, bold);
  }
  strip.append(document.createTextNode(""));
  document.title = `${answer.title}: ${offer.name}`;
  again(answer);
}

// What is in view is drawn at once, the rest when there is time.
let drawing = 0;
function drawn(canvases) {
  const turn = ++drawing;
  const near = (c) => { const box = c.getBoundingClientRect(); return box.height > 0 && box.bottom > -100 && box.top < innerHeight + 100; };
  const later = [];
  for (const canvas of canvases) {
    if (near(canvas)) draw(canvas);
    else later.push(canvas);
  }
  const next = () => {
    if (turn !== drawing) return;
    if (!later.length) { document.documentElement.dataset.whole = "yes"; return; }
    draw(later.shift());
    setTimeout(next);
  };
  document.documentElement.dataset.whole = "no";
  setTimeout(next, 30);
}

function draw(canvas) {
  const data = structuredClone(canvas.figure.data);
  for (const trace of data) if (off.has(trace.name)) trace.visible = false;
  Plotly.react(canvas, data, merged(structuredClone(canvas.figure.layout)), plotOptions);
  if (Math.abs(canvas.clientWidth - canvas._fullLayout.width) > 1) Plotly.Plots.resize(canvas); // its place is another
}

function toggle(line) {
  if (off.has(line)) off.delete(line);
  else off.add(line);
  for (const button of document.querySelectorAll("button[data-line]"))
    button.setAttribute("aria-pressed", String(!off.has(button.dataset.line)));
  for (const canvas of document.querySelectorAll("#results .canvas")) if (canvas.figure) draw(canvas);
}

function again(answer) {
  $("again").hidden = false;
  const place = $("commands");
  place.textContent = "";
  const says = answer.commands.length > 1 ? ["The first, as a command:", "The second:"] : ["As a command:"];
  answer.commands.forEach((command, i) => {
    place.append(element("p", says[i]), element("pre", command));
    const details = element("details");
    details.append(element("summary", `As a file${answer.commands.length > 1 ? [", the first", ", the second"][i] : ""}`));
    details.append(element("pre", answer.files[i]));
    place.append(details);
  });
  place.append(element("p", "A link to this state, for as long as this page is served; the address of this tab is the same:"));
  place.append(element("pre", location.href));
}

function element(name, text) {
  const made = document.createElement(name);
  if (text !== undefined) made.textContent = text;
  return made;
}

// -- controls -------------------------------------------------------------------------------------------

function build() {
  const place = $("fields");
  place.textContent = "";
  const first = offer.policies.find((p) => p.name === (state.changed["policy.name"] ?? offer.policy));
  const second = state.other && offer.policies.find((p) => p.name === state.other["policy.name"]);
  const own = (control) => field(control, value(control.key), (v) => set(control.key, v));
  const demand = offer.controls.filter((c) => /^(workload\.arrivals|slo)\./.test(c.key));
  place.append(...demand.map(own));
  place.append(policyControl("policy", "policy", first, choose));
  place.append(parameters("parameters", first, value, set));
  place.append(policyControl("other", "compare with", second, compare));
  if (second) {
    const usual = Object.fromEntries(second.controls.map((c) => [c.key, c.value]));
    place.append(parameters("parameters of the second", second, (key) => (key in state.other ? state.other[key] : usual[key]), (key, v) => {
      if (v === usual[key]) delete state.other[key];
      else state.other[key] = v;
      change();
    }));
  }
  place.append(...offer.controls.filter((c) => !demand.includes(c)).map(own));
  const look = { key: "look", label: "shown from, s", kind: "number", low: null, says: "requests and batches one by one, in a chart below" };
  place.append(field(look, state.look, (v) => { state.look = v; change(); }));
  mark();
}

function value(key) {
  return key in state.changed ? state.changed[key] : base[key];
}

function set(key, v) {
  if (v === base[key]) delete state.changed[key];
  else state.changed[key] = v;
  change();
}

function choose(name) {
  for (const key of Object.keys(state.changed)) if (key.startsWith("policy.")) delete state.changed[key];
  if (name !== offer.policy) state.changed["policy.name"] = name;
  adopt();
  build();
  change();
}

function compare(name) {
  state.other = name ? { "policy.name": name } : null;
  build();
  change();
}

// The values that parameters of the chosen policy have, unless they are changed.
function adopt() {
  base = Object.fromEntries(offer.controls.map((c) => [c.key, c.value]));
  const policy = offer.policies.find((p) => p.name === (state.changed["policy.name"] ?? offer.policy));
  for (const control of policy ? policy.controls : []) base[control.key] = control.value;
}

function mark() {
  for (const box of document.querySelectorAll(".control[data-key]")) box.classList.toggle("changed", box.dataset.key in state.changed);
  $("reset").disabled = !Object.keys(state.changed).length && !state.other && !state.look;
}

function policyControl(id, label, chosen, then) {
  const box = element("div");
  box.className = "control";
  const select = element("select");
  select.id = id;
  if (id === "other") select.append(new Option("nothing", ""));
  for (const policy of offer.policies) {
    const option = new Option(policy.why ? `${policy.name} (does not fit)` : policy.name, policy.name);
    option.disabled = policy.why !== null;
    option.title = policy.why || policy.about;
    select.append(option);
  }
  select.value = chosen ? chosen.name : "";
  select.addEventListener("change", () => then(select.value));
  const name = element("label", label);
  name.htmlFor = id;
  box.append(name, select);
  if (chosen && chosen.about) box.append(says(chosen.about));
  return box;
}

function parameters(title, policy, get, put) {
  const set = element("fieldset");
  set.className = "params";
  if (!policy || !policy.controls.length) { set.hidden = true; return set; }
  const details = element("details");
  details.open = parameters.open === true;
  details.addEventListener("toggle", () => { parameters.open = details.open; });
  const count = policy.controls.length;
  details.append(element("summary", `${count} ${count > 1 ? title : title.replace("parameters", "parameter")}`));
  for (const control of policy.controls) details.append(field(control, get(control.key), (v) => put(control.key, v), title));
  set.append(details);
  return set;
}

function says(text) {
  const line = element("p", text);
  line.className = "says";
  return line;
}

function field(control, now, put, of = "") {
  const box = element("div");
  box.className = "control";
  if (!of.includes("second")) box.dataset.key = control.key;
  const id = `${of ? `${of} ` : ""}${control.key}`.replaceAll(" ", "-");
  const label = element("label", control.label);
  label.htmlFor = id;
  const row = element("div");
  row.className = "row";
  row.append(label);
  box.append(row);
  if (control.kind === "choice") {
    const select = element("select");
    select.id = id;
    control.choices.forEach(([v, text], i) => select.append(new Option(text, String(i))));
    select.value = String(control.choices.findIndex(([v]) => v === now));
    select.addEventListener("change", () => put(control.choices[Number(select.value)][0]));
    box.append(select);
  } else if (control.kind === "switch") {
    const tick = element("input");
    Object.assign(tick, { type: "checkbox", id, checked: now === true });
    tick.addEventListener("change", () => put(tick.checked));
    row.append(tick);
  } else {
    const text = element("input");
    Object.assign(text, { type: "text", id, value: written(now), placeholder: control.empty ? "none" : "" });
    if (control.kind === "number") text.inputMode = "decimal";
    row.append(text);
    const slider = control.low === null || control.low === undefined ? null : element("input");
    const read = () => {
      const v = meant(text.value, control);
      const bad = control.kind === "number" && typeof v === "string";
      text.setAttribute("aria-invalid", String(bad));
      if (slider && typeof v === "number") slider.value = String(position(v, control));
      put(v);
    };
    text.addEventListener("change", read);
    if (slider) {
      Object.assign(slider, { type: "range", min: "0", max: "1000", step: "1", value: String(position(now, control)) });
      slider.setAttribute("aria-label", control.label);
      slider.addEventListener("input", () => {
        const v = at(Number(slider.value), control);
        text.value = written(v);
        text.setAttribute("aria-invalid", "false");
        put(v);
      });
      box.append(slider);
    }
  }
  if (control.says) box.append(says(control.says));
  return box;
}

const written = (v) => (v === null || v === undefined ? "" : typeof v === "object" ? JSON.stringify(v) : String(v));

// What was typed: a number if it is one; else the text, of which the answer says what is wrong with it.
function meant(text, control) {
  const plain = text.trim().replace(",", ".");
  if (!plain && control.empty) return null;
  if (control.kind === "number") return plain && Number.isFinite(Number(plain)) ? Number(plain) : text.trim();
  try { return JSON.parse(plain); } catch { return text.trim(); }
}

function position(v, { low, high, log }) {
  if (typeof v !== "number") return 0;
  const share = log ? Math.log(v / low) / Math.log(high / low) : (v - low) / (high - low);
  return Math.round(1000 * Math.min(Math.max(share, 0), 1)) || 0;
}

function at(place, { low, high, log, whole }) {
  const share = place / 1000;
  const v = log ? low * (high / low) ** share : low + share * (high - low);
  return whole ? Math.round(v) : Number(v.toPrecision(3));
}

// -- the address ----------------------------------------------------------------------------------------

// The state as a fragment, which is sent to nobody: keys of the experiment as they are, values as JSON.
function link() {
  const parts = [["of", offer.source], ...Object.entries(state.changed).map(([k, v]) => [k, JSON.stringify(v)])];
  for (const [k, v] of Object.entries(state.other || {})) parts.push([`with.${k}`, JSON.stringify(v)]);
  if (state.look) parts.push(["look", JSON.stringify(state.look)]);
  return `#${parts.map(([k, v]) => `${encodeURIComponent(k)}=${encodeURIComponent(v)}`).join("&")}`;
}

// The state that the address has; null if it has none.
function fromLink() {
  const given = new URLSearchParams(location.hash.slice(1).replaceAll("+", "%2B"));
  if (![...given.keys()].length) return null;
  const found = { changed: {}, other: null, look: 0 };
  for (const [key, text] of given) {
    if (key === "of") {
      if (text !== offer.source) throw new Error(`the link is about ${text}, and this page about ${offer.source}: servetwin explore ${text}`);
      continue;
    }
    let v;
    try { v = JSON.parse(text); } catch { throw new Error(`the link is not whole: ${key} is ${text}`); }
    if (key === "look") found.look = v;
    else if (key.startsWith("with.")) (found.other ??= {})[key.slice(5)] = v;
    else found.changed[key] = v;
  }
  return found;
}

function take() {
  let given = null;
  try { given = fromLink(); } catch (error) { tell(error.message); return false; }
  state = given || { changed: { ...offer.changed }, other: null, look: 0 };
  adopt();
  build();
  return true;
}

async function start() {
  const given = new URLSearchParams(location.hash.slice(1)).get("token");
  if (given !== null) {
    keep(given);
    history.replaceState(null, "", location.pathname);
  }
  offer = await ask("start", { number: ++number });
  if (offer.error) throw new Error(offer.error);
  shown = number;
  $("name").textContent = offer.name;
  $("about").textContent = offer.about;
  $("reset").addEventListener("click", () => { history.replaceState(null, "", location.pathname); take(); change(); });
  $("copy").disabled = false;
  $("copy").addEventListener("click", async () => {
    await navigator.clipboard.writeText(location.href);
    $("copy").textContent = "Copied";
    setTimeout(() => { $("copy").textContent = "Copy link"; }, 1500);
  });
  addEventListener("hashchange", () => { if (take()) change(); });
  $("controls").addEventListener("submit", (event) => event.preventDefault());
  if (take()) change();
  document.documentElement.dataset.ready = "yes";
}

start().catch((error) => {
  tell(error instanceof TypeError ? `the page cannot be shown: ${error.message}` : error.message);
  document.documentElement.dataset.ready = "failed";
});
