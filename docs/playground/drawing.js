// What is drawn: images, bars of channels, curves.

const SVG = "http://www.w3.org/2000/svg";

export function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (key in made && key !== "role") made[key] = value;
    else made.setAttribute(key, value);
  }
  made.append(...children);
  return made;
}

/** Draw pixels in [0, 1], channels last, on a canvas of their own size. */
export function drawImage(canvas, pixels, [height, width, channels]) {
  canvas.width = width;
  canvas.height = height;
  const data = new ImageData(width, height);
  for (let p = 0; p < width * height; p++) {
    for (let c = 0; c < 3; c++) {
      data.data[4 * p + c] = Math.round(255 * Math.min(1, Math.max(0, pixels[p * channels + (channels >= 3 ? c : 0)])));
    }
    data.data[4 * p + 3] = 255;
  }
  canvas.getContext("2d").putImageData(data, 0, 0);
}

/** The perturbation, magnified: grey is no change, white +epsilon, black -epsilon. */
export const magnified = (x, image, epsilon) => Float32Array.from(x, (value, p) => 0.5 + (value - image[p]) / (2 * (epsilon || 1)));

const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

/** Importance of each channel as a bar, suppressed ones grey, that of the natural image as a line; relevance below. */
export function drawChannels(canvas, layer, natural, own) {
  const ratio = window.devicePixelRatio || 1;
  const width = canvas.clientWidth || 300, height = canvas.clientHeight || 84;
  canvas.width = width * ratio;
  canvas.height = height * ratio;
  const context = canvas.getContext("2d");
  context.scale(ratio, ratio);
  context.fillStyle = colour("--back");
  context.fillRect(0, 0, width, height);
  const count = layer.importance.length, step = width / count, bar = Math.max(1, step - 1);
  const split = height * 0.6, rest = height - split - 2;
  const top = Math.max(...natural.importance.map(Math.abs), ...layer.importance.map(Math.abs), 1e-9);
  const reach = Math.max(...natural.relevance.map(Math.abs), ...layer.relevance.map(Math.abs), 1e-9);
  const low = suppressedLimit(layer.importance);
  layer.importance.forEach((value, c) => {
    context.fillStyle = Math.abs(value) < low ? colour("--low") : colour(own);
    const length = (Math.abs(value) / top) * (split - 3);
    context.fillRect(c * step, split - length, bar, length);
    context.fillStyle = colour("--text");
    context.fillRect(c * step, split - (Math.abs(natural.importance[c]) / top) * (split - 3), bar, 1);
    context.fillStyle = layer.relevance[c] < 0 ? colour("--bad") : colour("--good");
    const way = (layer.relevance[c] / reach) * (rest / 2);
    context.fillRect(c * step, split + 2 + rest / 2 - Math.max(way, 0), bar, Math.max(1, Math.abs(way)));
  });
}

export const suppressedLimit = (importance) => importance.reduce((a, b) => a + Math.abs(b), 0) / importance.length / 2;

/** Curves over steps, with a line at the step shown. */
export function drawCurves(svg, curves, step, zero) {
  const values = curves.flatMap((curve) => curve.values).filter(Number.isFinite);
  svg.replaceChildren();
  if (!values.length) return;
  let low = Math.min(...values), high = Math.max(...values);
  if (zero) { low = Math.min(low, 0); high = Math.max(high, 0); }
  if (high - low < 1e-9) high = low + 1;
  const count = Math.max(...curves.map((curve) => curve.values.length)) - 1;
  const x = (i) => 40 + (270 * i) / Math.max(count, 1), y = (value) => 130 - (115 * (value - low)) / (high - low);
  const add = (name, attributes, text) => {
    const made = document.createElementNS(SVG, name);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    if (text != null) made.textContent = text;
    svg.append(made);
  };
  for (const value of new Set([low, high, ...(zero ? [0] : [])])) {
    add("line", { x1: 40, x2: 310, y1: y(value), y2: y(value), stroke: "var(--line)" });
    // Where another number stands, a line is enough.
    if (!value && [low, high].some((end) => end && Math.abs(y(end) - y(0)) < 11)) continue;
    add("text", { x: 36, y: y(value) + 4, "text-anchor": "end" }, value && Math.abs(value) < 0.1 ? value.toExponential(0) : value.toFixed(Math.abs(value) < 10 ? 1 : 0));
  }
  add("text", { x: 40, y: 145 }, "0");
  add("text", { x: 310, y: 145, "text-anchor": "end" }, `step ${count}`);
  add("line", { x1: x(step), x2: x(step), y1: 12, y2: 132, stroke: "var(--soft)", "stroke-dasharray": "2 3" });
  curves.forEach((curve, index) => {
    add("polyline", {
      points: curve.values.map((value, i) => `${x(i)},${y(value)}`).join(" "), fill: "none", "stroke-width": 2,
      stroke: `var(${curve.colour})`, "stroke-dasharray": index ? "6 3" : "none",
    });
    add("text", { x: 48 + 90 * index, y: 11, style: `fill: var(${curve.colour}); font-weight: 600` }, `${index ? "- -" : "—"} ${curve.name}`);
  });
}

/** The state as a picture: images, predictions and words of each network. */
export function picture(title, networks) {
  const canvas = element("canvas", { width: 760, height: 60 + 210 * networks.length });
  const context = canvas.getContext("2d");
  context.fillStyle = "#ffffff";
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.fillStyle = "#1b1f24";
  context.font = "16px system-ui, sans-serif";
  context.fillText(title, 16, 30);
  context.imageSmoothingEnabled = false;
  context.font = "13px system-ui, sans-serif";
  const widths = networks.flatMap(({ predictions }) => predictions.map(([label]) => context.measureText(label).width));
  const names = Math.min(Math.max(...widths) + 10, 130), bar = 180 - names;
  networks.forEach(({ name, verdict, images, predictions }, row) => {
    const top = 52 + 210 * row;
    context.font = "bold 15px system-ui, sans-serif";
    context.fillText(`${name}: ${verdict}`, 16, top + 14);
    images.forEach((image, column) => context.drawImage(image, 16 + 160 * column, top + 26, 150, 150));
    context.font = "13px system-ui, sans-serif";
    predictions.forEach(([label, share], line) => {
      context.fillText(`${label}`, 504, top + 44 + 26 * line, names - 10);
      context.fillStyle = "#0072b2";
      context.fillRect(504 + names, top + 34 + 26 * line, bar * share, 12);
      context.fillStyle = "#1b1f24";
      context.fillText(`${(100 * share).toFixed(1)}%`, 690, top + 44 + 26 * line);
    });
  });
  return canvas;
}
