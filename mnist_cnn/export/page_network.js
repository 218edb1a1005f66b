// Computes the outputs of a network, operation by operation, from the list that page_network.py writes.
//
// A tensor is {shape, values}: float32 values in Keras' order, which for an image is [height, width, channels], the
// last varying fastest. So an image is flattened by giving it another shape. Sums are in double precision.
"use strict";

const product = (numbers) => numbers.reduce((a, b) => a * b, 1);

/** The function from tensor to tensor that its kind and its settings describe. */
function operation(settings) {
  return OPERATIONS[settings.kind](settings);
}

const OPERATIONS = {
  /** A convolution without padding; its weight is [filters, height, width, channels / groups]. */
  convolution({ kernel, strides, dilation, filters, groups, weight, bias }) {
    weight = decoded(weight);
    bias = bias ? decoded(bias) : new Float32Array(filters);
    return ({ shape: [height, width, channels], values }) => {
      const [rows, columns] = windows([height, width], kernel, strides, dilation);
      const [depth, units] = [channels / groups, filters / groups];
      const size = kernel[0] * kernel[1] * depth;
      const patches = new Float32Array(columns * size); // what the filters see along one row of the output
      const out = new Float32Array(rows * columns * filters);
      for (let row = 0; row < rows; row++) {
        for (let group = 0; group < groups; group++) {
          let at = 0;
          for (let column = 0; column < columns; column++) {
            for (let y = 0; y < kernel[0]; y++) {
              for (let x = 0; x < kernel[1]; x++) {
                const pixel = (row * strides[0] + y * dilation[0]) * width + column * strides[1] + x * dilation[1];
                const from = pixel * channels + group * depth;
                for (let i = 0; i < depth; i++) patches[at++] = values[from + i];
              }
            }
          }
          const part = group * units;
          const weights = weight.subarray(part * size, (part + units) * size);
          const line = out.subarray(row * columns * filters + part);
          multiply(patches, columns, weights, units, bias.subarray(part), line, filters);
        }
      }
      return { shape: [rows, columns, filters], values: out };
    };
  },

  /** A linear map of the last axis; its weight is [units, features]. */
  dense({ units, weight, bias }) {
    weight = decoded(weight);
    bias = bias ? decoded(bias) : new Float32Array(units);
    return ({ shape, values }) => {
      const rows = product(shape.slice(0, -1));
      const out = new Float32Array(rows * units);
      multiply(values, rows, weight, units, bias, out, units);
      return { shape: [...shape.slice(0, -1), units], values: out };
    };
  },

  /** The maximum or the mean of the pixels in each window, or, with sides, of those that are not padding. */
  pooling({ reduce, size, strides, sides: [left, right, top, bottom] }) {
    return ({ shape: [height, width, channels], values }) => {
      const [rows, columns] = windows([height + top + bottom, width + left + right], size, strides, [1, 1]);
      const out = new Float32Array(rows * columns * channels);
      for (let row = 0; row < rows; row++) {
        const [y0, y1] = within(row * strides[0] - top, size[0], height);
        for (let column = 0; column < columns; column++) {
          const [x0, x1] = within(column * strides[1] - left, size[1], width);
          const count = (y1 - y0) * (x1 - x0);
          for (let channel = 0; channel < channels; channel++) {
            let found = reduce === "max" ? -Infinity : 0;
            for (let y = y0; y < y1; y++) {
              for (let x = x0; x < x1; x++) {
                const value = values[(y * width + x) * channels + channel];
                found = reduce === "max" ? Math.max(found, value) : found + value / count;
              }
            }
            out[(row * columns + column) * channels + channel] = found;
          }
        }
      }
      return { shape: [rows, columns, channels], values: out };
    };
  },

  /** The maximum or the mean of each channel. */
  globalPooling({ reduce, shape }) {
    return (x) => {
      const whole = { kind: "pooling", reduce, size: x.shape, strides: [1, 1], sides: [0, 0, 0, 0] };
      return { shape, values: operation(whole)(x).values };
    };
  },

  /** More pixels on each side, of this value; null stands for −∞. */
  padding({ sides: [left, right, top, bottom], value }) {
    return ({ shape: [height, width, channels], values }) => {
      const shape = [height + top + bottom, width + left + right, channels];
      const out = new Float32Array(product(shape)).fill(value ?? -Infinity);
      for (let y = 0; y < height; y++) {
        const line = values.subarray(y * width * channels, (y + 1) * width * channels);
        out.set(line, ((y + top) * shape[1] + left) * channels);
      }
      return { shape, values: out };
    };
  },

  reshape({ shape }) {
    return ({ values }) => ({ shape, values });
  },

  /** value · scale + shift, with a number each for every position along the axis; without an axis, one for all. */
  affine({ axis, scale, shift }) {
    scale = decoded(scale);
    shift = decoded(shift);
    return ({ shape, values }) => {
      const inner = step(shape, axis);
      const changed = values.map((value, i) => {
        const position = Math.floor(i / inner) % scale.length;
        return value * scale[position] + shift[position];
      });
      return { shape, values: changed };
    };
  },

  /** (value − mean) / (standard deviation + epsilon), for each position along the axis; without an axis, over all. */
  standardize({ axis, epsilon }) {
    return ({ shape, values }) => {
      const inner = step(shape, axis);
      const positions = axis === null ? 1 : shape[axis];
      const position = (i) => Math.floor(i / inner) % positions;
      const [mean, variance] = [new Float64Array(positions), new Float64Array(positions)];
      const share = positions / values.length;
      values.forEach((value, i) => (mean[position(i)] += value * share));
      values.forEach((value, i) => (variance[position(i)] += (value - mean[position(i)]) ** 2 * share));
      const scaled = (value, i) => (value - mean[position(i)]) / (Math.sqrt(variance[position(i)]) + epsilon);
      return { shape, values: values.map(scaled) };
    };
  },

  unitLength({ axis }) {
    return alongAxis(axis, (line) => {
      const length = Math.sqrt(line.reduce((sum, value) => sum + value ** 2, 0));
      return line.map((value) => value / Math.max(length, 1e-12));
    });
  },

  softmax({ axis }) {
    return alongAxis(axis, softmax);
  },

  logSoftmax({ axis }) {
    return alongAxis(axis, (line) => {
      const most = line.reduce((a, b) => Math.max(a, b));
      const total = line.reduce((sum, value) => sum + Math.exp(value - most), 0);
      return line.map((value) => value - most - Math.log(total));
    });
  },

  /** Keras' ReLU with all its arguments; `most` is null if there is no largest value. */
  relu({ slope, threshold, most }) {
    most ??= Infinity;
    return each((x) => Math.min(x >= threshold ? x : slope * (x - threshold), most));
  },

  elu: ({ alpha }) => each((x) => (x > 0 ? x : alpha * Math.expm1(x))),
  selu: () => each((x) => 1.0507009873554805 * (x > 0 ? x : 1.6732632423543772 * Math.expm1(x))),
  gelu: () => each((x) => x * normalCdf(x)),
  silu: () => each((x) => x / (1 + Math.exp(-x))),
  mish: () => each((x) => x * Math.tanh(softplus(x))),
  sigmoid: () => each((x) => 1 / (1 + Math.exp(-x))),
  logSigmoid: () => each((x) => -softplus(-x)),
  hardSigmoid: ({ slope }) => each((x) => Math.min(Math.max(slope * x + 0.5, 0), 1)),
  hardSilu: () => each((x) => (x * Math.min(Math.max(x + 3, 0), 6)) / 6),
  tanh: () => each(Math.tanh),
  softplus: () => each(softplus),
  softsign: () => each((x) => x / (1 + Math.abs(x))),
  exponential: () => each(Math.exp),
  log: () => each((x) => Math.log(Math.max(x, 2 ** -126))),
};

