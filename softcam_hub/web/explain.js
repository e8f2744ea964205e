// Explain a picture in the browser: prepare it as the model was trained, run the model, and draw its maps.
//
// - Pictures are resized as Pillow does it, with the same filters and the same rounding to bytes. A canvas would give
//   other numbers.
// - The page asks no other host for anything but the runtime, and not even for that where the runtime lies beside it.

const settings = JSON.parse(document.getElementById("settings").textContent);
const byId = (id) => document.getElementById(id);
const MOST_PIXELS = 50e6, MOST_ASPECT = 20; // as elsewhere in this package

// ---- Pictures ----

const FILTERS = {
  box: { support: 0.5, weight: (x) => (x > -0.5 && x <= 0.5 ? 1 : 0) },
  bilinear: { support: 1, weight: (x) => Math.max(0, 1 - Math.abs(x)) },
  hamming: { support: 1, weight: hamming },
  bicubic: { support: 2, weight: bicubic },
  lanczos: { support: 3, weight: (x) => (x > -3 && x < 3 ? sinc(x) * sinc(x / 3) : 0) },
};

function hamming(value) {
  const x = Math.abs(value);
  if (x === 0) return 1;
  return x >= 1 ? 0 : (Math.sin(x * Math.PI) / (x * Math.PI)) * (0.54 + 0.46 * Math.cos(x * Math.PI));
}

function bicubic(value) {
  const x = Math.abs(value), a = -0.5;
  if (x < 1) return ((a + 2) * x - (a + 3)) * x * x + 1;
  return x < 2 ? (((x - 5) * x + 8) * x - 4) * a : 0;
}

function sinc(x) {
  return x === 0 ? 1 : Math.sin(x * Math.PI) / (x * Math.PI);
}

// Weights of the pixels of a row that make up each of `size` new pixels, as whole numbers of 22 binary digits.
function resamplingWeights(length, size, name) {
  const scale = length / size;
  if (name === "nearest") {
    return Array.from({ length: size }, (_, i) => ({ first: Math.floor((i + 0.5) * scale), weights: [2 ** 22] }));
  }
  const { support, weight } = FILTERS[name], stretch = Math.max(scale, 1);
  return Array.from({ length: size }, (_, i) => {
    const centre = (i + 0.5) * scale;
    const first = Math.max(0, Math.trunc(centre - support * stretch + 0.5));
    const end = Math.min(length, Math.trunc(centre + support * stretch + 0.5));
    const raw = Array.from({ length: end - first }, (_, j) => weight((j + first - centre + 0.5) / stretch));
    const sum = raw.reduce((a, b) => a + b, 0);
    return { first, weights: raw.map((w) => Math.trunc((w / sum) * 2 ** 22 + (w < 0 ? -0.5 : 0.5))) };
  });
}

// Resize planes of bytes along one axis. `stride` is the distance of neighbours along it.
function resample(source, target, weights, stride, starts, newStarts, newStride) {
  for (let line = 0; line < starts.length; line++) {
    for (let i = 0; i < weights.length; i++) {
      let sum = 2 ** 21, at = starts[line] + weights[i].first * stride;
      for (const weight of weights[i].weights) {
        sum += source[at] * weight;
        at += stride;
      }
      target[newStarts[line] + i * newStride] = Math.min(255, Math.max(0, Math.floor(sum / 2 ** 22)));
    }
  }
}

// Resize an image {width, height, data}, three bytes per pixel.
function resize(image, width, height) {
  let { data } = image;
  if (width !== image.width) {
    const weights = resamplingWeights(image.width, width, settings.interpolation);
    const rows = new Uint8ClampedArray(width * image.height * 3), starts = [], newStarts = [];
    for (let y = 0; y < image.height; y++) for (let c = 0; c < 3; c++) {
      starts.push(y * image.width * 3 + c);
      newStarts.push(y * width * 3 + c);
    }
    resample(data, rows, weights, 3, starts, newStarts, 3);
    data = rows;
  }
  if (height !== image.height) {
    const weights = resamplingWeights(image.height, height, settings.interpolation);
    const columns = new Uint8ClampedArray(width * height * 3), starts = [];
    for (let x = 0; x < 3 * width; x++) starts.push(x);
    resample(data, columns, weights, 3 * width, starts, starts, 3 * width);
    data = columns;
  }
  return { width, height, data };
}

// Round halves to the even number, as Python does.
function roundHalfEven(x) {
  const floor = Math.floor(x);
  return x - floor === 0.5 ? floor + (floor % 2) : Math.round(x);
}

