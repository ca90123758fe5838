// What a person does with the page: draws, gives an image, looks at the answer.
"use strict";

const find = (id) => document.getElementById(id);
const graph = JSON.parse(find("graph").textContent);
const [rows, columns, channels] = graph.input;

function decode(text) {
  const binary = atob(text), bytes = new Uint8Array(binary.length);
  for (let i = 0; i < bytes.length; i++) bytes[i] = binary.charCodeAt(i);
  return bytes;
}

// The network, in a thread of its own where the browser allows that in a file: pixels, Uint8Array
// [H, W, C] -> a promise of {logits, probabilities, maps, ms}.
const classify = (() => {
  const bytes = decode(find("weights").textContent).buffer;
  let network = null, worker = null;
  const waiting = new Map();
  const here = (pixels) => {
    network = network || makeNetwork(graph, bytes);
    const start = performance.now(), found = network(pixels);
    return {...found, ms: performance.now() - start};
  };
  try {
    const glue = `
      let network;
      onmessage = ({data}) => {
        if (data.graph) { network = makeNetwork(data.graph, data.bytes); return; }
        const start = performance.now(), found = network(data.pixels);
        postMessage({id: data.id, ...found, ms: performance.now() - start});
      };`;
    const url = URL.createObjectURL(new Blob([find("code").textContent, glue], {type: "text/javascript"}));
    worker = new Worker(url);
    worker.onmessage = ({data}) => { waiting.get(data.id).resolve(data); waiting.delete(data.id); };
    worker.onerror = () => {  // not allowed here: what waits is computed without it
      worker = null;
      for (const {pixels, resolve} of waiting.values()) resolve(here(pixels));
      waiting.clear();
    };
    worker.postMessage({graph, bytes});
  } catch { worker = null; }
  let last = 0;
  return async (pixels) => {
    const found = await new Promise((resolve) => {
      if (!worker) { setTimeout(() => resolve(here(pixels))); return; }
      const id = ++last;
      waiting.set(id, {pixels, resolve});
      worker.postMessage({id, pixels});
    });
    return {logits: found.output, probabilities: softmax(found.output), maps: found.maps, ms: found.ms};
  };
})();

// One logit is the second class's of two.
function softmax(logits) {
  const all = logits.length === 1 && graph.classes.length === 2 ? [0, logits[0]] : Array.from(logits);
  const most = Math.max(...all), powers = all.map((x) => Math.exp(x - most));
  const sum = powers.reduce((a, b) => a + b, 0);
  return powers.map((x) => x / sum);
}

// Answers for the newest image only: while one is computed, later ones replace each other.
let busy = false, next = null;
async function show(pixels) {
  paint(find("seen"), pixels);
  next = pixels;
  if (busy) return;
  busy = true;
  while (next) {
    const used = next;
    next = null;
    const timer = setTimeout(() => { find("time").textContent = "computing ..."; }, 150);
    try { showAnswer(await classify(used)); } finally { clearTimeout(timer); }
  }
  busy = false;
}

function paint(canvas, pixels) {
  const image = new ImageData(columns, rows);
  for (let i = 0; i < rows * columns; i++) {
    for (let c = 0; c < 3; c++) image.data[4 * i + c] = pixels[i * channels + (channels === 3 ? c : 0)];
    image.data[4 * i + 3] = 255;
  }
  canvas.getContext("2d").putImageData(image, 0, 0);
}

const percent = (x) => `${(100 * x).toFixed(1)} %`;

function showAnswer({probabilities, maps, ms}) {
  const order = probabilities.map((_, i) => i);
  const many = order.length > 10;
  if (many) order.sort((a, b) => probabilities[b] - probabilities[a]);
  const best = probabilities.indexOf(Math.max(...probabilities));
  const known = probabilities.every(Number.isFinite);
  find("best").textContent = known ? `${graph.classes[best]}, ${percent(probabilities[best])}` : "no finite answer";
  find("time").textContent = `${ms < 10 ? ms.toFixed(1) : Math.round(ms)} ms`;
  const longest = Math.max(...graph.classes.map((name) => name.length));
  find("bars").style.setProperty("--names", `${Math.min(longest, 14)}ch`);
  find("bars").replaceChildren(...(many ? order.slice(0, 10) : order).map((i) => {
    const line = document.createElement("li");
    if (i === best) line.className = "first";
    for (const name of ["name", "bar", "part"]) {
      const cell = line.appendChild(document.createElement("span"));
      cell.className = name;
    }
    line.children[0].textContent = line.children[0].title = graph.classes[i];
    line.children[1].appendChild(document.createElement("div")).style.width = `${100 * probabilities[i]}%`;
    line.children[2].textContent = percent(probabilities[i]);
    return line;
  }));
  if (maps && graph.mapsShape.length === 4) showMaps(maps);
}

