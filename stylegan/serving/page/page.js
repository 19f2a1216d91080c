// The page to play with a model: its controls, the picture, the walk, and the keys.

import { $, complain, element, say, sentence } from "./dom.js";
import { connectUpload, recall, renderUpload } from "./projection.js";
import { Picture, ask, json, sleep } from "./server.js";
import { defaults, isNumber, isSeed, keep, moveOn, moved, parse, plain, query, randomSeed } from "./state.js";

const SHARP = 128; // models up to this side are shown pixel by pixel
const FRAME = 30; // ms between two pictures of a walk, at least
const STILL = matchMedia("(prefers-reduced-motion: reduce)");

let model = null; // the answer of `model`
let state = null; // what is shown: see state.js
let walking = false;

const picture = new Picture("picture", noteOutcome);
const first = new Picture("first");
const second = new Picture("second");

const address = (part = {}) => `image.png?${query(model, { ...state, ...part })}`;

/** Change the state and show it; what was said of the one before is over. `cause` names what was changed. */
function change(part, cause) {
  Object.assign(state, part);
  render();
  say("");
  keep(model, state, cause);
}

/** Take the state from a query; what the model cannot show is said. */
function take(items) {
  const [read, odd] = parse(model, items);
  state = read;
  if (odd.length) say(`This model cannot show ${odd.join(", ")}; the rest is shown.`);
}

const fromAddress = () => take(new URLSearchParams(location.hash.slice(1)));

// --- the picture -----------------------------------------------------------------------------------------------------

function noteOutcome(error, version) {
  complain(error ? error.message : "");
  if (error) return pause();
  const download = $("download");
  download.href = picture.image.src;
  download.download = fileName();
  download.removeAttribute("aria-disabled");
  if (version !== null && version !== String(model.version)) learn();
}

function fileName() {
  const parts = [...query(model, state)].map(([key, value]) => key + value);
  return [model.name, `v${model.version}`, ...parts].join("-").replace(/[^\w.+-]+/g, "_").slice(0, 120) + ".png";
}

/** Enlarge the picture as far as there is room: each of its pixels to a whole number of the device's. */
function fit() {
  const stage = $("stage");
  const room = Math.min(stage.clientWidth, parseFloat(getComputedStyle(stage).maxHeight));
  const times = Math.floor((room * devicePixelRatio) / model.resolution);
  const side = times >= 1 ? (times * model.resolution) / devicePixelRatio : room;
  stage.style.height = picture.image.style.width = picture.image.style.height = `${side}px`;
}

// --- what is shown of the state --------------------------------------------------------------------------------------

/** Set a field, unless somebody is typing this very number into it. */
function put(id, value) {
  const field = $(id);
  if (field !== document.activeElement || plain(field.value) !== value) field.value = value;
}

const noiseKind = () => (isSeed(state.noise) ? "fixed" : state.noise);
const isProjected = () => state.w !== null;
const hasClass = () => model.classes.length > 0 && (!isProjected() || state.mix !== null); // a found latent has none
const source = () => (isProjected() ? "your picture" : `seed ${state.seed}`);

function render() {
  $("seed-row").hidden = isProjected();
  $("projected-row").hidden = !isProjected();
  put("seed", state.seed);
  put("psi", state.psi);
  $("psi-range").value = state.psi;
  $("label").value = state.label;
  $("label-row").hidden = !hasClass();
  renderNoise();
  renderMix();
  for (const { name } of model.attributes) {
    const strength = state.edit[name] ?? 0;
    $(`edit-${name}`).value = strength;
    $(`edit-${name}-value`).textContent = strength.toFixed(1);
  }
  renderWalk();
  $("caption").textContent = caption();
  picture.image.alt = `What the model draws: ${caption()}`;
  picture.show(address());
}

function caption() {
  const { seed, to, t, mix, crossover } = state;
  const parts = [to === null || isProjected() ? source() : `${Math.round(100 * t)} % of the way from seed ${seed} to ${to}`];
  if (model.psi) parts.push(`psi ${state.psi}`);
  if (hasClass()) parts.push(`class ${state.label}`);
  const noise = { own: "", stored: "stored noise", none: "no noise", fixed: `noise ${state.noise}` }[noiseKind()];
  if (noise) parts.push(noise);
  if (mix !== null) parts.push(`seed ${mix} from layer ${crossover} on`);
  for (const [name, strength] of Object.entries(state.edit)) if (strength) parts.push(`${name} ${strength > 0 ? "+" : "−"}${Math.abs(strength)}`);
  return parts.join(" · ");
}

