// Computes a network that flaxcnn/export/graph.py made. Values are Float32Arrays, channels last.
"use strict";

function makeNetwork(graph, bytes) {
  const constants = graph.constants.map((c) => readConstant(c, bytes));
  const nodes = graph.nodes.map((node) => prepare(node, constants));
  const lastUse = new Map();
  nodes.forEach((node, index) => node.inputs.forEach((ref) => lastUse.set(ref, index)));

  // Numbers in 0..255, [H, W, C], -> {output, maps}: Float32Arrays, `maps` null without a
  // convolution.
  return function compute(pixels) {
    const values = new Map([[0, normalize(pixels, graph.mean, graph.std)]]);
    const look = (ref) => (ref < 0 ? constants[-1 - ref] : values.get(ref));
    nodes.forEach((node, index) => {
      values.set(index + 1, OPERATIONS[node.op](node, node.inputs.map(look)));
      for (const ref of node.inputs) {
        if (ref !== graph.maps && ref !== graph.output && lastUse.get(ref) === index) {
          values.delete(ref);
        }
      }
    });
    return {output: look(graph.output), maps: graph.maps ? look(graph.maps) : null};
  };
}

function normalize(pixels, mean, std) {
  const out = new Float32Array(pixels.length), channels = mean.length;
  for (let i = 0; i < out.length; i++) {
    const c = i % channels;
    out[i] = Math.fround(Math.fround(pixels[i] / 255) - mean[c]) / std[c];
  }
  return out;
}

function readConstant({type, offset, size}, bytes) {
  if (type === "float32") return new Float32Array(bytes, offset, size);
  const halves = new Uint16Array(bytes, offset, size), out = new Float32Array(size);
  for (let i = 0; i < size; i++) {
    const half = halves[i], exponent = (half >> 10) & 31, fraction = half & 1023;
    const value = exponent === 0 ? fraction * 2 ** -24
      : exponent === 31 ? (fraction ? NaN : Infinity)
      : (1 + fraction / 1024) * 2 ** (exponent - 15);
    out[i] = half & 0x8000 ? -value : value;
  }
  return out;
}

const count = (shape) => shape.reduce((a, b) => a * b, 1);

// What is the same for every image: kernels with one row per feature, strides of operands.
function prepare(node, constants) {
  const ready = {low: -Infinity, high: Infinity, ...node, size: count(node.shape)};
  const constant = (index) => constants[-1 - node.inputs[index]];
  if (node.op === "conv") {
    const [kh, kw] = node.kernel, channels = node.input[2], features = node.output[2];
    const {groups} = node, inside = channels / groups, outside = features / groups;
    ready.depthwise = inside === 1 && outside === 1;
    ready.weights = ready.depthwise ? [constant(1)] : [];
    for (let group = 0; group < groups && !ready.depthwise; group++) {
      ready.weights.push(transpose(constant(1), kh * kw * inside, features, group * outside, outside));
    }
  } else if (node.op === "matmul") {
    const features = node.shape.length ? ready.size / ready.rows : 1;
    ready.weights = transpose(constant(1), node.length, features, 0, features);
  } else if (["unary", "binary", "select"].includes(node.op)) {
    ready.strides = node.shapes.map((shape) => broadcastStrides(shape, node.shape));
  }
  return ready;
}

function transpose(kernel, rows, columns, first, used) {
  const out = new Float32Array(rows * used);
  for (let row = 0; row < rows; row++) {
    for (let i = 0; i < used; i++) out[i * rows + row] = kernel[row * columns + first + i];
  }
  return out;
}

function broadcastStrides(shape, target) {
  const missing = target.length - shape.length, strides = new Array(target.length).fill(0);
  let step = 1;
  for (let axis = shape.length - 1; axis >= 0; axis--) {
    if (shape[axis] > 1) strides[axis + missing] = step;
    step *= shape[axis];
  }
  return strides;
}

// out[place(i)] = x[i], or out[i] = x[place(i)], over all i of `shape` in row-major order, where
// `place` has other strides: the last axis is a loop, the others a counter.
function copyStrided(shape, strides, offset, copyRow) {
  const rank = shape.length, total = count(shape);
  if (total === 0) return;
  if (rank === 0) { copyRow(0, offset, 1, 1); return; }
  const length = shape[rank - 1], step = strides[rank - 1], index = new Array(rank).fill(0);
  let place = offset;
  for (let start = 0; start < total; start += length) {
    copyRow(start, place, length, step);
    for (let axis = rank - 2; axis >= 0; axis--) {
      place += strides[axis];
      if (++index[axis] < shape[axis]) break;
      place -= strides[axis] * shape[axis];
      index[axis] = 0;
    }
  }
}

