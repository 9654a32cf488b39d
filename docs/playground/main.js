// The page: reads its controls, asks the worker, shows the answers. What it computes itself is arithmetic of a row.

import { STEPS, argmax, softmax } from "./attacks.js";
import { drawChannels, drawCurves, drawImage, element, magnified, picture, suppressedLimit } from "./drawing.js";
import { fromText, readState, toText, writeState } from "./state.js";

const $ = (id) => document.getElementById(id);
const COLOURS = ["--first", "--second", "--good", "--soft"];
const BETAS = [["0", "0 (final only)"], ["0.1", "0.1"], ["1", "1"], ["2", "2"], ["10", "10"], ["100", "100"],
  ["infinity", "∞ (probes only)"], ["infinity-1", "∞-1"], ["infinity-2", "∞-2"]];
const SETTINGS = [
  { kind: "pgd", beta: "0", mask: "detached" }, { kind: "pgd", beta: "2", mask: "detached" },
  { kind: "pgd", beta: "infinity", mask: "detached" }, { kind: "pgd", beta: "2", mask: "full" },
  { kind: "cw", beta: "2", mask: "smoothed" }, { kind: "square", beta: "0", mask: "detached" },
];
// Image 13 of the digits is the page's own example: what looks like robustness there is an attacker's oversight.
const TOUR = [
  { text: "1 of 5. A clean image: both networks read it. The bars are the channels of the CIFS layers; tall ones count.",
    state: { image: 13, pixels: "", target: null, kind: "pgd", epsilon: 0.15, beta: "0", mask: "detached", step: 0 } },
  { text: "2 of 5. PGD takes twenty steps of ε/10 that raise the loss of the final prediction. Press Play: the margins fall, and the channels' importance moves.",
    state: { image: 13, pixels: "", target: null, kind: "pgd", epsilon: 0.15, beta: "0", mask: "detached", step: 6 } },
  { text: "3 of 5. At the end vanilla is fooled and CIFS is not. Is CIFS more robust, or has the attacker overlooked something?",
    state: { image: 13, pixels: "", target: null, kind: "pgd", epsilon: 0.15, beta: "0", mask: "detached", step: 20 } },
  { text: "4 of 5. The attacker now aims at the probes too (beta 2) and sees how the image moves the mask (full gradient). CIFS is fooled as well.",
    state: { image: 13, pixels: "", target: null, kind: "pgd", epsilon: 0.15, beta: "2", mask: "full", step: 20 } },
  { text: "5 of 5. One image proves little: measure six attacks on all images below. What counts is the worst case of each image.",
    state: { image: 13, pixels: "", target: null, kind: "pgd", epsilon: 0.1, beta: "2", mask: "full", step: 20 }, look: "fooling" },
];

// Networks that the URL names; the tour tells of the page's own.
const OWN = ["models/digits_vanilla", "models/digits_cifs"];
const named = new URLSearchParams(location.search).getAll("model"), asked = named.length ? named : OWN;
const isOwn = String(asked) === String(OWN);
const worker = new Worker(new URL("./worker.js", import.meta.url), { type: "module" });
let networks = [], shape = [], labels = [], stored = { images: [], labels: [] };
let defaults = {}, state, request = 0, results = [], trajectories = [], rows = [], playing = null, views = [];
// What was attacked last, and what is shown: while the worker computes, the page says nothing of the next image.
let asking, seen;

const send = (type, more = {}) => { request += 1; worker.postMessage({ id: request, type, ...more }); return request; };
const status = (text, isError = false) => { $("status").textContent = text; $("status").className = isError ? "error" : ""; };
const size = () => shape.reduce((a, b) => a * b, 1);

// --- the image under attack

function pixels() {
  if (state.pixels) return Float32Array.from(fromText(state.pixels), (byte) => byte / 255);
  return stored.images[state.image] ?? new Float32Array(size());
}