function crop(image, width, height) {
  const left = roundHalfEven((image.width - width) / 2), top = roundHalfEven((image.height - height) / 2);
  const data = new Uint8ClampedArray(width * height * 3);
  for (let y = 0; y < height; y++) {
    const start = ((y + top) * image.width + left) * 3;
    data.set(image.data.subarray(start, start + width * 3), y * width * 3);
  }
  return { width, height, data };
}

// Resize and crop an image as the model was trained.
function prepare(image) {
  const [width, height] = [settings.width, settings.height];
  const [wide, high] = [Math.floor(width / settings.crop_pct), Math.floor(height / settings.crop_pct)];
  if (settings.crop_mode === "squash") return crop(resize(image, wide, high), width, height);
  const shortest = Math.min(image.width, image.height); // `wide` and `high` are equal
  const resized = [image.width, image.height].map((side) => Math.trunc((wide * side) / shortest));
  return crop(resize(image, ...resized), width, height);
}

// Decode a file, upright and on white, without its colour profile: so the model was trained.
async function decode(file) {
  let bitmap;
  try {
    bitmap = await createImageBitmap(file, { colorSpaceConversion: "none", imageOrientation: "from-image" });
  } catch {
    throw new Error(`${file.name || "This file"} is not a picture that this browser can read: choose a PNG, JPEG or WebP file.`);
  }
  const { width, height } = bitmap, name = file.name || "The picture";
  if (Math.max(width, height) > MOST_ASPECT * Math.min(width, height)) {
    throw new Error(`${name} has ${width} × ${height} pixels, and the longer side may be at most ${MOST_ASPECT} times the shorter one: crop it.`);
  }
  if (width * height > MOST_PIXELS) {
    throw new Error(`${name} has ${Math.round((width * height) / 1e6)} million pixels, more than this page can hold: make it smaller.`);
  }
  // In strips, as the canvas of a phone holds less than its camera
  const data = new Uint8ClampedArray(width * height * 3), strip = Math.min(height, Math.max(1, Math.floor(4e6 / width)));
  const context = new OffscreenCanvas(width, strip).getContext("2d", { willReadFrequently: true });
  if (!context) throw new Error(`${name} is too large for this browser: make it smaller.`);
  for (let top = 0; top < height; top += strip) {
    const rows = Math.min(strip, height - top), start = top * width;
    context.fillStyle = "white";
    context.fillRect(0, 0, width, strip);
    context.drawImage(bitmap, 0, -top);
    const pixels = context.getImageData(0, 0, width, rows).data;
    for (let i = 0; i < rows * width; i++) for (let c = 0; c < 3; c++) data[3 * (start + i) + c] = pixels[4 * i + c];
  }
  bitmap.close();
  return { width, height, data };
}

// Turn bytes into what the model takes: channel by channel, normalised.
function normalise(image) {
  const { channels, mean, std } = settings, count = image.width * image.height;
  const values = new Float32Array(channels * count);
  for (let i = 0; i < count; i++) {
    const [red, green, blue] = image.data.subarray(3 * i, 3 * i + 3);
    // Pillow's grey value
    const levels = channels === 3 ? [red, green, blue] : [(red * 19595 + green * 38470 + blue * 7471 + 32768) >> 16];
    levels.forEach((level, c) => { values[c * count + i] = (level / 255 - mean[c]) / std[c]; });
  }
  return values;
}

// ---- Prediction ----

// Math.max takes as many numbers as a call may have arguments, and large maps have more.
function largestOf(values) {
  return values.reduce((a, b) => Math.max(a, b), -Infinity);
}

function probabilitiesOf(logits) {
  if (settings.multi_label) return logits.map((x) => 1 / (1 + Math.exp(-x)));
  const largest = largestOf(logits), powers = logits.map((x) => Math.exp(x - largest));
  const sum = powers.reduce((a, b) => a + b, 0);
  return powers.map((x) => x / sum);
}

function percent(value) {
  const digits = 100 * value;
  if (!value || digits.toFixed(1) !== "0.0") return `${digits.toFixed(1)}%`;
  return digits < 1e-4 ? "<0.0001%" : `${Number(digits.toPrecision(1))}%`;
}

let session, runtime;

async function load() {
  runtime = await import(settings.runtime);
  runtime.env.wasm.numThreads = 1; // more need headers that few servers send
  runtime.env.wasm.wasmPaths = new URL(".", new URL(settings.runtime, location.href)).href;
  session = await runtime.InferenceSession.create(new URL("model.onnx", location.href).href, { executionProviders: ["wasm"] });
}