const UNARY = {
  exp: Math.exp, log: Math.log, log1p: Math.log1p, expm1: Math.expm1, tanh: Math.tanh,
  logistic: (x) => 1 / (1 + Math.exp(-x)), sqrt: Math.sqrt, rsqrt: (x) => 1 / Math.sqrt(x),
  neg: (x) => -x, abs: Math.abs, sign: Math.sign, floor: Math.floor, ceil: Math.ceil,
  not: (x) => (x ? 0 : 1), is_finite: (x) => (Number.isFinite(x) ? 1 : 0), square: (x) => x * x,
  erf: (x) => 1 - erfc(x), erfc,
};

// Press et al., Numerical Recipes, section 6.2: relative error below 1.2e-7.
function erfc(x) {
  const t = 1 / (1 + 0.5 * Math.abs(x));
  const series = [0.17087277, -0.82215223, 1.48851587, -1.13520398, 0.27886807, -0.18628806, 0.09678418,
    0.37409196, 1.00002368, -1.26551223].reduce((sum, term) => sum * t + term, 0);
  const value = t * Math.exp(series - x * x);
  return x >= 0 ? value : 2 - value;
}

const BINARY = {
  add: (x, y) => x + y, sub: (x, y) => x - y, mul: (x, y) => x * y, div: (x, y) => x / y,
  max: Math.max, min: Math.min, pow: Math.pow,
  eq: (x, y) => (x === y ? 1 : 0), ne: (x, y) => (x !== y ? 1 : 0), lt: (x, y) => (x < y ? 1 : 0),
  le: (x, y) => (x <= y ? 1 : 0), gt: (x, y) => (x > y ? 1 : 0), ge: (x, y) => (x >= y ? 1 : 0),
  and: (x, y) => (x && y ? 1 : 0), or: (x, y) => (x || y ? 1 : 0),
};

// out[i] = f(x[i], y[step * (i % length)]). The commonest have loops of their own: in one that calls
// several functions the engine cannot put them inline.
const LOOPS = {
  add(out, x, y, step, length) {
    for (let i = 0; i < out.length;) for (let j = 0; j < length; j++, i++) out[i] = x[i] + y[j * step];
  },
  sub(out, x, y, step, length) {
    for (let i = 0; i < out.length;) for (let j = 0; j < length; j++, i++) out[i] = x[i] - y[j * step];
  },
  mul(out, x, y, step, length) {
    for (let i = 0; i < out.length;) for (let j = 0; j < length; j++, i++) out[i] = x[i] * y[j * step];
  },
  max(out, x, y, step, length) {
    for (let i = 0; i < out.length;) for (let j = 0; j < length; j++, i++) out[i] = Math.max(x[i], y[j * step]);
  },
  min(out, x, y, step, length) {
    for (let i = 0; i < out.length;) for (let j = 0; j < length; j++, i++) out[i] = Math.min(x[i], y[j * step]);
  },
};

function loopOver(name, out, x, y, step, length) {
  if (name in LOOPS) return LOOPS[name](out, x, y, step, length);
  const f = BINARY[name];
  for (let i = 0; i < out.length;) for (let j = 0; j < length; j++, i++) out[i] = f(x[i], y[j * step]);
}

