// What the page asks of the server: answers, waited for while it is away, and pictures.

import { $ } from "./dom.js";

/** The server has understood, and said no. */
export class Refusal extends Error {}

const TRANSIENT = [429, 502, 503, 504];
const LONGEST_PAUSE = 8; // seconds between two attempts
const TIMEOUT = 60_000; // ms without an answer after which the server is away

export const sleep = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

async function reasonOf(response) {
  const { detail } = await response.json().catch(() => ({}));
  if (typeof detail === "string") return detail;
  if (response.status === 401) return "This server asks for a token: open the address that it has printed, with ?token=";
  return `The server answered ${response.status} ${response.statusText}`.trim();
}

const waiting = new Map(); // a request that waits for the server -> what is said meanwhile

function tell(request, words) {
  if (words) waiting.set(request, words);
  else waiting.delete(request);
  $("away").textContent = [...waiting.values()].at(-1) ?? "";
}

/**
 * Ask until the server answers; meanwhile the page says that it is away.
 *
 * Returns what `read` makes of the answer, or null if `wanted` has become false. Throws a Refusal.
 */
export async function ask(url, read, { wanted = () => true, ...options } = {}) {
  const request = Symbol(url);
  try {
    for (let pause = 1; wanted(); pause = Math.min(2 * pause, LONGEST_PAUSE)) {
      let seconds = pause;
      let words = "The server does not answer.";
      try {
        const response = await fetch(url, { signal: AbortSignal.timeout(TIMEOUT), ...options });
        if (response.ok) return await read(response);
        words = await reasonOf(response);
        if (!TRANSIENT.includes(response.status)) throw new Refusal(words);
        seconds = Number(response.headers.get("Retry-After")) || pause;
      } catch (error) {
        if (error instanceof Refusal) throw error;
      }
      tell(request, `${words.replace(/[.\s]*$/, ".")} Trying again in ${seconds} s.`);
      for (let waited = 0; waited < seconds && wanted(); waited += 0.25) await sleep(250);
    }
    return null;
  } finally {
    tell(request, "");
  }
}

export const json = (response) => response.json();

/** An <img> that shows what it was last asked for: one request at a time; what was asked in between is left out. */
export class Picture {
  /** `onOutcome(error, version)` is called after each request: what went wrong, or which version has drawn it. */
  constructor(id, onOutcome = () => {}) {
    this.image = $(id);
    this.onOutcome = onOutcome;
    this.next = null;
    this.shown = null;
    this.running = null;
  }

  /** Show an address; the promise ends when nothing is left to show. */
  show(address) {
    this.next = address;
    this.running ??= this.#run().finally(() => (this.running = null));
    return this.running;
  }

  /** Forget that it shows its address, as the same address has another picture now. */
  outdate() {
    this.shown = null;
  }

  async #run() {
    while (this.next !== null) {
      const address = this.next;
      this.next = null;
      if (address !== this.shown) await this.#draw(address);
    }
  }

  async #draw(address) {
    const old = this.image.src;
    try {
      const read = async (response) => [await response.blob(), response.headers.get("X-Model-Version")];
      const answer = await ask(address, read, { wanted: () => this.next === null });
      if (answer === null) return;
      const [blob, version] = answer;
      this.image.src = URL.createObjectURL(blob);
      await this.image.decode().finally(() => old && URL.revokeObjectURL(old)); // until then the old one is shown
      this.image.hidden = false;
      this.shown = address;
      this.onOutcome(null, version);
    } catch (error) {
      this.shown = null;
      this.onOutcome(error, null);
    }
  }
}
