// The attacks of cifs_tf.attacks, on a network that answers with heads and the gradient to its images.
// A batch is {n, pixels: Float32Array}; float32 is rounded where TensorFlow rounds, so that images agree with Python's.

export const KAPPA = 50;
export const STEPS = { fgsm: 1, pgd: 20, cw: 20, square: 300 };
const PGD_STEP = 0.1; // share of epsilon

/** Weights of the heads in Eq. 3: beta is a number, "infinity" or "infinity-i". */
export function headWeights(beta, probes) {
  const weights = new Float32Array(1 + probes);
  const text = String(beta);
  if (!probes) weights[0] = 1;
  else if (text === "infinity") weights.fill(1 / probes, 1);
  else if (text.startsWith("infinity-")) weights[Math.min(Number(text.slice(9)), probes)] = 1;
  else {
    const value = Number(text);
    weights[0] = 1 / (1 + value);
    weights.fill((1 - 1 / (1 + value)) / probes, 1);
  }
  return weights;
}

/** Heads of image i: an array for each head. */
export function headsOf(network, answer, i) {
  const { numHeads, classes } = network;
  return Array.from({ length: numHeads }, (_, h) => {
    const start = (i * numHeads + h) * classes;
    return answer.heads.subarray(start, start + classes);
  });
}

export function argmax(values, except = -1) {
  let best = -1;
  values.forEach((value, k) => { if (k !== except && (best < 0 || value > values[best])) best = k; });
  return best;
}

export function softmax(logits) {
  const top = Math.max(...logits);
  const raised = Array.from(logits, (value) => Math.exp(value - top));
  const sum = raised.reduce((a, b) => a + b, 0);
  return raised.map((value) => value / sum);
}

/** Lead of a class over the best other one. */
export const margin = (logits, label) => logits[label] - logits[argmax(logits, label)];

/** What the attacker raises, of each image: the weighted loss of the heads. */
export function losses(network, answer, n, labels, setting) {
  const weights = headWeights(setting.beta, network.probes);
  return Array.from({ length: n }, (_, i) => headsOf(network, answer, i).reduce((sum, logits, h) => {
    const aim = setting.target ?? labels[i];
    let loss;
    if (setting.kind === "pgd" || setting.kind === "fgsm") loss = -Math.log(softmax(logits)[aim]) * (setting.target == null ? 1 : -1);
    else if (setting.target == null) loss = -margin(logits, labels[i]);
    else loss = logits[aim] - logits[labels[i]];
    return sum + weights[h] * loss;
  }, 0));
}

/** The gradient of the attacker's loss, and the heads there. */
async function climb(network, n, pixels, labels, setting) {
  const weights = headWeights(setting.beta, network.probes);
  const { numHeads, classes } = network;
  const aims = setting.target == null ? labels : labels.map(() => setting.target);
  if (setting.kind !== "cw") {
    const answer = await network.run(n, pixels, aims, weights, null, setting.mask);
    return { answer, sign: setting.target == null ? 1 : -1 };
  }
  const silent = new Float32Array(numHeads);
  const before = await network.run(n, pixels, labels, silent, null, setting.mask);
  const upstream = new Float32Array(n * numHeads * classes);
  for (let i = 0; i < n; i++) {
    headsOf(network, before, i).forEach((logits, h) => {
      const start = (i * numHeads + h) * classes;
      const rival = setting.target ?? argmax(logits, labels[i]);
      if (setting.target == null && margin(logits, labels[i]) + KAPPA <= 0) return;
      upstream[start + labels[i]] -= weights[h];
      upstream[start + rival] += weights[h];
    });
  }
  return { answer: await network.run(n, pixels, labels, silent, upstream, setting.mask), sign: 1 };
}

/** Bring pixels into the ball around the images and into [0, 1], in place. */
function project(pixels, images, epsilon) {
  for (let p = 0; p < pixels.length; p++) {
    const low = Math.max(Math.fround(images[p] - epsilon), 0);
    const high = Math.min(Math.fround(images[p] + epsilon), 1);
    pixels[p] = Math.min(Math.max(pixels[p], low), high);
  }
}

