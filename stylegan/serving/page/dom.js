// Small hands for the elements of the page.

export const $ = (id) => document.getElementById(id);

export function element(tag, properties, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

/** Return a message as a sentence; a name at its beginning, as in `psi=11: must be`, stays what it is. */
export const sentence = (text) => text.replace(/^[a-z](?=[a-z’]* )/, (letter) => letter.toUpperCase()) + (/[.!?]$/.test(text) ? "" : ".");

let fading = 0;

/** Say what has happened, for a while. */
export function say(words) {
  clearTimeout(fading);
  $("news").textContent = words;
  if (words) fading = setTimeout(() => say(""), 10_000);
}

/** Say what is wrong; an empty text takes it back. */
export function complain(words) {
  $("problem").textContent = words && sentence(words);
}