const OPERATIONS = {
  conv(node, inputs) {
    return node.depthwise ? convDepthwise(node, inputs) : convGroups(node, inputs);
  },

  matmul(node, [x, , bias]) {
    const out = new Float32Array(node.size), features = node.size / node.rows;
    multiply(x, 0, node.length, node.rows, node.weights, features, bias, 0, node, out, 0, features);
    return out;
  },

  maxpool(node, [x]) {
    const [h, w, channels] = node.input, [oh, ow] = node.output, [kh, kw] = node.window;
    const [sy, sx] = node.strides, [py, px] = node.before;
    const out = new Float32Array(node.size).fill(-Infinity);
    for (let n = 0, to = 0; n < node.batch; n++) {
      for (let i = 0; i < oh; i++) for (let j = 0; j < ow; j++, to += channels) {
        for (let a = Math.max(0, i * sy - py); a < Math.min(h, i * sy - py + kh); a++) {
          for (let b = Math.max(0, j * sx - px); b < Math.min(w, j * sx - px + kw); b++) {
            const from = ((n * h + a) * w + b) * channels;
            for (let c = 0; c < channels; c++) {
              const value = x[from + c];
              if (value > out[to + c] || value !== value) out[to + c] = value; // NaN stays
            }
          }
        }
      }
    }
    return out;
  },

  reduce(node, [x]) {
    const {kind, length} = node, out = new Float32Array(node.size);
    for (let i = 0, at = 0; i < out.length; i++, at += length) {
      let value = kind === "sum" ? 0 : kind === "max" ? -Infinity : Infinity;
      if (kind === "sum") {
        for (let j = 0; j < length; j++) value += x[at + j];
      } else if (kind === "argmax") {
        value = 0;
        for (let j = 1; j < length; j++) if (x[at + j] > x[at + value]) value = j;
      } else {
        const better = kind === "max" ? Math.max : Math.min;
        for (let j = 0; j < length; j++) value = better(value, x[at + j]);
      }
      out[i] = value;
    }
    return out;
  },

  unary(node, [x]) {
    const out = new Float32Array(node.size), f = UNARY[node.name];
    for (let i = 0; i < out.length; i++) out[i] = f(x[i]);
    return out;
  },

  binary(node, [x, y]) {
    const {size, strides: [first, second], shape} = node, out = new Float32Array(size);
    const whole = x.length === size ? x : spread(x, first, shape, size);
    const last = shape.length ? shape[shape.length - 1] : 1;
    const inRows = y.length === last && second[second.length - 1] === 1;
    if (y.length === 1) loopOver(node.name, out, whole, y, 0, size);
    else if (inRows) loopOver(node.name, out, whole, y, 1, last);
    else loopOver(node.name, out, whole, y.length === size ? y : spread(y, second, shape, size), 1, size);
    return out;
  },

  select(node, inputs) {
    const {size, shape} = node, out = new Float32Array(size);
    const [which, no, yes] = inputs.map(
      (x, i) => (x.length === size ? x : spread(x, node.strides[i], shape, size)));
    for (let i = 0; i < size; i++) out[i] = which[i] ? yes[i] : no[i];
    return out;
  },

  view(node, [x]) { return spread(x, node.strides, node.shape, node.size, node.offset); },

  place(node, inputs) {
    const out = new Float32Array(node.size).fill(Number(node.value));
    inputs.forEach((x, i) => {
      const {strides, offset} = node.places[i];
      copyStrided(node.shapes[i], strides, offset, (start, place, length, step) => {
        for (let j = 0; j < length; j++) out[place + j * step] = x[start + j];
      });
    });
    return out;
  },

  reshape(node, [x]) { return x; },
};

function spread(x, strides, shape, size, offset = 0) {
  const out = new Float32Array(size);
  copyStrided(shape, strides, offset, (start, place, length, step) => {
    for (let j = 0; j < length; j++) out[start + j] = x[place + j * step];
  });
  return out;
}

// Each pixel's window of each group as one row, then a product of matrices.
function convGroups(node, [x, , bias]) {
  const [h, w, channels] = node.input, [oh, ow, features] = node.output, [kh, kw] = node.kernel;
  const [sy, sx] = node.strides, [py, px] = node.before, [dy, dx] = node.dilation;
  const {groups} = node, inside = channels / groups, outside = features / groups;
  const out = new Float32Array(node.size), length = kh * kw * inside;
  const batch = node.size / (oh * ow * features) || 0;
  const direct = kh * kw * sy * sx === 1 && groups === 1 && py === 0 && px === 0 && oh === h && ow === w;
  if (direct) {
    multiply(x, 0, length, batch * h * w, node.weights[0], features, bias, 0, node, out, 0, features);
    return out;
  }
  const rows = Math.max(1, Math.min(oh, Math.floor(65536 / (ow * length)))); // stays in the cache
  const patches = new Float32Array(rows * ow * length);
  for (let n = 0; n < batch; n++) for (let group = 0; group < groups; group++) {
    for (let top = 0; top < oh; top += rows) {
      const bottom = Math.min(oh, top + rows);
      for (let i = top, to = 0; i < bottom; i++) for (let j = 0; j < ow; j++) {
        for (let a = 0; a < kh; a++) {
          const row = i * sy - py + a * dy;
          for (let b = 0; b < kw; b++, to += inside) {
            const column = j * sx - px + b * dx;
            if (row < 0 || row >= h || column < 0 || column >= w) {
              patches.fill(0, to, to + inside);
            } else {
              const from = ((n * h + row) * w + column) * channels + group * inside;
              for (let c = 0; c < inside; c++) patches[to + c] = x[from + c];
            }
          }
        }
      }
      multiply(patches, 0, length, (bottom - top) * ow, node.weights[group], outside, bias, group * outside,
        node, out, ((n * oh + top) * ow) * features + group * outside, features);
    }
  }
  return out;
}

