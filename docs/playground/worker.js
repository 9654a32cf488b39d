// All computation: networks are loaded and attacked here, so that the page never waits.

import * as ort from "./vendor/ort.wasm.min.mjs";
import { STEPS, argmax, attack, headsOf, losses, margin } from "./attacks.js";

ort.env.wasm.numThreads = 1; // more would need headers that a static page does not have
ort.env.wasm.wasmPaths = new URL("./vendor/", import.meta.url).href;

const SHARES = { detached: [0, 0], full: [1, 0], smoothed: [1, 1] };
const networks = [];
const current = { attack: 0, measure: 0 }; // number of the newest request of each kind: older ones stop

async function fetched(url, kind) {
  const answer = await fetch(url);
  if (!answer.ok) throw new Error(`${url} cannot be read (${answer.status})`);
  return kind === "json" ? answer.json() : new Uint8Array(await answer.arrayBuffer());
}

async function load(url) {
  const [bytes, labels] = await Promise.all([
    fetched(`${url}/heads_and_gradient.onnx`, "bytes"), fetched(`${url}/labels.json`, "json"),
  ]);
  // Any exported version can be looked at; what it lacks is left out.
  const about = await fetched(`${url}/playground.json`, "json").catch(() => ({}));
  const session = await ort.InferenceSession.create(bytes, { executionProviders: ["wasm"] });
  const shapeOf = (name) => session.inputMetadata.find((each) => each.name === name).shape;
  const shape = shapeOf("image").slice(1).map(Number);
  const numHeads = Number(shapeOf("head_weights")[0]);
  const classes = labels.length;
  const layers = session.outputNames.filter((name) => name.startsWith("importance_")).map((name) => name.slice(11));
  const size = shape.reduce((a, b) => a * b, 1);

  async function run(n, pixels, label, weights, upstream, mask) {
    const feeds = {
      image: new ort.Tensor("float32", pixels.slice(0, n * size), [n, ...shape]),
      label: new ort.Tensor("int32", Int32Array.from(label), [n]),
      head_weights: new ort.Tensor("float32", weights, [numHeads]),
      upstream: new ort.Tensor("float32", upstream ?? new Float32Array(n * numHeads * classes), [n, numHeads, classes]),
    };
    if (session.inputNames.includes("mask_gradient")) {
      feeds.mask_gradient = new ort.Tensor("float32", Float32Array.from(SHARES[mask]), [2]);
    }
    const outputs = await session.run(feeds);
    return Object.fromEntries(Object.entries(outputs).map(([name, tensor]) => [name, tensor.data]));
  }

  const path = url.split("/").slice(-2).join("/");
  return { name: about.name ?? url.split("/").pop(), path, about, labels, shape, numHeads, probes: numHeads - 1, classes, layers, run };
}

/** What the page shows of a step: plain arrays. */
function shown(network, x, answer, label, setting) {
  const heads = headsOf(network, answer, 0).map((logits) => Array.from(logits));
  const layers = network.layers.map((name) => ({
    name, relevance: Array.from(answer[`relevance_${name}`]), importance: Array.from(answer[`importance_${name}`]),
  }));
  const [loss] = losses(network, answer, 1, [label], setting);
  return { x: Float32Array.from(x), heads, layers, loss, margin: margin(heads[0], label) };
}

// A message of the page can only come in between, not during, the computations.
const breathe = () => new Promise((resolve) => setTimeout(resolve));

async function attackOne(id, { pixels, label, setting }) {
  current.attack = id;
  for (const [index, network] of networks.entries()) {
    const steps = [];
    let query = 0, last = performance.now();
    for await (const { x, answer } of attack(network, 1, pixels, [label], setting)) {
      // Of Square, every fifteenth query is a step of the page.
      if (setting.kind !== "square" || query % 15 === 0 || query === STEPS.square) {
        steps.push(shown(network, x, answer, label, setting));
      }
      query += 1;
      if (performance.now() - last > 30) {
        await breathe();
        last = performance.now();
        if (current.attack !== id) return;
      }
    }
    postMessage({ id, type: "attacked", index, steps });
    await breathe();
    if (current.attack !== id) return;
  }
  postMessage({ id, type: "attack-done" });
}

const AT_ONCE = 10;

async function measure(id, { images, labels, settings }) {
  current.measure = id;
  const size = images.length / labels.length;
  const total = settings.length * networks.length * labels.length;
  let done = 0;
  for (const [row, setting] of settings.entries()) {
    const rightOf = [];
    for (const network of networks) {
      const right = [];
      for (let start = 0; start < labels.length; start += AT_ONCE) {
        const some = labels.slice(start, start + AT_ONCE);
        const pixels = images.slice(start * size, (start + some.length) * size);
        const stands = some.map(() => true);
        for await (const { answer } of attack(network, some.length, pixels, some, { ...setting, target: null })) {
          some.forEach((label, i) => { stands[i] &&= argmax(headsOf(network, answer, i)[0]) === label; });
          await breathe();
          if (current.measure !== id) return;
          if (!stands.some(Boolean)) break;
        }
        right.push(...stands);
        done += some.length;
        postMessage({ id, type: "progress", share: done / total });
      }
      rightOf.push(right);
    }
    postMessage({ id, type: "measured", row, setting, rightOf });
  }
  postMessage({ id, type: "measure-done" });
}

onmessage = async ({ data }) => {
  const { id, type } = data;
  try {
    if (type === "load") {
      const all = [];
      for (const url of data.urls) all.push(await load(url));
      // Side by side stand networks of the same images and classes.
      const fits = ({ shape, labels }) => String([shape, labels]) === String([all[0].shape, all[0].labels]);
      networks.push(...all.filter(fits));
      const leftOut = all.filter((network) => !fits(network)).map(({ path }) => path);
      postMessage({ id, type: "loaded", networks: networks.map(({ run, ...rest }) => rest), leftOut });
    } else if (type === "attack") await attackOne(id, data);
    else if (type === "measure") await measure(id, data);
    else if (type === "stop") current.measure = id;
  } catch (error) {
    postMessage({ id, type: "error", message: String(error.message ?? error) });
  }
};
