// Turns a drawing into the image that a network sees, as mnist-cnn predict does for a picture of it.
//
// This follows mnist_cnn/inference/pictures: find_ink in ink.py for a drawing without noise, and placing.py.
// An image is {height, width, values}, brightness from 0 to 1 row by row, unless a function says otherwise.
"use strict";

const INK_SIDE = 280; // pixels
const PEN_RADIUS = 0.03; // of the side
const STROKE_INK = 0.3; // a pixel with more ink than this belongs to a stroke
// As fractions of an image's side: a digit's longer side, the width of a stroke, and where the centre of mass goes.
const [DIGIT, STROKE, CENTRE] = [20 / 28, 2.2 / 28, 14.5 / 28];
const OVERSAMPLING = 4; // strokes are thickened at this multiple of the final resolution

function blank(height, width) {
  return { height, width, values: new Float32Array(height * width) };
}

/** Add the mark of a round pen that moves straight from one point, {x, y} in fractions of the side, to another. */
function addMark(ink, from, to) {
  const radius = PEN_RADIUS * INK_SIDE;
  const [ax, ay, bx, by] = [from.x, from.y, to.x, to.y].map((place) => place * INK_SIDE);
  const [dx, dy] = [bx - ax, by - ay];
  const length2 = dx * dx + dy * dy;
  const first = (a, b) => Math.max(0, Math.floor(Math.min(a, b) - radius - 1));
  const last = (a, b) => Math.min(INK_SIDE - 1, Math.ceil(Math.max(a, b) + radius + 1));
  for (let row = first(ay, by); row <= last(ay, by); row++) {
    for (let column = first(ax, bx); column <= last(ax, bx); column++) {
      const [px, py] = [column + 0.5 - ax, row + 0.5 - ay];
      const along = length2 ? clamp((px * dx + py * dy) / length2) : 0;
      const distance = Math.hypot(px - along * dx, py - along * dy);
      const at = row * INK_SIDE + column;
      ink.values[at] = Math.max(ink.values[at], clamp(radius + 0.5 - distance));
    }
  }
}

/** The image of a drawing, brightness 0 … 255, of size [height, width]; null if nothing is drawn. */
function imageOf(ink, placing, [height, width]) {
  if (!ink.values.some((value) => value > STROKE_INK)) return null;
  if (placing === "whole") return inBytes(resized(ink, height, width));
  const clear = ink.values.map((value) => clamp((value - 0.1) / 0.9)); // the faintest tenth counts as paper
  return inBytes(placed({ ...ink, values: clear }, height, width));
}

/** The digit in the ink as an image like MNIST's, with its size, stroke width and place. */
function placed(ink, height, width) {
  const digit = cropped(ink);
  const scale = roundEven(DIGIT * Math.min(height, width)) / Math.max(digit.height, digit.width);
  const [rows, columns] = [digit.height, digit.width].map((length) => Math.max(1, roundEven(length * scale)));
  const fine = resized(digit, rows * OVERSAMPLING, columns * OVERSAMPLING);
  const scaled = resized(thickened(fine, STROKE * Math.min(height, width) * OVERSAMPLING), rows, columns);
  const most = scaled.values.reduce((a, b) => Math.max(a, b));
  let [total, down, across] = [0, 0, 0];
  scaled.values.forEach((value, i) => {
    total += value;
    down += value * (Math.floor(i / columns) + 0.5);
    across += value * ((i % columns) + 0.5);
  });
  const place = (whole, middle, part) => Math.min(Math.max(0, roundEven(CENTRE * whole - middle)), whole - part);
  const [top, left] = [place(height, down / total, rows), place(width, across / total, columns)];
  const image = blank(height, width);
  scaled.values.forEach((value, i) => {
    image.values[(top + Math.floor(i / columns)) * width + left + (i % columns)] = value / most;
  });
  return image;
}

/** The part of an image that has strokes. */
function cropped({ height, width, values }) {
  let [top, bottom, left, right] = [height, 0, width, 0];
  values.forEach((value, i) => {
    if (value <= STROKE_INK) return;
    const [row, column] = [Math.floor(i / width), i % width];
    [top, bottom] = [Math.min(top, row), Math.max(bottom, row + 1)];
    [left, right] = [Math.min(left, column), Math.max(right, column + 1)];
  });
  const part = blank(bottom - top, right - left);
  for (let row = top; row < bottom; row++) {
    part.values.set(values.subarray(row * width + left, row * width + right), (row - top) * part.width);
  }
  return part;
}

