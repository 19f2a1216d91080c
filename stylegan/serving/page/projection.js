// Your own picture: chosen, dropped or pasted, sent to the server, and compared with what the model draws for it.

import { $, complain, say, sentence } from "./dom.js";
import { Picture, Refusal, ask, json, sleep } from "./server.js";

const TYPES = ["image/png", "image/jpeg", "image/webp"];
const MIB = 2 ** 20;
const POLL = 400; // ms between two questions about the progress

const before = new Picture("before");
const after = new Picture("after");
let search = null; // the one under way: {id, cancelled, start}
let page = null; // what `connectUpload` was given

const mostBytes = () => page.model().limits.body_bytes;

/** Make the section work. `page` has model(), begin() for the start of a search, and found(id) for its end. */
export function connectUpload(of) {
  page = of;
  $("file").addEventListener("change", () => {
    upload($("file").files[0]);
    $("file").value = ""; // so that the same file can be chosen again
  });
  $("cancel").addEventListener("click", cancel);
  const brings = (event) => page.model().projection && event.dataTransfer?.types.includes("Files");
  const mark = (on) => ["stage", "drop"].forEach((id) => $(id).classList.toggle("dragged", on));
  addEventListener("dragover", (event) => {
    if (!brings(event)) return;
    event.preventDefault();
    mark(true);
  });
  addEventListener("dragleave", (event) => event.relatedTarget === null && mark(false));
  addEventListener("drop", (event) => {
    if (!brings(event)) return;
    event.preventDefault();
    mark(false);
    upload(event.dataTransfer.files[0]);
  });
  addEventListener("paste", (event) => {
    const [file] = event.clipboardData.files;
    if (!file || !page.model().projection) return;
    event.preventDefault();
    upload(file);
  });
}

export function renderUpload(model) {
  $("upload").hidden = !model.projection;
  $("no-projection").textContent = model.projection ? "" : sentence(`Not with this model: ${model.no_projection}`);
  $("drop-hint").textContent = `PNG, JPEG or WebP, at most ${Math.floor(mostBytes() / MIB)} MiB`;
}

/** Return why a file cannot be sent; empty if it can. */
function objection({ name, type, size }) {
  if (!TYPES.includes(type)) return `${name}: is no PNG, JPEG or WebP picture`;
  if (size > mostBytes()) return `${name}: has ${(size / MIB).toFixed(1)} MiB; at most ${Math.floor(mostBytes() / MIB)} can be sent`;
  return "";
}

async function upload(file) {
  if (!file) return;
  complain(objection(file));
  if (objection(file)) return;
  await cancel();
  page.begin();
  say("");
  const mine = (search = { id: null, cancelled: false, start: null });
  const wanted = () => !mine.cancelled;
  $("compare").hidden = true;
  $("search").hidden = false;
  $("progress").removeAttribute("value");
  $("progress-text").textContent = "Sending the picture.";
  try {
    const items = new URLSearchParams({ space: document.querySelector("input[name=space]:checked").value });
    const sent = { method: "POST", body: file, headers: { "Content-Type": file.type } };
    const made = await ask(`projections?${items}`, json, { wanted, ...sent });
    mine.id = made?.id ?? null;
    if (mine.cancelled) return await forget(mine.id); // nobody could cancel it before it had an id
    const found = await follow(mine, wanted);
    if (found === null) return;
    if (found.state !== "done") throw new Refusal(found.message || "The search for the latent has failed");
    show(found);
    page.found(found.id);
  } catch (error) {
    complain(error.message);
  } finally {
    if (search === mine) {
      search = null;
      $("search").hidden = true;
    }
  }
}

/** Show the progress of a search until it ends; null if it was cancelled. */
async function follow(mine, wanted) {
  for (;;) {
    const now = await ask(`projections/${mine.id}`, json, { wanted });
    if (now === null || !["waiting", "running"].includes(now.state)) return now;
    showProgress(mine, now);
    await sleep(POLL);
  }
}

function showProgress(mine, { state, step, steps }) {
  if (state === "waiting" || !step) {
    $("progress-text").textContent = state === "waiting" ? "Waiting for the pictures of others." : "Beginning.";
    return;
  }
  mine.start ??= { step, at: performance.now() };
  const done = step - mine.start.step;
  const left = ((performance.now() - mine.start.at) / 1000 / done) * (steps - step);
  Object.assign($("progress"), { max: steps, value: step });
  $("progress-text").textContent = `Step ${step} of ${steps}` + (done ? `; about ${Math.max(1, Math.round(left))} s left.` : ".");
}

async function cancel() {
  if (search === null) return;
  const mine = search;
  search = null;
  mine.cancelled = true;
  $("search").hidden = true;
  say("The search was cancelled.");
  await forget(mine.id);
}

async function forget(id) {
  if (id !== null) await ask(`projections/${id}`, () => true, { method: "DELETE" }).catch(() => {}); // it may be gone
}

/** Show the comparison of a projection that a link names, while `wanted`. */
export async function recall(id, wanted) {
  try {
    const found = await ask(`projections/${encodeURIComponent(id)}`, json, { wanted });
    if (found?.state === "done" && wanted()) show(found);
  } catch {
    // The request of its picture says what is wrong.
  }
}

function show(found) {
  const folder = `projections/${found.id}`;
  before.show(`${folder}/target.png`);
  after.show(`image.png?w=${found.id}`);
  $("latents-file").href = `${folder}/w.npz`;
  $("verdict").textContent = verdict(found.psnr);
  $("remarks").textContent = found.message && sentence(found.message);
  $("numbers").textContent = numbers(found).join(" · ");
  $("compare").hidden = false;
}

/** Say how near the model comes to a picture. */
function verdict(psnr) {
  if (psnr === null) return "The model draws exactly this picture.";
  if (psnr >= 30) return "The model draws this picture: a difference is hardly seen.";
  if (psnr >= 22) return "The model comes close; fine details differ.";
  if (psnr >= 16) return "The model draws something like it: shape and brightness agree, details do not.";
  return "The model cannot draw this picture. What you see is the nearest that it has.";
}

function numbers({ psnr, distance, w_distance: far }) {
  return [
    `PSNR ${psnr === null ? "∞" : psnr.toFixed(1)} dB`,
    `perceptual distance ${distance.toPrecision(3)}`,
    `latent ${far.toFixed(1)} deviations from the mean (usual: about 1)`,
  ];
}