function trueLabel() {
  return state.pixels || !stored.images.length ? Math.min(state.label, labels.length - 1) : stored.labels[state.image];
}

function setting() {
  const { kind, epsilon, beta, mask, target } = state;
  return { kind, epsilon, beta, mask, target: target === trueLabel() ? null : target };
}

// --- asking

let attackRequest = 0, wanted = false, busy = false;

/** Attack anew; while the worker is at it, only the newest wish is kept. */
function attackAgain() {
  wanted = true;
  if (busy && state.kind !== "square") return;
  wanted = false;
  busy = true;
  results = [];
  asking = { pixels: pixels(), label: trueLabel(), setting: setting() };
  attackRequest = send("attack", asking);
}

worker.onmessage = ({ data }) => {
  if (data.type === "loaded") loaded(data.networks, data.leftOut);
  else if (data.type === "error") { busy = false; status(data.message, true); }
  else if (data.type === "attacked" && data.id === attackRequest) results[data.index] = data.steps;
  else if (data.type === "attack-done" && data.id === attackRequest) {
    busy = false;
    [trajectories, seen] = [results, asking];
    const last = trajectories[0].length - 1;
    $("step").max = last;
    if (state.step > last) state.step = last;
    document.body.dataset.attacks = Number(document.body.dataset.attacks ?? 0) + 1;
    show();
    if (wanted) attackAgain();
  } else if (data.type === "progress") $("progress").value = data.share;
  else if (data.type === "measured") { rows.push(data); showRows(); }
  else if (data.type === "measure-done") measuring(false);
};
worker.onerror = (event) => status(`The page cannot compute: ${event.message ?? "onnxruntime-web is missing; start cifs-tf playground"}`, true);

/** Change the state, show it, and attack anew if that matters. */
function change(changes, isAttack = true) {
  Object.assign(state, changes);
  if (state.target === trueLabel()) state.target = null; // towards its own class there is no attack
  history.replaceState(null, "", `#${writeState(state, defaults)}`);
  showControls();
  if (isAttack) attackAgain();
  else show();
}

// --- showing

function showControls() {
  for (const name of ["kind", "beta", "mask"]) $(name).value = state[name];
  $("epsilon").value = state.epsilon;
  $("epsilon-value").textContent = Number(state.epsilon).toFixed(3);
  $("target").value = state.target ?? "";
  for (const option of $("target").options) option.disabled = option.value === String(trueLabel());
  $("label").value = trueLabel();
  $("label").disabled = !state.pixels;
  [...$("images").children].forEach((button, i) => button.setAttribute("aria-pressed", String(!state.pixels && i === state.image)));
  drawImage($("pad"), pixels(), shape);
  const step = state.tour == null ? null : TOUR[state.tour];
  $("tour").hidden = !step;
  if (step) $("tour-text").textContent = step.text;
}

function makeViews() {
  $("networks").replaceChildren();
  views = networks.map((network, index) => {
    const own = COLOURS[index % COLOURS.length];
    const canvases = ["image", "change: white +ε, black −ε", "adversarial image"].map((words) => {
      const canvas = element("canvas", { role: "img", "aria-label": `${network.name}: ${words}` });
      return { canvas, figure: element("figure", {}, canvas, element("figcaption", {}, words)) };
    });
    const verdict = element("p", { className: "verdict" });
    const probabilities = element("div", { className: "probabilities" });
    const bars = network.labels.map((label) => {
      const bar = element("i"), number = element("span", { className: "number" });
      probabilities.append(element("span", {}, label), element("div", { className: "bar" }, bar), number);
      return { bar, number };
    });
    probabilities.style.setProperty("--colour", `var(${own})`);
    const layers = network.layers.map((name) => {
      const words = element("p", { className: "note" }), canvas = element("canvas", { className: "channels", role: "img" });
      return { name, words, canvas, box: element("div", {}, element("h3", {}, `CIFS layer at ${name}`), canvas, words) };
    });
    const box = element("article", { className: "network" }, element("h2", {}, network.name), verdict,
      element("div", { className: "three" }, ...canvases.map(({ figure }) => figure)),
      element("h3", {}, "Probabilities"), probabilities, ...layers.map((layer) => layer.box),
      ...(layers.length ? [] : [element("p", { className: "note" }, "It has no selection layer: every channel passes as it is, whatever β and mask gradient.")]));
    box.setAttribute("aria-label", `Network ${network.name}`);
    $("networks").append(box);
    return { own, canvases: canvases.map(({ canvas }) => canvas), verdict, bars, layers };
  });
}