/** Widen strokes thinner than `wanted` pixels, as a pen with a round tip would. */
function thickened(image, wanted) {
  const grow = (wanted - strokeWidth(image)) / 2;
  if (grow < 0.5) return image;
  const { height, width, values } = image;
  const out = blank(height, width);
  const reach = Math.ceil(grow);
  for (let dy = -reach; dy <= reach; dy++) {
    for (let dx = -reach; dx <= reach; dx++) {
      if (Math.hypot(dy, dx) > grow + 0.3) continue;
      for (let row = Math.max(0, -dy); row < Math.min(height, height - dy); row++) {
        for (let column = Math.max(0, -dx); column < Math.min(width, width - dx); column++) {
          const value = values[(row + dy) * width + column + dx];
          const at = row * width + column;
          if (value > out.values[at]) out.values[at] = value;
        }
      }
    }
  }
  return out;
}

/** The mean width of the strokes in pixels, estimated as twice the area over the outline. */
function strokeWidth({ height, width, values }) {
  let [area, outline] = [0, 0];
  const isInk = (row, column) => values[row * width + column] > 0.5;
  const isInside = (row, column) => {
    if (row < 1 || column < 1 || row > height - 2 || column > width - 2) return false;
    for (let y = row - 1; y <= row + 1; y++) {
      for (let x = column - 1; x <= column + 1; x++) if (!isInk(y, x)) return false;
    }
    return true;
  };
  for (let row = 0; row < height; row++) {
    for (let column = 0; column < width; column++) {
      if (!isInk(row, column)) continue;
      area++;
      if (!isInside(row, column)) outline++;
    }
  }
  return (2 * area) / Math.max(1, outline);
}

/** An image 0 … 255 at the size that a network takes: padded if that is a little larger, otherwise resampled. */
function fitted(image, [height, width]) {
  const [down, across] = [height - image.height, width - image.width];
  if (down === 0 && across === 0) return image;
  if (Math.min(down, across) < 0 || Math.max(down, across) > 8) return resampled(image, height, width);
  const out = blank(height, width);
  for (let row = 0; row < image.height; row++) {
    const line = image.values.subarray(row * image.width, (row + 1) * image.width);
    out.values.set(line, (row + Math.floor(down / 2)) * width + Math.floor(across / 2));
  }
  return out;
}

/** An image at another size, its values in [0, 1]. */
function resized(image, height, width) {
  const found = resampled(image, height, width);
  return { ...found, values: found.values.map(clamp) };
}

/** Bilinear with antialiasing: what torch's interpolate(mode="bilinear", antialias=True) computes. */
function resampled(image, height, width) {
  const [down, across] = [pixelShares(image.height, height), pixelShares(image.width, width)];
  const lines = blank(image.height, width);
  for (let row = 0; row < image.height; row++) {
    across.forEach(({ first, shares }, column) => {
      const at = row * image.width + first;
      lines.values[row * width + column] = shares.reduce((sum, share, i) => sum + share * image.values[at + i], 0);
    });
  }
  const out = blank(height, width);
  down.forEach(({ first, shares }, row) => {
    for (let column = 0; column < width; column++) {
      const value = (i) => lines.values[(first + i) * width + column];
      out.values[row * width + column] = shares.reduce((sum, share, i) => sum + share * value(i), 0);
    }
  });
  return out;
}

/** For each position of a resampled line: the first of the pixels that it is made from, and the share of each. */
function pixelShares(before, after) {
  const scale = before / after;
  const reach = Math.max(scale, 1);
  return Array.from({ length: after }, (_, position) => {
    const centre = scale * (position + 0.5);
    const first = Math.max(Math.trunc(centre - reach + 0.5), 0);
    const count = Math.min(Math.trunc(centre + reach + 0.5), before) - first;
    const part = (pixel) => Math.max(0, 1 - Math.abs((pixel + 0.5 - centre) / reach));
    const parts = Array.from({ length: count }, (_, i) => part(first + i));
    const total = parts.reduce((a, b) => a + b, 0);
    return { first, shares: parts.map((part) => part / total) };
  });
}

function inBytes(image) {
  return { ...image, values: image.values.map((value) => roundEven(255 * value)) };
}

function clamp(value) {
  return Math.min(Math.max(value, 0), 1);
}

/** The nearest whole number, the even one in a tie, as Python rounds. */
function roundEven(value) {
  const up = Math.round(value);
  return up - value === 0.5 && up % 2 ? up - 1 : up;
}