// Explain a picture: its most probable classes, each with its probability and its map.
async function explain(file) {
  const image = prepare(await decode(file));
  const began = performance.now();
  const shape = [1, settings.channels, settings.height, settings.width];
  const output = await session.run({ pixel_values: new runtime.Tensor("float32", normalise(image), shape) });
  const [, , rows, columns] = output.maps.dims, cells = rows * columns;
  const logits = Array.from(output.logits.data);
  if (logits.some(Number.isNaN)) throw new Error("The model gives no numbers for this picture.");
  const probabilities = probabilitiesOf(logits);
  const order = logits.map((_, i) => i).sort((a, b) => logits[b] - logits[a]).slice(0, settings.shown);
  const classes = order.map((index) => ({
    label: settings.labels[index],
    logit: logits[index],
    probability: probabilities[index],
    map: Array.from(output.maps.data.subarray(index * cells, (index + 1) * cells)),
  }));
  return { file: file.name, image, rows, columns, classes, milliseconds: performance.now() - began };
}

// ---- Drawing ----

function colourOf(value) {
  const { colours, signed } = settings;
  const place = (signed ? value / 2 + 0.5 : value) * (colours.length - 1);
  const low = Math.min(Math.floor(place), colours.length - 2), share = place - low;
  return colours[low].map((level, c) => level + share * (colours[low + 1][c] - level));
}

function limitOf(classes) {
  return largestOf(classes.flatMap(({ map }) => map.map((x) => (settings.signed ? Math.abs(x) : Math.max(0, x)))));
}

// Index between the cells at which a pixel lies along an axis; the cells lie where the network looks.
function placeOf(pixel, pixels, side, [start, step], count) {
  return Math.min(count - 1, Math.max(0, (((pixel + 0.5) * side) / pixels - start) / step));
}

// Cells above the threshold, and what they carry.
function regionsOf({ map, probability }, threshold) {
  const values = settings.signed ? map.map((x) => Math.max(0, x)) : map;
  const largest = largestOf(values), inside = values.map((x) => x > threshold * largest);
  const total = values.reduce((a, b) => a + b, 0);
  const share = total ? values.reduce((sum, x, i) => sum + (inside[i] ? x : 0), 0) / total : 0;
  const count = inside.filter(Boolean).length, what = settings.adds_up ? `this class's ${percent(probability)}` : "the evidence for this class";
  return { inside, sentence: `${count} of ${map.length} locations carry ${percent(share)} of ${what}` };
}

function draw(canvas, { image, rows, columns }, one, limit, threshold) {
  const scale = Math.max(1, Math.ceil(320 / image.width)), width = image.width * scale, height = image.height * scale;
  const { inside, sentence } = regionsOf(one, threshold), picture = new ImageData(width, height);
  const least = settings.signed ? 0 : Math.max(0, -largestOf(one.map.map((x) => -x))) / (limit || 1);
  for (let y = 0; y < height; y++) {
    const row = placeOf(y, height, image.height, settings.grid.rows, rows);
    for (let x = 0; x < width; x++) {
      const column = placeOf(x, width, image.width, settings.grid.columns, columns);
      const strength = limit ? interpolate(one.map, columns, row, column) / limit : 0;
      const nearest = Math.round(row) * columns + Math.round(column);
      const pixel = 3 * (Math.floor(y / scale) * image.width + Math.floor(x / scale));
      let grey = 0.299 * image.data[pixel] + 0.587 * image.data[pixel + 1] + 0.114 * image.data[pixel + 2];
      if (settings.signed) grey = 150 + (grey * 105) / 255;
      const shown = inside[nearest] || (settings.signed && one.map[nearest] < 0);
      const value = Math.min(1, Math.max(settings.signed ? -1 : 0, strength)), size = Math.abs(value);
      const opacity = shown && size ? 0.75 * Math.sqrt(size) * (0.4 + 0.6 * (1 - least / size)) : 0;
      const colour = colourOf(value), at = 4 * (y * width + x);
      for (let c = 0; c < 3; c++) picture.data[at + c] = (1 - opacity) * grey + opacity * colour[c];
      picture.data[at + 3] = 255;
    }
  }
  canvas.width = width;
  canvas.height = height;
  canvas.getContext("2d").putImageData(picture, 0, 0);
  return sentence;
}