const SHOWN = 64;
function showMaps(maps) {
  const [, height, width, count] = graph.mapsShape, shown = Math.min(count, SHOWN), list = find("maps");
  find("features").hidden = false;
  find("mapsNote").textContent = `${shown < count ? `${shown} of ` : ""}${count} maps of ${height} x ${width}, `
    + "each from its least value (black) to its largest (white)";
  while (list.children.length < shown) {
    const canvas = list.appendChild(document.createElement("canvas"));
    canvas.width = width;
    canvas.height = height;
  }
  for (let c = 0; c < shown; c++) {
    let low = Infinity, high = -Infinity;
    for (let i = c; i < maps.length; i += count) { low = Math.min(low, maps[i]); high = Math.max(high, maps[i]); }
    const image = new ImageData(width, height), scale = high > low ? 255 / (high - low) : 0;
    for (let i = 0; i < width * height; i++) {
      image.data.fill(Math.round((maps[i * count + c] - low) * scale), 4 * i, 4 * i + 3);
      image.data[4 * i + 3] = 255;
    }
    list.children[c].getContext("2d").putImageData(image, 0, 0);
  }
}

// Images from files

async function takeFile(file) {
  find("problem").textContent = "";
  let bitmap;
  try {
    bitmap = await createImageBitmap(file);
  } catch {
    find("problem").textContent = `${file.name || "This file"} is no image that this browser can read.`;
    return;
  }
  const most = Math.max(2048, 4 * rows, 4 * columns);  // phones refuse larger canvases
  const scale = Math.min(1, most / Math.max(bitmap.width, bitmap.height));
  const canvas = document.createElement("canvas");
  canvas.width = Math.max(1, Math.round(bitmap.width * scale));
  canvas.height = Math.max(1, Math.round(bitmap.height * scale));
  const context = canvas.getContext("2d", {willReadFrequently: true});
  context.fillStyle = "#fff";  // what is transparent is shown on white
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.imageSmoothingQuality = "high";
  context.drawImage(bitmap, 0, 0, canvas.width, canvas.height);
  await show(fitImage(context.getImageData(0, 0, canvas.width, canvas.height), graph.input, graph.resize));
}

find("file").addEventListener("change", (event) => {
  if (event.target.files.length) takeFile(event.target.files[0]);
  event.target.value = "";  // the same file again is a change, too
});
document.addEventListener("dragover", (event) => { event.preventDefault(); document.body.classList.add("over"); });
document.addEventListener("dragleave", (event) => {
  if (!event.relatedTarget) document.body.classList.remove("over");
});
document.addEventListener("drop", (event) => {
  event.preventDefault();
  document.body.classList.remove("over");
  if (event.dataTransfer.files.length) takeFile(event.dataTransfer.files[0]);
});

for (const {label, pixels} of JSON.parse(find("sampleImages").textContent)) {
  const button = find("samples").appendChild(document.createElement("button")), image = decode(pixels);
  const canvas = button.appendChild(document.createElement("canvas"));
  [canvas.width, canvas.height] = [columns, rows];
  paint(canvas, image);
  button.type = "button";
  button.title = button.ariaLabel = `example: ${label}`;
  button.addEventListener("click", () => show(image));
  find("samples").hidden = false;
}

// Drawings

const pad = find("pad");
if (pad) {
  const context = pad.getContext("2d", {willReadFrequently: true}), scratch = document.createElement("canvas");
  [scratch.width, scratch.height] = [2 * pad.width, 2 * pad.height];  // room for a wider pen
  let strokes = [], drawing = false;
  const inkOf = (canvas, wide, shift) => {
    const ink = canvas.getContext("2d", {willReadFrequently: true});
    ink.fillStyle = "#000";
    ink.fillRect(0, 0, canvas.width, canvas.height);
    Object.assign(ink, {lineWidth: wide, lineCap: "round", lineJoin: "round", strokeStyle: "#fff"});
    for (const stroke of strokes) {
      ink.beginPath();
      for (const [x, y] of [stroke[0], ...stroke]) ink.lineTo(x + shift, y + shift);
      ink.stroke();
    }
    return ink.getImageData(0, 0, canvas.width, canvas.height);
  };
  const draw = () => {
    inkOf(pad, 24, 0);
    if (!strokes.length) return;
    const {part, stroke, dark} = graph.drawing;
    const sides = [0, 1].map((axis) => {
      const all = strokes.flat().map((point) => point[axis]);
      return Math.max(...all) - Math.min(...all);
    });
    // So wide that it has the data's width once the drawing is brought to the data's size.
    const wide = stroke < part ? stroke * Math.max(...sides, 40) / (part - stroke) : 24;
    const image = inkOf(scratch, Math.min(Math.max(wide, 4), pad.width / 2), pad.width / 2);
    const pixels = placeDrawing(image, rows, columns, part);
    show(dark ? pixels.map((x) => 255 - x) : pixels);
  };
  const place = (event) => {
    const box = pad.getBoundingClientRect();
    return [(event.clientX - box.left) * pad.width / box.width, (event.clientY - box.top) * pad.height / box.height];
  };
  pad.addEventListener("pointerdown", (event) => {
    drawing = true;
    try { pad.setPointerCapture(event.pointerId); } catch { /* a pen that has gone */ }
    strokes.push([place(event)]);
    draw();
  });
  pad.addEventListener("pointermove", (event) => {
    if (!drawing) return;
    const steps = event.getCoalescedEvents?.() || [];
    strokes[strokes.length - 1].push(...(steps.length ? steps : [event]).map(place));
    draw();
  });
  for (const end of ["pointerup", "pointercancel"]) pad.addEventListener(end, () => { drawing = false; });
  find("clear").addEventListener("click", () => { strokes = []; draw(); });
  draw();
}

find("samples").firstElementChild?.click();