/** The iterates of an attack on a batch, with the network's answer at each: an async generator of {x, answer}. */
export async function* attack(network, n, images, labels, setting) {
  const epsilon = Math.fround(setting.epsilon);
  if (setting.kind === "square") yield* square(network, n, images, labels, setting, epsilon);
  else {
    const steps = STEPS[setting.kind];
    const size = setting.kind === "fgsm" ? epsilon : Math.fround(setting.epsilon * PGD_STEP);
    let x = Float32Array.from(images);
    for (let step = 0; step <= steps; step++) {
      const { answer, sign } = await climb(network, n, x, labels, setting);
      yield { x, answer };
      if (step === steps) return;
      const next = new Float32Array(x.length);
      for (let p = 0; p < x.length; p++) {
        next[p] = x[p] + sign * size * Math.sign(answer.gradient[p]);
      }
      project(next, images, epsilon);
      x = next;
    }
  }
}

/** A small generator of random numbers in [0, 1): mulberry32. */
function random(seed) {
  let state = seed >>> 0;
  return () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let t = state;
    t = Math.imul(t ^ (t >>> 15), t | 1);
    t ^= t + Math.imul(t ^ (t >>> 7), t | 61);
    return ((t ^ (t >>> 14)) >>> 0) / 4294967296;
  };
}

const HALVINGS = [10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000];

/** Square: windows of +-2 epsilon, kept where the lead of the label shrinks. */
async function* square(network, n, images, labels, setting, epsilon) {
  const [height, width, channels] = network.shape;
  const size = height * width * channels;
  const draw = random(1);
  const weights = new Float32Array(network.numHeads);
  const ask = (pixels) => network.run(n, pixels, labels, weights, null, setting.mask);
  let answer = await ask(images);
  yield { x: Float32Array.from(images), answer };
  const wrong = (found, i) => {
    const predicted = argmax(headsOf(network, found, i)[0]);
    return setting.target == null ? predicted !== labels[i] : predicted === setting.target;
  };
  let x = Float32Array.from(images);
  for (let i = 0; i < n; i++) {
    if (wrong(answer, i)) continue;
    for (let column = 0; column < width; column++) {
      for (let c = 0; c < channels; c++) {
        const sign = draw() < 0.5 ? -1 : 1;
        for (let row = 0; row < height; row++) x[i * size + (row * width + column) * channels + c] += sign * epsilon;
      }
    }
  }
  project(x, images, epsilon);
  answer = await ask(x);
  yield { x: Float32Array.from(x), answer };
  let loss = losses(network, answer, n, labels, setting);
  for (let query = 1; query < STEPS.square; query++) {
    const halvings = HALVINGS.filter((limit) => query > limit).length;
    const side = Math.max(1, Math.min(height, width, Math.round(Math.sqrt((0.8 / 2 ** halvings) * height * width))));
    const candidate = Float32Array.from(x);
    for (let i = 0; i < n; i++) {
      if (wrong(answer, i)) continue;
      const top = Math.floor(draw() * (height - side + 1)), left = Math.floor(draw() * (width - side + 1));
      for (let c = 0; c < channels; c++) {
        const shift = (draw() < 0.5 ? -2 : 2) * epsilon;
        for (let row = top; row < top + side; row++) {
          for (let column = left; column < left + side; column++) {
            candidate[i * size + (row * width + column) * channels + c] += shift;
          }
        }
      }
    }
    project(candidate, images, epsilon);
    const found = await ask(candidate);
    const next = losses(network, found, n, labels, setting);
    const accepted = next.map((value, i) => !wrong(answer, i) && (value > loss[i] || wrong(found, i)));
    if (accepted.some(Boolean)) {
      x = Float32Array.from(x);
      accepted.forEach((yes, i) => { if (yes) x.set(candidate.subarray(i * size, (i + 1) * size), i * size); });
      answer = n === 1 ? found : await ask(x);
      loss = losses(network, answer, n, labels, setting);
    }
    yield { x, answer };
  }
}
