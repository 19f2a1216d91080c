// The state of the page is a query of `image.png`: what is drawn, what the address holds behind #, and what a link says.

const NUM_SEEDS = 10n ** 18n; // more than a Number holds exactly, so a seed is text here
const NUM_RANDOM = 1_000_000; // of the seeds that "Random" draws: short enough to be told to somebody

export const isSeed = (text) => /^\d{1,18}$/.test(text);
export const isNumber = (text) => text.trim() !== "" && Number.isFinite(Number(text));

/** Return a number as the state has it: without leading zeros and exponents. */
export const plain = (text) => (isSeed(text) ? String(BigInt(text)) : isNumber(text) ? String(Number(text)) : text);

/** Return the seed that is `by` (a BigInt) further; after the last comes the first. */
export const moved = (seed, by) => String((BigInt(seed) + by + NUM_SEEDS) % NUM_SEEDS);
export const randomSeed = () => String(Math.floor(Math.random() * NUM_RANDOM));

/** Return the state that an empty address has. */
export function defaults(model) {
  return {
    seed: "0",
    psi: String(model.psi?.default ?? 1), // a model without w has no psi
    label: model.classes[0] ?? "",
    noise: "own", // own, stored, none, or a seed
    to: null, // the seed where the walk leads, and the part of the way that is done
    t: 0,
    mix: null, // the second seed, which gives the styles of the layers from `crossover` on
    crossover: Math.ceil(model.num_layers / 2),
    edit: {}, // attribute -> strength
    w: null, // a projection, in place of the seed
  };
}

/** Return a state as a query; what is as usual is left out. */
export function query(model, { seed, psi, label, noise, to, t, mix, crossover, edit, w }) {
  const usual = defaults(model);
  const items = new URLSearchParams(w === null ? { seed } : { w });
  if (psi !== usual.psi) items.set("psi", psi);
  if (label !== usual.label) items.set("label", label);
  if (noise !== "own") items.set("noise", noise);
  if (to !== null && w === null) {
    items.set("to", to);
    items.set("t", t.toFixed(4));
  }
  if (mix !== null) {
    items.set("mix", mix);
    items.set("crossover", crossover);
  }
  for (const [name, strength] of Object.entries(edit)) if (strength) items.append("edit", `${name}:${strength}`);
  return items;
}

/** Read a query. Returns the state and a list of what this model cannot show, which is as usual in the state. */
export function parse(model, items) {
  const state = defaults(model);
  const odd = [];
  const take = (key, valid, set) => {
    for (const text of items.getAll(key)) {
      if (valid(text)) set(text);
      else odd.push(`${key}=${text}`);
    }
  };
  const isNoise = (text) => model.has_noise && (["own", "stored", "none"].includes(text) || isSeed(text));
  const isLayer = (text) => model.has_styles && /^\d{1,2}$/.test(text) && Number(text) <= model.num_layers;
  const edited = (text) => model.attributes.find(({ name }) => text.startsWith(`${name}:`) && isNumber(text.slice(name.length + 1)));
  take("seed", isSeed, (text) => (state.seed = plain(text)));
  take("psi", (text) => model.psi && isNumber(text), (text) => (state.psi = String(Number(text))));
  take("label", (text) => model.classes.includes(text), (text) => (state.label = text));
  take("noise", isNoise, (text) => (state.noise = plain(text)));
  take("to", isSeed, (text) => (state.to = plain(text)));
  take("t", (text) => isNumber(text) && text >= 0 && text <= 1, (text) => (state.t = Number(text)));
  take("mix", (text) => model.has_styles && isSeed(text), (text) => (state.mix = plain(text)));
  take("crossover", isLayer, (text) => (state.crossover = Number(text)));
  take("edit", edited, (text) => {
    const { name } = edited(text);
    state.edit[name] = Number(text.slice(name.length + 1));
  });
  take("w", (text) => model.projection && /^[\w-]+$/.test(text), (text) => (state.w = text));
  const known = ["seed", "psi", "label", "noise", "to", "t", "mix", "crossover", "edit", "w"];
  odd.push(...[...items.keys()].filter((key) => !known.includes(key)));
  return [state, odd];
}

let last = { cause: "", at: 0 }; // of the changes that are in the address

/** Keep a state in the address. Quick changes by one cause, such as a slider, are one step of the browser's history. */
export function keep(model, state, cause) {
  const items = query(model, state).toString();
  const hash = items === query(model, defaults(model)).toString() ? "" : items;
  if (hash === location.hash.slice(1)) return;
  const again = cause === last.cause && Date.now() - last.at < 1500;
  last = { cause, at: Date.now() };
  const url = hash ? `#${hash}` : location.pathname + location.search;
  if (again) history.replaceState(null, "", url);
  else history.pushState(null, "", url);
}

/** Let the next change be a step of its own, as the browser's history was moved in. */
export function moveOn() {
  last = { cause: "", at: 0 };
}