function renderNoise() {
  const kind = noiseKind();
  for (const choice of document.getElementsByName("noise")) choice.checked = choice.value === kind;
  $("noise-row").hidden = kind !== "fixed";
  if (kind === "fixed") put("noise-seed", state.noise);
  $("noise-own").textContent = isProjected() ? "Found" : "Own";
  $("noise-hint").textContent = {
    own: isProjected() ? "The noise that the search has found." : "Each seed has a noise of its own, as in stylegan sample.",
    fixed: "One noise for all seeds: only the styles change.",
    stored: "The noise that is stored with the model’s weights.",
    none: "No noise: the styles alone decide.",
  }[kind];
}

function renderMix() {
  const { mix, crossover } = state;
  $("mixing").checked = mix !== null;
  $("mix-controls").hidden = mix === null;
  if (mix === null) return;
  put("mix", mix);
  $("crossover").value = crossover;
  $("first-name").textContent = $("first").alt = sentence(source()).slice(0, -1);
  $("second-name").textContent = $("second").alt = `Seed ${mix}`;
  document.querySelectorAll(".layer").forEach((layer, index) => {
    layer.classList.toggle("first", index < crossover);
    layer.classList.toggle("second", index >= crossover);
  });
  const words = shares(crossover, source(), `seed ${mix}`);
  $("crossover-hint").textContent = sentence(words);
  $("crossover").setAttribute("aria-valuetext", words);
  first.show(address({ mix: null }));
  second.show(address({ mix: null, seed: mix, to: null, w: null }));
}

/** Say which layers come from which of two sources. */
function shares(crossover, one, other) {
  const layers = model.num_layers;
  if (crossover === 0) return `All layers from ${other}`;
  if (crossover === layers) return `All layers from ${one}`;
  return `${span(0, crossover)} from ${one}, ${span(crossover, layers)} from ${other}`;
}

function span(begin, end) {
  const [low, high] = [model.layer_resolutions[begin], model.layer_resolutions[end - 1]];
  const sides = low === high ? `${low}x${low}` : `${low}x${low} to ${high}x${high}`;
  const between = end - begin === 2 ? "and" : "to";
  return end - begin === 1 ? `layer ${begin} (${sides})` : `layers ${begin} ${between} ${end - 1} (${sides})`;
}

function renderWalk() {
  $("play").disabled = isProjected();
  $("play").textContent = walking ? "Pause" : "Play";
  $("speed-value").textContent = `${$("speed").value} s`;
  const way = `Play goes from seed ${state.seed} to ${state.to ?? moved(state.seed, 1n)} and on${model.has_noise ? ", with one noise for all" : ""}.`;
  const still = STILL.matches ? " It goes in steps, as this device asks for less motion." : "";
  $("walk-hint").textContent = isProjected() ? "A walk goes from seed to seed: go back to seeds first." : way + still;
}

// --- the model -------------------------------------------------------------------------------------------------------

/** Show which model it is, and make the controls that depend on it. */
function renderModel() {
  const { name, version, alias, resolution, channels, classes, attributes } = model;
  document.title = `${name} · StyleGAN`;
  $("name").textContent = name;
  const facts = [`Version ${version}${alias ? ` (${alias})` : ""}`, `${resolution}x${resolution} pixels, ${channels === 1 ? "grey" : "colour"}`];
  if (classes.length) facts.push(classes.length === 1 ? "one class" : `${classes.length} classes`);
  $("facts").textContent = facts.join(" · ");
  $("psi-row").hidden = !model.psi;
  if (model.psi) Object.assign($("psi"), { min: model.psi.min, max: model.psi.max });
  $("label").replaceChildren(...classes.map((label) => new Option(label, label)));
  $("noise-section").hidden = !model.has_noise;
  $("mix-section").hidden = !model.has_styles;
  for (const row of document.querySelectorAll("[data-needs]")) row.hidden = !model[row.dataset.needs];
  $("crossover").max = model.num_layers;
  $("layers").replaceChildren(...resolutions());
  $("attributes-section").hidden = !attributes.length;
  $("attributes").replaceChildren(...attributes.map(attributeRow));
  renderUpload(model);
  for (const image of document.images) image.classList.toggle("sharp", resolution <= SHARP);
  $("main").removeAttribute("aria-busy");
  fit();
}

