// Small hands for the elements of the page.

export const $ = (id) => document.getElementById(id);

export function element(tag, properties, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

/** Return a message of the server, or of this page, as a sentence. */
export const sentence = (text) => text.charAt(0).toUpperCase() + text.slice(1) + (/[.!?]$/.test(text) ? "" : ".");

/** Say what has happened. */
export function say(words) {
  $("news").textContent = words;
}

/** Say what is wrong; an empty text takes it back. */
export function complain(words) {
  $("problem").textContent = words && sentence(words);
}
