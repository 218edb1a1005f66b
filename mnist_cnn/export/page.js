// The drawing area: draws strokes and shows, while they are drawn, what the network sees and answers.
"use strict";

const element = (name) => document.getElementById(`draw-${name}`);

/** A network that is ready to answer. */
function loaded(description) {
  return { ...description, operations: description.operations.map(operation) };
}

/** The image, 0 … 255, at the size of the network's input, and the probability of each class. */
function answer(network, image) {
  const input = fitted(image, network.input);
  const values = input.values.map((value) => (value / network.scale - network.mean) / network.std);
  const start = { shape: [...network.input, 1], values };
  const logits = network.operations.reduce((tensor, compute) => compute(tensor), start).values;
  return { input, probabilities: softmax(Float64Array.from(logits)) };
}

function startField() {
  const network = loaded(JSON.parse(element("network").textContent));
  const canvas = element("canvas");
  const strokes = []; // lists of points {x, y}, from 0 to 1
  const cursor = { x: 0.5, y: 0.5, shown: false, down: false };
  let ink = blank(INK_SIDE, INK_SIDE);
  let pointer = null; // id of the pointer that is drawing
  let isWaiting = false; // for the next frame
  let spoken; // timeout of the screen reader's announcement
  let [lastEnd, lastTime] = [0, 0]; // of the computation of an answer, in milliseconds

  const bars = network.classes.map((name) => {
    const bar = document.createElement("li");
    const parts = ["b", "i", "span"].map((tag) => bar.appendChild(document.createElement(tag)));
    parts[0].textContent = name;
    parts[0].title = name;
    element("bars").append(bar);
    return { bar, share: parts[1], text: parts[2] };
  });
  const isLong = network.classes.length > 10 || network.classes.some((name) => name.length > 2);
  element("bars").classList.toggle("long", isLong);
  if (isLong) element("bars").tabIndex = 0; // so that the keyboard can scroll it
  element("bars").style.setProperty("--rows", Math.ceil(bars.length / 2));
  const invitation = element("probability").textContent;

  function changed() {
    if (!isWaiting) requestAnimationFrame(frame);
    isWaiting = true;
  }

  function frame() {
    isWaiting = false;
    paint();
    const now = performance.now();
    // A slow network gets at most half of the time, so that drawing stays smooth.
    if (now < lastEnd + lastTime) changed();
    else {
      show();
      lastEnd = performance.now();
      lastTime = lastEnd - now;
    }
  }

  function paint() {
    const context = canvas.getContext("2d");
    const side = canvas.width;
    context.clearRect(0, 0, side, side);
    context.strokeStyle = context.fillStyle = getComputedStyle(canvas).color;
    context.lineWidth = 2 * PEN_RADIUS * side;
    context.lineCap = context.lineJoin = "round";
    for (const stroke of strokes) {
      context.beginPath();
      context.moveTo(stroke[0].x * side, stroke[0].y * side);
      for (const { x, y } of stroke) context.lineTo(x * side, y * side);
      context.stroke();
    }
    if (!cursor.shown) return;
    context.lineWidth = 0.008 * side;
    context.strokeStyle = getComputedStyle(canvas).getPropertyValue("--accent");
    context.beginPath();
    context.arc(cursor.x * side, cursor.y * side, 1.4 * PEN_RADIUS * side, 0, 2 * Math.PI);
    context.stroke();
  }

  function show() {
    const image = imageOf(ink, network.placing, network.drawn);
    const { input, probabilities } = image ? answer(network, image) : { input: blank(...network.input) };
    showInput(input);
    const best = probabilities ? probabilities.indexOf(Math.max(...probabilities)) : -1;
    bars.forEach(({ bar, share, text }, i) => {
      bar.classList.toggle("best", i === best);
      share.style.setProperty("--share", probabilities ? probabilities[i] : 0);
      text.textContent = probabilities ? percent(probabilities[i]) : "";
    });
    const isBroken = probabilities && best < 0;
    element("name").textContent = best < 0 ? "–" : network.classes[best];
    element("name").parentNode.classList.toggle("long", best >= 0 && network.classes[best].length > 3);
    element("probability").textContent =
      best >= 0 ? percent(probabilities[best]) : isBroken ? "The outputs are not finite numbers." : invitation;
    const pen = cursor.shown ? [cursor.down ? "pen down" : "pen up"] : [];
    const found = best < 0 ? [] : [`${network.classes[best]}, ${percent(probabilities[best])}`];
    speak([...pen, ...found].join("; "));
  }

  function showInput({ height, width, values }) {
    const seen = element("seen");
    Object.assign(seen, { height, width });
    const pixels = new ImageData(width, height);
    values.forEach((value, i) => pixels.data.set([value, value, value, 255], 4 * i));
    seen.getContext("2d").putImageData(pixels, 0, 0);
  }

  /** Announce the answer to a screen reader once the drawing pauses, not at every move. */
  function speak(text) {
    clearTimeout(spoken);
    spoken = setTimeout(() => (element("spoken").textContent = text), 500);
  }

  function begin(point) {
    strokes.push([point]);
    addMark(ink, point, point);
    changed();
  }

  function extend(point) {
    const stroke = strokes.at(-1);
    addMark(ink, stroke.at(-1), point);
    stroke.push(point);
    changed();
  }

  function keep(count) {
    strokes.length = count;
    cursor.down = false;
    pointer = null;
    ink = blank(INK_SIDE, INK_SIDE);
    for (const stroke of strokes) stroke.forEach((point, i) => addMark(ink, stroke[Math.max(i - 1, 0)], point));
    changed();
  }

  function position(event) {
    const box = canvas.getBoundingClientRect();
    return { x: (event.clientX - box.left) / box.width, y: (event.clientY - box.top) / box.height };
  }

  canvas.addEventListener("pointerdown", (event) => {
    if (!event.isPrimary || event.button !== 0) return;
    pointer = event.pointerId;
    canvas.setPointerCapture(pointer);
    cursor.shown = cursor.down = false;
    begin(position(event));
  });
  canvas.addEventListener("pointermove", (event) => {
    if (event.pointerId !== pointer) return;
    const moves = event.getCoalescedEvents?.() ?? []; // all positions since the last event, if the browser has them
    for (const move of moves.length ? moves : [event]) extend(position(move));
  });
  for (const end of ["pointerup", "pointercancel"]) canvas.addEventListener(end, () => (pointer = null));
  canvas.addEventListener("contextmenu", (event) => event.preventDefault()); // a long touch asks for it

  const MOVES = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
  canvas.addEventListener("keydown", (event) => {
    if (event.key in MOVES && !event.altKey && !event.ctrlKey && !event.metaKey) {
      const [x, y] = MOVES[event.key];
      cursor.x = clamp(cursor.x + x / 28);
      cursor.y = clamp(cursor.y + y / 28);
      cursor.shown = true;
      if (cursor.down) extend({ x: cursor.x, y: cursor.y });
    } else if (event.key === " " || event.key === "Enter") {
      if (event.repeat) return event.preventDefault();
      cursor.shown = true;
      cursor.down = !cursor.down;
      if (cursor.down) begin({ x: cursor.x, y: cursor.y });
    } else if (event.key === "Escape" || event.key === "Delete") {
      keep(0);
    } else if (event.key === "z" && (event.ctrlKey || event.metaKey)) {
      keep(Math.max(0, strokes.length - 1));
    } else return;
    event.preventDefault();
    changed();
  });
  canvas.addEventListener("focus", () => {
    cursor.shown = canvas.matches(":focus-visible"); // by the keyboard
    changed();
  });
  canvas.addEventListener("blur", () => {
    cursor.shown = cursor.down = false;
    changed();
  });
  element("undo").addEventListener("click", () => keep(Math.max(0, strokes.length - 1)));
  element("clear").addEventListener("click", () => keep(0));

  const sizes = new ResizeObserver(([{ contentRect }]) => {
    canvas.width = canvas.height = Math.max(1, Math.round(contentRect.width * devicePixelRatio));
    changed();
  });
  sizes.observe(canvas);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", changed);
}

function percent(probability) {
  return `${(100 * probability).toFixed(1)}\u00a0%`;
}

startField();
