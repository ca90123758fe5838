// From pixels of a canvas to what the network takes, by the rules of flaxcnn/data/images.py.
"use strict";

// Half to even, as Python rounds.
function roundEven(x) {
  const whole = Math.round(x);
  return Math.abs(x % 1) === 0.5 && whole % 2 ? whole - 1 : whole;
}

// {data: RGBA, width, height}, opaque -> Uint8Array [height * width * channels] of another size.
function fitImage({data, width, height}, [rows, columns, channels], resize) {
  const pixels = new Float32Array(width * height * channels);
  for (let i = 0, at = 0; i < width * height; i++) {
    const r = data[4 * i], g = data[4 * i + 1], b = data[4 * i + 2];
    if (channels === 1) pixels[at++] = (4899 * r + 9617 * g + 1868 * b + 8192) >> 14; // Rec. 601 luma
    else { pixels[at++] = r; pixels[at++] = g; pixels[at++] = b; }
  }
  let size = [rows, columns], down = 0, right = 0;
  if (resize !== "stretch") {
    const scales = [rows / height, columns / width];
    const scale = resize === "crop" ? Math.max(...scales) : Math.min(...scales);
    size = [height, width].map((side) => Math.max(1, roundEven(side * scale)));
    [down, right] = resize === "crop"
      ? [-Math.floor((size[0] - rows) / 2), -Math.floor((size[1] - columns) / 2)]
      : [Math.floor((rows - size[0]) / 2), Math.floor((columns - size[1]) / 2)];
  }
  const scaled = scaleImage(pixels, [height, width, channels], size);
  const out = new Uint8Array(rows * columns * channels);
  for (let i = 0; i < rows; i++) for (let j = 0; j < columns; j++) {
    const y = i - down, x = j - right;
    if (y < 0 || y >= size[0] || x < 0 || x >= size[1]) continue;
    for (let c = 0; c < channels; c++) {
      out[(i * columns + j) * channels + c] = roundEven(scaled[(y * size[1] + x) * channels + c]);
    }
  }
  return out;
}

// Shrinking averages areas, enlarging interpolates linearly: OpenCV's INTER_AREA, INTER_LINEAR.
function scaleImage(pixels, [height, width, channels], [rows, columns]) {
  if (rows === height && columns === width) return pixels;
  const areas = rows * columns < height * width, mixed = areas && (rows > height || columns > width);
  const how = mixed ? "mixed" : areas ? "areas" : "linear";
  const across = makeTaps(width, columns, how), down = makeTaps(height, rows, how);
  const narrow = new Float32Array(height * columns * channels);
  for (let i = 0; i < height; i++) for (let j = 0; j < columns; j++) {
    for (const [from, weight] of across[j]) for (let c = 0; c < channels; c++) {
      narrow[(i * columns + j) * channels + c] += weight * pixels[(i * width + from) * channels + c];
    }
  }
  const out = new Float32Array(rows * columns * channels), length = columns * channels;
  for (let i = 0; i < rows; i++) for (const [from, weight] of down[i]) {
    for (let k = 0; k < length; k++) out[i * length + k] += weight * narrow[from * length + k];
  }
  return out;
}

// Per place of the result, the places it is computed from with their weights. "mixed" is OpenCV's
// INTER_AREA where one axis is shrunk and the other enlarged.
function makeTaps(before, after, how) {
  const scale = before / after, taps = [];
  for (let i = 0; i < after; i++) {
    const mine = [];
    if (how === "areas") {
      const start = i * scale, end = Math.min(before, start + scale);
      for (let k = Math.floor(start); k < end; k++) {
        const covered = Math.min(end, k + 1) - Math.max(start, k);
        if (covered > 1e-6) mine.push([k, covered / (end - start)]);
      }
    } else if (how === "mixed") {
      const low = Math.min(Math.floor(i * scale), before - 1), over = i + 1 - (low + 1) / scale;
      const part = over <= 0 || low === before - 1 ? 0 : over % 1;
      mine.push([low, 1 - part]);
      if (part) mine.push([low + 1, part]);
    } else {
      const place = Math.min(Math.max((i + 0.5) * scale - 0.5, 0), before - 1), low = Math.floor(place);
      mine.push([low, low + 1 - place]);
      if (place > low) mine.push([low + 1, place - low]);
    }
    taps.push(mine);
  }
  return taps;
}

// A drawing, {data: RGBA of white ink on black, width, height}, where data sets of handwriting have
// it: its longer side `part` of the image, its centre of mass in the middle. Uint8Array [side, side].
function placeDrawing({data, width, height}, rows, columns, part) {
  let [top, left, bottom, right] = [height, width, -1, -1];
  for (let i = 0; i < height; i++) for (let j = 0; j < width; j++) if (data[4 * (i * width + j)] > 32) {
    top = Math.min(top, i); bottom = Math.max(bottom, i);
    left = Math.min(left, j); right = Math.max(right, j);
  }
  const out = new Uint8Array(rows * columns);
  if (bottom < 0) return out;
  const high = bottom - top + 1, wide = right - left + 1;
  const ink = new Float32Array(high * wide);
  for (let i = 0; i < high; i++) for (let j = 0; j < wide; j++) {
    ink[i * wide + j] = data[4 * ((top + i) * width + left + j)];
  }
  const scale = Math.min(part * rows / high, part * columns / wide);
  const size = [high, wide].map((side) => Math.max(1, Math.round(side * scale)));
  const small = scaleImage(ink, [high, wide, 1], size);
  let sum = 0, y = 0, x = 0;
  small.forEach((value, i) => {
    sum += value;
    y += value * (Math.floor(i / size[1]) + 0.5);
    x += value * (i % size[1] + 0.5);
  });
  const start = (middle, whole, used) => Math.min(Math.max(Math.round(whole / 2 - middle), 0), whole - used);
  const down = start(y / sum, rows, size[0]), over = start(x / sum, columns, size[1]);
  small.forEach((value, i) => {
    out[(down + Math.floor(i / size[1])) * columns + over + i % size[1]] = Math.round(value);
  });
  return out;
}

if (typeof module !== "undefined") module.exports = {fitImage, placeDrawing};