/** Return a block for each resolution, with a cell for each of its layers. */
function resolutions() {
  const counts = new Map();
  for (const side of model.layer_resolutions) counts.set(side, (counts.get(side) ?? 0) + 1);
  return [...counts].map(([side, count]) => {
    const cells = Array.from({ length: count }, () => element("div", { className: "layer" }));
    return element("div", { className: "resolution" }, element("div", {}, ...cells), String(side));
  });
}

function attributeRow({ name }) {
  const id = `edit-${name}`;
  const range = element("input", { id, type: "range", min: -3, max: 3, step: 0.1 });
  onSlide(range, () => ({ edit: { ...state.edit, [name]: Number(range.value) } }));
  const slide = element("div", { className: "slide" }, range, element("output", { id: `${id}-value` }));
  return element("div", { className: "row" }, element("label", { htmlFor: id }, name), slide);
}

/** Ask which model there is now, and say if it is another than before. */
async function learn() {
  const old = model;
  const now = await ask("model", json, { wanted: () => model === old }).catch(() => null);
  if (now === null || model !== old || String(now.version) === String(old.version)) return;
  const items = query(old, state);
  model = now;
  renderModel();
  take(items);
  $("version").hidden = false;
  $("version-text").textContent =
    `The server now draws with version ${now.version} of the model; before, it was version ${old.version}. The same seeds give other pictures.`;
  for (const one of [picture, first, second]) one.outdate();
  render();
}

// --- the walk --------------------------------------------------------------------------------------------------------

async function play() {
  if (walking || isProjected()) return;
  walking = true;
  if (state.noise === "own" && model.has_noise) {
    state.noise = state.seed;
    say(`The noise is held at that of ${state.seed}, so that the walk does not flicker.`);
  }
  state.to ??= moved(state.seed, 1n);
  let last = performance.now();
  while (walking) {
    render();
    await Promise.all([picture.running, new Promise(requestAnimationFrame), sleep(STILL.matches ? 1000 : FRAME)]);
    const now = performance.now();
    if (walking) walk(STILL.matches ? 1 : Math.min(now - last, 500) / 1000 / Number($("speed").value));
    last = now;
  }
}

/** Go on by a part of the way from seed to seed. */
function walk(part) {
  state.t += part;
  for (; state.t >= 1; state.t -= 1) {
    state.seed = state.to;
    state.to = moved(state.seed, 1n);
  }
}

function pause() {
  if (!walking) return;
  walking = false;
  if (state.t === 0) state.to = null;
  change({}, "walk");
}

const playOrPause = () => (walking ? pause() : play());

// --- what people do --------------------------------------------------------------------------------------------------

function goTo(seed, cause = "seed") {
  walking = false;
  change({ seed, to: null, t: 0, w: null }, cause);
}

function movePsi(by) {
  if (!model.psi) return;
  const psi = Math.min(Math.max(Number(state.psi) + by, model.psi.min), model.psi.max);
  change({ psi: String(Math.round(psi * 1000) / 1000) }, "psi");
}

const newNoise = () => model.has_noise && change({ noise: randomSeed() }, "noise-new");
const setMixing = (on) => model.has_styles && change({ mix: on ? moved(state.seed, 1n) : null }, "mixing");

function cross(by) {
  if (state.mix === null) return;
  change({ crossover: Math.min(Math.max(state.crossover + by, 0), model.num_layers) }, "crossover");
}

function reset() {
  walking = false;
  change(defaults(model), "reset");
}

async function copyLink() {
  pause();
  try {
    await navigator.clipboard.writeText(location.href);
    say("The link is copied.");
  } catch {
    say(`The link is in the address bar: ${location.href}`); // the clipboard needs https or this very machine
  }
}

/** Let a slider draw while it moves; the address gets the state when it is let go. */
function onSlide(slider, part) {
  slider.addEventListener("input", () => {
    Object.assign(state, part());
    render();
  });
  slider.addEventListener("change", () => change(part(), slider.id));
}

/** Let a field draw the seed that is typed; its arrow keys are exact beyond 2^53, where a Number is not. */
function onSeed(id, current, set) {
  const field = $(id);
  const move = (by) => set(moved(current(), by), id);
  field.addEventListener("input", () => isSeed(field.value) && set(plain(field.value), id));
  field.addEventListener("change", () => (field.value = current()));
  field.addEventListener("keydown", (event) => {
    const by = { ArrowUp: 1n, ArrowDown: -1n }[event.key];
    if (!by) return;
    event.preventDefault();
    move(by);
  });
  $(`${id}-next`)?.addEventListener("click", () => move(1n));
  $(`${id}-previous`)?.addEventListener("click", () => move(-1n));
  $(`${id}-random`)?.addEventListener("click", () => set(randomSeed(), id));
}

