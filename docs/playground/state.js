// The state of the page, kept in the part of its URL behind #.

export const DEFAULTS = {
  image: 0, pixels: "", label: 0, kind: "pgd", epsilon: 0.1, beta: "0", mask: "detached", target: null, step: 20, tour: null,
};
const BETAS = /^(infinity(-[1-9])?|\d+(\.\d+)?)$/;

/** Read a state; what is missing or makes no sense has its default. */
export function readState(hash, defaults) {
  const given = new URLSearchParams(hash.replace(/^#/, ""));
  const state = { ...DEFAULTS, ...defaults };
  const number = (name, low, high) => {
    const value = Number(given.get(name));
    if (given.has(name) && given.get(name) !== "" && value >= low && value <= high) state[name] = value;
  };
  number("image", 0, 1e6);
  number("label", 0, 1e6);
  number("epsilon", 0, 1);
  number("target", 0, 1e6);
  number("step", 0, 1e6);
  number("tour", 0, 4);
  for (const [name, allowed] of [["kind", /^(fgsm|pgd|cw|square)$/], ["beta", BETAS],
    ["mask", /^(detached|full|smoothed)$/], ["pixels", /^[\w-]*$/]]) {
    if (allowed.test(given.get(name) ?? " ")) state[name] = given.get(name);
  }
  for (const name of ["image", "label", "target", "step", "tour"]) if (state[name] != null) state[name] = Math.round(state[name]);
  return state;
}

/** Write a state: what differs from the defaults. */
export function writeState(state, defaults) {
  const usual = { ...DEFAULTS, ...defaults };
  const written = new URLSearchParams();
  for (const [name, value] of Object.entries(state)) {
    if (value != null && value !== "" && value !== usual[name]) written.set(name, String(value));
  }
  return written.toString();
}

/** Bytes as text that a URL carries unchanged, and back. */
export const toText = (bytes) =>
  btoa(String.fromCharCode(...bytes)).replaceAll("+", "-").replaceAll("/", "_").replace(/=+$/, "");
export function fromText(text) {
  try {
    const binary = atob(text.replaceAll("-", "+").replaceAll("_", "/"));
    return Uint8Array.from(binary, (letter) => letter.charCodeAt(0));
  } catch {
    return new Uint8Array(); // a link may be cut
  }
}
