"use strict";
/* How an action is chosen: sliders, or buttons for choices; the arrow keys press them. */

class Controls {
  /* place: an element; spec: of contents.py; onTouch: called when a hand chooses. */
  constructor(place, spec, onTouch) {
    Object.assign(this, { spec, onTouch, held: new Set(), pressed: new Set() });
    this.width = spec.kind === "entries" ? spec.low.length : spec.sizes.reduce((a, b) => a + b, 0);
    this.rest = spec.kind === "entries"
      ? spec.low.map((low, i) => Math.min(Math.max(0, low), spec.high[i]))
      : spec.sizes.map((size) => Math.floor((size - 1) / 2));
    this.values = [...this.rest];
    place.replaceChildren(...this.values.map((_, i) => (spec.kind === "entries" ? this.slider(i) : this.buttons(i))));
    this.show();
  }

  /* As the model takes it: numbers, or one-hot. */
  get action() {
    if (this.spec.kind === "entries") return Float32Array.from(this.values);
    const hot = new Float32Array(this.width);
    let start = 0;
    this.spec.sizes.forEach((size, i) => { hot[start + this.values[i]] = 1; start += size; });
    return hot;
  }

  /* Show an action that was recorded. */
  set action(features) {
    if (this.spec.kind === "entries") this.values = [...features];
    else {
      let start = 0;
      this.values = this.spec.sizes.map((size) => {
        const part = [...features.slice(start, start += size)];
        return part.indexOf(Math.max(...part));
      });
    }
    this.show();
  }

  /* A step of actions that wander at random, between the bounds. */
  wander() {
    this.values = this.values.map((value, i) => {
      if (this.spec.kind === "choices") return Math.random() < 0.15 ? Math.floor(Math.random() * this.spec.sizes[i]) : value;
      const [low, high] = [this.spec.low[i], this.spec.high[i]];
      const next = 0.92 * (value - (low + high) / 2) + 0.35 * (high - low) * (Math.random() - 0.5) + (low + high) / 2;
      return this.within(i, this.spec.step ? Math.round(Math.random()) : next);
    });
    this.show();
  }

  /* A step without a hand: of two choices, in whose middle nothing rests, each in turn, until one is pressed. */
  idle() {
    if (this.spec.kind !== "choices") return;
    this.spec.sizes.forEach((size, i) => { if (size === 2 && !this.pressed.has(i)) this.values[i] = 1 - this.values[i]; });
    this.show();
  }

  within(i, value) { return Math.min(Math.max(value, this.spec.low[i]), this.spec.high[i]); }

  slider(i) {
    const row = Object.assign(document.createElement("label"), { className: "control" });
    const { low, high, names, step } = this.spec;
    const name = Object.assign(document.createElement("span"), { textContent: names[i] });
    const input = Object.assign(document.createElement("input"), { type: "range", min: low[i], max: high[i], step: step || "any" });
    const value = Object.assign(document.createElement("output"), {});
    input.addEventListener("input", () => { this.values[i] = Number(input.value); this.touch(); });
    input.addEventListener("keydown", (event) => { if (event.key.startsWith("Arrow")) event.preventDefault(); });
    (this.rows ??= []).push(() => {
      if (document.activeElement !== input || Number(input.value) !== this.values[i]) input.value = this.values[i];
      value.textContent = this.values[i].toFixed(2).replace(/^-(0\.00)$/, "$1");
    });
    const keys = Object.assign(document.createElement("kbd"), { textContent: ["← →", "↓ ↑", "A D", "S W"][i] ?? "" });
    row.append(name, keys, input, value);
    return row;
  }

  buttons(i) {
    const row = Object.assign(document.createElement("div"), { className: "choices", role: "group" });
    const names = this.spec.sizes.length === 1 ? this.spec.names : Array.from({ length: this.spec.sizes[i] }, (_, k) => k);
    const each = names.map((name, k) => {
      const button = Object.assign(document.createElement("button"), { type: "button", textContent: name });
      button.addEventListener("click", () => { this.values[i] = k; this.pressed.add(i); this.touch(); });
      return button;
    });
    (this.rows ??= []).push(() => each.forEach((button, k) => button.setAttribute("aria-pressed", String(k === this.values[i]))));
    row.append(...each);
    return row;
  }

  touch() { this.onTouch(); this.show(); }
  show() { for (const row of this.rows) row(); }

  /* Whether a key chooses an action. */
  press(key) {
    const way = KEYS[key];
    if (way && way[0] < this.values.length) {
      const [i, sign] = way, known = this.held.has(key);
      this.held.add(key);
      this.pressed.add(i);
      if (this.spec.kind === "entries") this.values[i] = sign < 0 ? this.spec.low[i] : this.spec.high[i];
      else if (this.spec.sizes[i] <= 3) this.values[i] = sign < 0 ? 0 : this.spec.sizes[i] - 1;
      else if (!known) this.values[i] = Math.min(Math.max(this.values[i] + sign, 0), this.spec.sizes[i] - 1);
    } else if (this.spec.kind === "choices" && /^[1-9]$/.test(key) && Number(key) <= this.spec.sizes[0]) {
      this.values[0] = Number(key) - 1;
      this.pressed.add(0);
    } else return false;
    this.touch();
    return true;
  }

  /* What is let go returns to rest, where there is such a place: the middle of two choices is none. */
  release(key) {
    const way = KEYS[key];
    if (!this.held.delete(key)) return;
    const i = way[0];
    if ([...this.held].some((other) => KEYS[other][0] === i)) return;
    this.pressed.delete(i);
    if (this.spec.kind === "entries" || this.spec.sizes[i] === 3) this.values[i] = this.rest[i];
    this.show();
  }

  releaseAll() { for (const key of [...this.held]) this.release(key); }
}

const KEYS = {
  ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowDown: [1, -1], ArrowUp: [1, 1],
  a: [2, -1], d: [2, 1], s: [3, -1], w: [3, 1],
};