function show() {
  if (!trajectories.length) return;
  $("step").value = state.step;
  $("step-value").textContent = seen.setting.kind === "square" ? `${Math.min(state.step * 15, STEPS.square)} queries` : state.step;
  networks.forEach((network, index) => {
    const steps = trajectories[index];
    const natural = steps[0], now = steps[Math.min(state.step, steps.length - 1)], view = views[index];
    drawImage(view.canvases[0], natural.x, shape);
    drawImage(view.canvases[1], magnified(now.x, natural.x, seen.setting.epsilon), shape);
    drawImage(view.canvases[2], now.x, shape);
    const found = softmax(now.heads[0]), predicted = argmax(found), isRight = predicted === seen.label;
    view.verdict.textContent = isRight
      ? `reads ${labels[predicted]}, right (margin ${now.margin.toFixed(2)})`
      : `fooled: reads ${labels[predicted]} instead of ${labels[seen.label]} (margin ${now.margin.toFixed(2)})`;
    view.verdict.className = `verdict ${isRight ? "right" : "fooled"}`;
    view.bars.forEach(({ bar, number }, k) => {
      bar.style.width = `${100 * found[k]}%`;
      number.textContent = `${(100 * found[k]).toFixed(1)}%`;
    });
    view.layers.forEach((layer, l) => {
      drawChannels(layer.canvas, now.layers[l], natural.layers[l], view.own);
      const { importance } = now.layers[l], limit = suppressedLimit(importance);
      const low = importance.flatMap((value, c) => (Math.abs(value) < limit ? [c] : []));
      const probe = now.heads[1 + l], first = argmax(probe), second = argmax(probe, first);
      layer.words.textContent = `Probe's top-2: ${labels[first]}, ${labels[second]}. Suppressed: ${low.length} of ${importance.length} channels` +
        `${low.length ? ` (${low.slice(0, 10).join(", ")}${low.length > 10 ? ", …" : ""})` : ""}.`;
      layer.canvas.setAttribute("aria-label", `Importance and relevance of ${importance.length} channels. ${layer.words.textContent}`);
    });
  });
  const curves = (field) => networks.map((network, index) => ({ name: network.name, colour: COLOURS[index % 4], values: trajectories[index].map((step) => step[field]) }));
  drawCurves($("loss-plot"), curves("loss"), state.step, false);
  drawCurves($("margin-plot"), curves("margin"), state.step, true);
}

// --- who is fooling whom

const titled = ({ kind, beta, mask, epsilon, target }) =>
  `${{ fgsm: "FGSM", pgd: "PGD-20", cw: "C&W-20", square: "Square-300" }[kind]}, β ${beta.replace("infinity", "∞")}, ${mask}, ε ${epsilon}${target == null ? "" : `, target ${labels[target]}`}`;
const percent = (right) => `${((100 * right.filter(Boolean).length) / right.length).toFixed(0)}%`;