function connect() {
  onSeed("seed", () => state.seed, goTo);
  onSeed("mix", () => state.mix, (mix) => change({ mix }, "mix"));
  onSeed("noise-seed", () => state.noise, (noise) => change({ noise }, "noise-seed"));
  onSlide($("psi-range"), () => ({ psi: plain($("psi-range").value) }));
  onSlide($("crossover"), () => ({ crossover: Number($("crossover").value) }));
  $("psi").addEventListener("input", () => isNumber($("psi").value) && change({ psi: plain($("psi").value) }, "psi"));
  $("psi").addEventListener("change", () => ($("psi").value = state.psi));
  $("psi").addEventListener("keydown", (event) => {
    if (event.key !== "ArrowUp" && event.key !== "ArrowDown") return;
    event.preventDefault();
    KEYS[event.key]();
  });
  $("label").addEventListener("change", () => change({ label: $("label").value }, "label"));
  for (const choice of document.getElementsByName("noise"))
    choice.addEventListener("change", () => change({ noise: choice.value === "fixed" ? state.seed : choice.value }, "noise"));
  $("noise-new").addEventListener("click", newNoise);
  $("mixing").addEventListener("change", () => setMixing($("mixing").checked));
  $("attributes-zero").addEventListener("click", () => change({ edit: {} }, "attributes-zero"));
  $("play").addEventListener("click", playOrPause);
  $("speed").addEventListener("input", renderWalk);
  $("seeds-again").addEventListener("click", () => {
    goTo(state.seed);
    $("seed").focus(); // the button is gone
  });
  $("copy").addEventListener("click", copyLink);
  $("reset").addEventListener("click", reset);
  $("version-seen").addEventListener("click", () => ($("version").hidden = true));
  connectUpload({
    model: () => model,
    begin: pause,
    found: (w) => {
      walking = false;
      change({ ...defaults(model), seed: state.seed, label: state.label, w }, "upload");
    },
  });
  connectKeys();
}

// --- the keyboard ----------------------------------------------------------------------------------------------------

const KEYS = {
  ArrowLeft: () => goTo(moved(state.seed, -1n)),
  ArrowRight: () => goTo(moved(state.seed, 1n)),
  ArrowUp: () => movePsi(0.05),
  ArrowDown: () => movePsi(-0.05),
  " ": playOrPause,
  r: () => goTo(randomSeed()),
  n: newNoise,
  m: () => setMixing(state.mix === null),
  "[": () => cross(-1),
  "]": () => cross(1),
  u: () => model.projection && $("file").click(),
  d: () => $("download").hasAttribute("href") && $("download").click(),
  c: copyLink,
  0: reset,
  "?": () => $("keys").showModal(),
};

function connectKeys() {
  $("help").addEventListener("click", () => $("keys").showModal());
  $("keys-close").addEventListener("click", () => $("keys").close());
  $("shortcuts").checked = localStorage.getItem("shortcuts") !== "off";
  $("shortcuts").addEventListener("change", () => localStorage.setItem("shortcuts", $("shortcuts").checked ? "on" : "off"));
  addEventListener("keydown", (event) => {
    const act = KEYS[event.key];
    if (!act || event.ctrlKey || event.metaKey || event.altKey || !$("shortcuts").checked || $("keys").open) return;
    if (needsKey(event.target, event.key)) return;
    event.preventDefault();
    act();
  });
}

/** Say whether a control with the focus does something of its own with a key. */
function needsKey(control, key) {
  if (control.matches("input[type=number], select")) return true;
  if (key.startsWith("Arrow")) return control.matches("input");
  return key === " " && control.matches("input, button, a");
}

// --- the beginning ---------------------------------------------------------------------------------------------------

function showAddress() {
  walking = false;
  fromAddress();
  render();
  const { w } = state;
  if (w !== null) recall(w, () => state.w === w);
}

try {
  model = await ask("model", json);
  connect();
  renderModel();
  showAddress();
  addEventListener("resize", fit);
  addEventListener("popstate", () => {
    moveOn();
    say("");
    showAddress();
  });
  document.addEventListener("visibilitychange", () => document.hidden || learn());
  setInterval(() => document.hidden || learn(), 60_000); // a promotion is seen also where nobody touches anything
} catch (error) {
  $("facts").textContent = "";
  complain(error.message);
}