/** The probabilities that belong to these logits. */
function softmax(logits) {
  const most = logits.reduce((a, b) => Math.max(a, b));
  const powers = logits.map((value) => Math.exp(value - most));
  const total = powers.reduce((a, b) => a + b);
  return powers.map((power) => power / total);
}

/**
 * Multiply rows by the transpose of weight, [units, size], and add bias: row r goes to `out` from r · stride on.
 *
 * It takes two rows and four units at a time, whose sums stay in registers: several times as fast as one by one. Where
 * fewer are left, the last of them is computed more than once.
 */
function multiply(rows, count, weight, units, bias, out, stride) {
  const size = weight.length / units;
  for (let a = 0; a < units; a += 4) {
    const b = Math.min(a + 1, units - 1);
    const c = Math.min(a + 2, units - 1);
    const d = Math.min(a + 3, units - 1);
    const [atA, atB, atC, atD] = [a * size, b * size, c * size, d * size];
    for (let row = 0; row < count; row += 2) {
      const next = Math.min(row + 1, count - 1);
      const [atRow, atNext] = [row * size, next * size];
      let rowA = bias[a], rowB = bias[b], rowC = bias[c], rowD = bias[d];
      let nextA = rowA, nextB = rowB, nextC = rowC, nextD = rowD;
      for (let i = 0; i < size; i++) {
        const x = rows[atRow + i], y = rows[atNext + i];
        const wa = weight[atA + i], wb = weight[atB + i], wc = weight[atC + i], wd = weight[atD + i];
        rowA += x * wa; rowB += x * wb; rowC += x * wc; rowD += x * wd;
        nextA += y * wa; nextB += y * wb; nextC += y * wc; nextD += y * wd;
      }
      const [from, fromNext] = [row * stride, next * stride];
      out[from + a] = rowA; out[from + b] = rowB; out[from + c] = rowC; out[from + d] = rowD;
      out[fromNext + a] = nextA; out[fromNext + b] = nextB; out[fromNext + c] = nextC; out[fromNext + d] = nextD;
    }
  }
}