function showRows() {
  const head = element("tr", {}, ...["Attack", ...networks.map((network) => network.name)].map((text) => element("th", { scope: "col" }, text)));
  $("results").tHead.replaceChildren(head);
  $("results").tBodies[0].replaceChildren(...rows.map((row) => element("tr", {}, element("td", {}, titled(row.setting)), ...row.rightOf.map((right) => element("td", {}, percent(right))))));
  const epsilon = rows.at(-1)?.setting.epsilon;
  const same = rows.filter((row) => row.setting.epsilon === epsilon);
  const worst = networks.map((_, n) => same[0]?.rightOf[n].map((_, i) => same.every((row) => row.rightOf[n][i])) ?? []);
  $("results").tFoot.replaceChildren(...(same.length > 1 ? [element("tr", {}, element("td", {}, `Worst case of each image, ε ${epsilon}`), ...worst.map((right) => element("td", {}, percent(right))))] : []));
}

function measuring(isOn) {
  for (const id of ["measure", "measure-all"]) $(id).disabled = isOn || !stored.images.length;
  $("measure-stop").disabled = !isOn;
  $("progress").hidden = !isOn;
  $("progress").value = 0;
}

function measure(settings) {
  measuring(true);
  const images = new Float32Array(size() * stored.images.length);
  stored.images.forEach((image, i) => images.set(image, i * size()));
  send("measure", { images, labels: stored.labels, settings: settings.map((each) => ({ ...each, epsilon: state.epsilon })) });
}

// --- drawing and files

function startDrawing(bytes) { change({ pixels: toText(bytes), label: trueLabel() }); }
const drawn = () => Uint8Array.from(pixels(), (value) => Math.round(255 * value));

function paint(row, column, value, spread) {
  const [height, width, channels] = shape, bytes = drawn();
  const put = (r, c, share) => {
    if (r < 0 || c < 0 || r >= height || c >= width) return;
    for (let k = 0; k < channels; k++) {
      const p = (r * width + c) * channels + k;
      bytes[p] = value ? Math.max(bytes[p], Math.round(255 * share)) : 0;
    }
  };
  put(row, column, 1);
  if (spread) for (const [r, c] of [[0, 1], [1, 0], [0, -1], [-1, 0]]) put(row + r, column + c, 0.35);
  startDrawing(bytes);
}

function connectPad() {
  const pad = $("pad");
  let cursor = [Math.floor(shape[0] / 2), Math.floor(shape[1] / 2)], isDown = false;
  const at = (event) => {
    const box = pad.getBoundingClientRect();
    return [Math.floor(((event.clientY - box.top) / box.height) * shape[0]), Math.floor(((event.clientX - box.left) / box.width) * shape[1])];
  };
  pad.addEventListener("pointerdown", (event) => { isDown = true; pad.setPointerCapture(event.pointerId); paint(...at(event), 1, shape[0] > 12); });
  pad.addEventListener("pointermove", (event) => { if (isDown) paint(...at(event), 1, shape[0] > 12); });
  for (const name of ["pointerup", "pointercancel"]) pad.addEventListener(name, () => { isDown = false; });
  pad.addEventListener("keydown", (event) => {
    const way = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key];
    if (way) cursor = cursor.map((value, axis) => Math.min(shape[axis] - 1, Math.max(0, value + way[axis])));
    else if (event.key === " ") paint(...cursor, 1, false);
    else if (event.key === "Backspace") paint(...cursor, 0, false);
    else return;
    event.preventDefault();
    pad.setAttribute("aria-label", `Drawing pad, row ${cursor[0] + 1}, column ${cursor[1] + 1}: arrow keys move, space draws, backspace erases`);
  });
}

async function readFile(file) {
  try {
    const bitmap = await createImageBitmap(file);
    const [height, width, channels] = shape;
    const canvas = element("canvas", { width, height }), context = canvas.getContext("2d", { willReadFrequently: true });
    context.imageSmoothingQuality = "high";
    context.drawImage(bitmap, 0, 0, width, height);
    const { data } = context.getImageData(0, 0, width, height);
    const bytes = new Uint8Array(size());
    for (let p = 0; p < width * height; p++) {
      const grey = 0.299 * data[4 * p] + 0.587 * data[4 * p + 1] + 0.114 * data[4 * p + 2];
      for (let c = 0; c < channels; c++) bytes[p * channels + c] = channels >= 3 ? data[4 * p + Math.min(c, 2)] : Math.round(grey);
    }
    startDrawing(bytes);
    status("");
  } catch {
    status(`${file.name} cannot be read as an image, choose a PNG or JPEG file`, true);
  }
}