function interpolate(map, columns, row, column) {
  const top = Math.floor(row), left = Math.floor(column), down = row - top, right = column - left;
  const at = (r, c) => map[r * columns + c];
  const below = down ? top + 1 : top, beside = right ? left + 1 : left;
  return (1 - down) * ((1 - right) * at(top, left) + right * at(top, beside))
    + down * ((1 - right) * at(below, left) + right * at(below, beside));
}

function write(value) {
  return settings.adds_up ? `${Number((100 * value).toPrecision(3))}%` : `${Number(value.toPrecision(3))}`;
}

let shown;

function show(result) {
  shown = result;
  const threshold = Number(byId("threshold").value), limit = limitOf(result.classes), tiles = byId("tiles");
  byId("level").textContent = percent(threshold);
  tiles.replaceChildren(...result.classes.map((one) => {
    const figure = document.createElement("figure"), canvas = document.createElement("canvas");
    const caption = document.createElement("figcaption"), name = document.createElement("strong");
    const sentence = draw(canvas, result, one, limit, threshold);
    const logit = settings.averages ? `, logit ${one.logit >= 0 ? "+" : ""}${one.logit.toFixed(2)}` : "";
    canvas.setAttribute("role", "img");
    canvas.setAttribute("aria-label", `Map of ${one.label}`);
    name.textContent = one.label;
    caption.append(name, document.createElement("br"), `${percent(one.probability)}${logit}`, document.createElement("br"), sentence);
    figure.append(canvas, caption);
    return figure;
  }));
  const low = settings.signed ? -limit : 0;
  byId("scale").style.background = `linear-gradient(90deg, ${settings.colours.map((c) => `rgb(${c})`).join(", ")})`;
  byId("scale").setAttribute("aria-label", `Colours from ${write(low)} to ${write(limit)}`);
  byId("ticks").replaceChildren(...[low, (low + limit) / 2, limit].map((value) => {
    const tick = document.createElement("span");
    tick.textContent = write(value);
    return tick;
  }));
  byId("meaning").textContent = settings.meaning;
  byId("shared").hidden = result.classes.length === 1;
  byId("time").textContent = `${result.file ? `${result.file}: ` : ""}${Math.round(result.milliseconds)} ms in the model.`;
  byId("result").hidden = false;
}

// ---- Page ----

function warn(sentence) {
  byId("notice").textContent = sentence;
  byId("notice").hidden = false;
}

function fail(error) {
  byId("status").textContent = "";
  warn(error instanceof Error ? error.message : String(error));
}

let latest = 0, queue;

async function take(file) {
  if (!file) return;
  const turn = ++latest;
  byId("notice").hidden = true;
  byId("result").hidden = true;
  byId("status").textContent = session ? "The picture is being explained." : "The picture is explained when the model is loaded.";
  try {
    await queue;
    if (turn !== latest) return; // another picture was chosen meanwhile
    const result = await explain(file);
    if (turn !== latest) return;
    const [first] = result.classes;
    byId("status").textContent = `The most probable class is ${first.label}, with ${percent(first.probability)}.`;
    show(result);
  } catch (error) {
    if (turn === latest) fail(error);
  }
}

// Explain the first picture that was dropped or pasted, or its first file, of which `take` says that it is no picture.
function takeFrom(transfer, remedy) {
  const files = [...transfer.files], file = files.find(({ type }) => type.startsWith("image/")) || files[0];
  if (file) take(file);
  else warn(remedy);
}

const highlight = (on) => byId("drop").classList.toggle("over", on);
byId("threshold").value = settings.threshold;
byId("threshold").addEventListener("input", () => shown && show(shown));
byId("file").addEventListener("change", (event) => { take(event.target.files[0]); event.target.value = ""; });
// The whole page takes what is dropped: beside the field, the browser would leave the page and show the picture.
document.addEventListener("dragover", (event) => { event.preventDefault(); highlight(true); });
document.addEventListener("dragleave", (event) => { if (!event.relatedTarget) highlight(false); });
document.addEventListener("drop", (event) => {
  event.preventDefault();
  highlight(false);
  takeFrom(event.dataTransfer, "This was no file: drop a picture that lies on this device.");
});
document.addEventListener("paste", (event) => {
  takeFrom(event.clipboardData, "The clipboard holds no picture: copy a picture, and not its address.");
});

queue = load().then(
  () => { if (!latest) byId("status").textContent = "The model is ready."; },
  (error) => { throw new Error(`The model cannot be loaded: ${error.message || error}`); },
);
queue.catch(fail);

window.explainFile = explain; // for tests, and for pages that embed this one