/** How many windows of a size there are, [down, across]. */
function windows(shape, size, strides, dilation) {
  return [0, 1].map((side) => Math.floor((shape[side] - (size[side] - 1) * dilation[side] - 1) / strides[side]) + 1);
}

/** The part [from, to) of a window that lies within an image. */
function within(start, size, length) {
  return [Math.max(start, 0), Math.min(start + size, length)];
}

/** The operation that applies a function to every value. */
function each(compute) {
  return ({ shape, values }) => ({ shape, values: values.map(compute) });
}

/** The operation that applies a function to every line of values along an axis. */
function alongAxis(axis, compute) {
  return ({ shape, values }) => {
    const [length, inner] = [shape[axis], step(shape, axis)];
    const out = new Float32Array(values.length);
    for (let start = 0; start < values.length; start += length * inner) {
      for (let first = start; first < start + inner; first++) {
        const line = compute(Float64Array.from({ length }, (_, i) => values[first + i * inner]));
        line.forEach((value, i) => (out[first + i * inner] = value));
      }
    }
    return { shape, values: out };
  };
}

/** How many values there are from one position along an axis to the next; all of them, if the axis is null. */
function step(shape, axis) {
  return product(axis === null ? shape : shape.slice(axis + 1));
}

function softplus(x) {
  return Math.max(x, 0) + Math.log1p(Math.exp(-Math.abs(x)));
}

/** The standard normal distribution function, to 1e-7. Source: Abramowitz and Stegun, 7.1.26. */
function normalCdf(x) {
  const t = 1 / (1 + (0.3275911 * Math.abs(x)) / Math.SQRT2);
  const series = [1.061405429, -1.453152027, 1.421413741, -0.284496736, 0.254829592].reduce((sum, a) => sum * t + a, 0);
  const tail = 0.5 * series * t * Math.exp((-x * x) / 2);
  return x < 0 ? tail : 1 - tail;
}

/** The array in {float32: base64} or {float16: base64}, little-endian. */
function decoded(array) {
  const text = atob(array.float32 ?? array.float16);
  const view = new DataView(Uint8Array.from(text, (character) => character.charCodeAt(0)).buffer);
  return array.float32 === undefined
    ? Float32Array.from({ length: text.length / 2 }, (_, i) => half(view.getUint16(2 * i, true)))
    : Float32Array.from({ length: text.length / 4 }, (_, i) => view.getFloat32(4 * i, true));
}

/** The number that has these bits in half precision; it is finite, as every weight is. Source: IEEE 754. */
function half(bits) {
  const exponent = (bits >> 10) & 31;
  const fraction = (bits & 1023) / 1024;
  return (bits & 0x8000 ? -1 : 1) * (exponent ? 2 ** (exponent - 15) * (1 + fraction) : 2 ** -14 * fraction);
}