// --- start

/** What the card of a preset says; the strict accuracy if that was measured, or the paper's protocol, which is weaker. */
function told(name, { natural, paper, strict }) {
  const percent = (share) => `${(100 * share).toFixed(1)}%`;
  const found = strict ?? paper, [low, high] = found.interval;
  return `${name}: natural ${percent(natural.accuracy)} of ${natural.of}, robust accuracy ${percent(found.accuracy)} (${percent(low)} to ${percent(high)}) ` +
    `of ${found.of} test images by the ${strict ? "strict suite" : "paper's protocol, an upper bound"}`;
}

const isOffered = (beta) => BETAS.some(([value]) => value === beta) &&
  (!beta.startsWith("infinity-") || Number(beta.slice(9)) <= Math.max(...networks.map((network) => network.probes)));

/** The state in the URL, as far as these networks and images have it. */
function fittingState() {
  const read = readState(location.hash, defaults);
  if (read.target >= labels.length) read.target = null;
  if (!isOffered(read.beta)) read.beta = "0";
  read.label = Math.min(read.label, labels.length - 1);
  read.image = Math.min(read.image, Math.max(stored.images.length - 1, 0));
  if (!isOwn) read.tour = null;
  if (read.pixels && fromText(read.pixels).length !== size()) [read.pixels, read.label] = ["", 0]; // of another network
  $("epsilon").max = Math.max(0.3, read.epsilon);
  return read;
}

function loaded(found, leftOut) {
  networks = found;
  shape = networks[0].shape;
  labels = networks[0].labels;
  const { about } = networks[0];
  if (about.pixels) {
    const bytes = fromText(about.pixels);
    stored.labels = about.labels;
    stored.images = about.labels.map((_, i) => Float32Array.from(bytes.subarray(i * size(), (i + 1) * size()), (byte) => byte / 255));
  }
  defaults = { epsilon: about.epsilon ?? 0.1 };
  state = fittingState();
  const offered = BETAS.filter(([value]) => isOffered(value));
  $("beta").replaceChildren(...offered.map(([value, text]) => element("option", { value }, text)));
  $("label").replaceChildren(...labels.map((text, k) => element("option", { value: k }, text)));
  $("target").replaceChildren(element("option", { value: "" }, "any other class"), ...labels.map((text, k) => element("option", { value: k }, text)));
  $("images").replaceChildren(...stored.images.map((image, i) => {
    const canvas = element("canvas");
    drawImage(canvas, image, shape);
    const button = element("button", { type: "button", title: labels[stored.labels[i]] }, canvas);
    button.setAttribute("aria-label", `Test image ${i + 1}, ${labels[stored.labels[i]]}`);
    button.addEventListener("click", () => change({ image: i, pixels: "" }));
    return button;
  }));
  const shares = networks.flatMap(({ name, about: { measured } }) => (measured?.paper ? [told(name, measured)] : []));
  $("honest").textContent = `These networks are small. ${shares.length ? `${shares.join("; ")}, at ε ${about.epsilon}.` : "Their robust accuracy was not given to this page."}`;
  $("tour-start").hidden = !isOwn;
  document.querySelector("main").inert = false;
  makeViews();
  connectPad();
  measuring(false);
  if (leftOut.length) status(`Left out, with other images or classes than ${networks[0].path}: ${leftOut.join(", ")}`, true);
  else status(stored.images.length ? "" : "These networks came without test images: draw one, or choose a file.");
  document.body.dataset.ready = "yes";
  change({});
}