function convDepthwise(node, [x, kernel, bias]) {
  const [h, w, channels] = node.input, [oh, ow] = node.output, [kh, kw] = node.kernel;
  const [sy, sx] = node.strides, [py, px] = node.before, [dy, dx] = node.dilation;
  const {low, high} = node, out = new Float32Array(node.size), sums = new Float64Array(channels);
  const batch = node.size / (oh * ow * channels) || 0;
  for (let n = 0, to = 0; n < batch; n++) for (let i = 0; i < oh; i++) for (let j = 0; j < ow; j++, to += channels) {
    if (bias) sums.set(bias);
    else sums.fill(0);
    for (let a = 0; a < kh; a++) {
      const row = i * sy - py + a * dy;
      if (row < 0 || row >= h) continue;
      for (let b = 0; b < kw; b++) {
        const column = j * sx - px + b * dx;
        if (column < 0 || column >= w) continue;
        const from = ((n * h + row) * w + column) * channels, at = (a * kw + b) * channels;
        for (let c = 0; c < channels; c++) sums[c] += x[from + c] * kernel[at + c];
      }
    }
    for (let c = 0; c < channels; c++) out[to + c] = Math.min(Math.max(sums[c], low), high);
  }
  return out;
}

// out[r, f] = limits(sum over k of x[r, k] * weights[f, k] + bias[f]), 4 x 4 at a time: each number
// that is read is used four times.
function multiply(x, start, length, rows, weights, features, bias, firstBias, {low, high}, out, first, step) {
  const biasOf = (f) => (bias ? bias[firstBias + f] : 0);
  const limit = (value) => Math.min(Math.max(value, low), high);
  let r = 0;
  for (; r + 4 <= rows; r += 4) {
    const x0 = start + r * length, x1 = x0 + length, x2 = x1 + length, x3 = x2 + length;
    const o0 = first + r * step, o1 = o0 + step, o2 = o1 + step, o3 = o2 + step;
    let f = 0;
    for (; f + 4 <= features; f += 4) {
      const w0 = f * length, w1 = w0 + length, w2 = w1 + length, w3 = w2 + length;
      let a0 = biasOf(f), a1 = biasOf(f + 1), a2 = biasOf(f + 2), a3 = biasOf(f + 3);
      let b0 = a0, b1 = a1, b2 = a2, b3 = a3, c0 = a0, c1 = a1, c2 = a2, c3 = a3;
      let d0 = a0, d1 = a1, d2 = a2, d3 = a3;
      for (let k = 0; k < length; k++) {
        const p0 = x[x0 + k], p1 = x[x1 + k], p2 = x[x2 + k], p3 = x[x3 + k];
        const q0 = weights[w0 + k], q1 = weights[w1 + k], q2 = weights[w2 + k], q3 = weights[w3 + k];
        a0 += p0 * q0; a1 += p0 * q1; a2 += p0 * q2; a3 += p0 * q3;
        b0 += p1 * q0; b1 += p1 * q1; b2 += p1 * q2; b3 += p1 * q3;
        c0 += p2 * q0; c1 += p2 * q1; c2 += p2 * q2; c3 += p2 * q3;
        d0 += p3 * q0; d1 += p3 * q1; d2 += p3 * q2; d3 += p3 * q3;
      }
      out[o0 + f] = limit(a0); out[o0 + f + 1] = limit(a1); out[o0 + f + 2] = limit(a2); out[o0 + f + 3] = limit(a3);
      out[o1 + f] = limit(b0); out[o1 + f + 1] = limit(b1); out[o1 + f + 2] = limit(b2); out[o1 + f + 3] = limit(b3);
      out[o2 + f] = limit(c0); out[o2 + f + 1] = limit(c1); out[o2 + f + 2] = limit(c2); out[o2 + f + 3] = limit(c3);
      out[o3 + f] = limit(d0); out[o3 + f + 1] = limit(d1); out[o3 + f + 2] = limit(d2); out[o3 + f + 3] = limit(d3);
    }
    for (; f < features; f++) {
      for (let i = 0; i < 4; i++) out[o0 + i * step + f] = limit(dot(x, x0 + i * length, weights, f * length, length, biasOf(f)));
    }
  }
  for (; r < rows; r++) {
    for (let f = 0; f < features; f++) {
      out[first + r * step + f] = limit(dot(x, start + r * length, weights, f * length, length, biasOf(f)));
    }
  }
}

function dot(x, i, y, j, length, sum) {
  for (let k = 0; k < length; k++) sum += x[i + k] * y[j + k];
  return sum;
}

if (typeof module !== "undefined") module.exports = {makeNetwork};