for (const name of ["kind", "beta", "mask"]) $(name).addEventListener("change", (event) => change({ [name]: event.target.value, ...(name === "kind" ? { step: 20 } : {}) }));
$("target").addEventListener("change", (event) => change({ target: event.target.value === "" ? null : Number(event.target.value) }));
$("label").addEventListener("change", (event) => change({ label: Number(event.target.value) }));
$("epsilon").addEventListener("input", (event) => change({ epsilon: Number(event.target.value) }));
$("step").addEventListener("input", (event) => change({ step: Number(event.target.value) }, false));
const last = () => Number($("step").max);
$("back").addEventListener("click", () => change({ step: Math.max(0, state.step - 1) }, false));
$("forward").addEventListener("click", () => change({ step: Math.min(last(), state.step + 1) }, false));
$("play").addEventListener("click", () => {
  if (playing) { clearInterval(playing); playing = null; $("play").textContent = "Play"; return; }
  $("play").textContent = "Pause";
  change({ step: state.step >= last() ? 0 : state.step }, false);
  playing = setInterval(() => {
    if (state.step >= last()) return $("play").click();
    change({ step: state.step + 1 }, false);
  }, 180);
});
$("draw-clear").addEventListener("click", () => startDrawing(new Uint8Array(size())));
$("file").addEventListener("change", (event) => event.target.files[0] && readFile(event.target.files[0]));
document.addEventListener("dragover", (event) => event.preventDefault());
document.addEventListener("drop", (event) => { event.preventDefault(); if (event.dataTransfer.files[0]) readFile(event.dataTransfer.files[0]); });
$("measure").addEventListener("click", () => measure([{ kind: state.kind, beta: state.beta, mask: state.mask }]));
$("measure-all").addEventListener("click", () => measure(SETTINGS));
$("measure-stop").addEventListener("click", () => { send("stop"); measuring(false); });
$("save").addEventListener("click", () => {
  if (!trajectories.length) return;
  const parts = networks.map((network, index) => {
    const found = softmax(trajectories[index][Math.min(state.step, trajectories[index].length - 1)].heads[0]);
    const order = found.map((share, k) => [labels[k], share]).sort((a, b) => b[1] - a[1]).slice(0, 5);
    return { name: network.name, verdict: views[index].verdict.textContent, images: views[index].canvases, predictions: order };
  });
  const title = `${titled(seen.setting)}, step ${state.step}`;
  element("a", { href: picture(title, parts).toDataURL("image/png"), download: "cifs-playground.png" }).click();
});
const tour = (number) => {
  if (playing) $("play").click();
  if (number == null || number < 0 || number >= TOUR.length) return change({ tour: null }, false);
  const { image, ...rest } = TOUR[number].state;
  change({ ...rest, image: Math.min(image, Math.max(stored.images.length - 1, 0)), tour: number });
  if (TOUR[number].look) $(TOUR[number].look).scrollIntoView({ block: "nearest" });
};
$("tour-start").addEventListener("click", () => tour(0));
$("tour-back").addEventListener("click", () => tour(state.tour - 1));
$("tour-next").addEventListener("click", () => tour(state.tour + 1));
$("tour-end").addEventListener("click", () => tour(null));
addEventListener("hashchange", () => { if (networks.length) { state = fittingState(); showControls(); attackAgain(); } });
addEventListener("resize", () => show());
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => show());

for (const link of $("datasets").querySelectorAll("a")) {
  if (String(new URL(link.href).searchParams.getAll("model")) === String(asked)) link.setAttribute("aria-current", "page");
}

// A link to an equation would take the place of the state in the URL.
document.addEventListener("click", (event) => {
  const link = event.target.closest("a[href='#equations']");
  if (link) { event.preventDefault(); $("equations").scrollIntoView(); }
});

const urls = asked.map((url) => new URL(url, document.baseURI));
if (urls.every((url) => url.origin === location.origin)) {
  status("Loading the networks …");
  send("load", { urls: urls.map((url) => url.href.replace(/\/+$/, "")) });
} else status("A model must lie on the page's own site", true);
