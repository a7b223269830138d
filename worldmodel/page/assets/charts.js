"use strict";
/* Curves against the steps since the dream began, drawn as they grow; 0 is the last frame that was seen. */

const FONT = '12px system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", "Open Sans", sans-serif';
const LEFT = 62, RIGHT = 14, TOP = 24, BOTTOM = 12, AXIS = 32;

class Chart {
  /* canvas; {title, log: logarithmic, least: [low, high] that is always shown, axis: whether steps are written below}. */
  constructor(canvas, options) { Object.assign(this, { canvas, log: false, least: null, axis: false, ...options }); }

  /* x: [first, last] step; lines: [{points: [[step, value]], color, width, dash, alpha, name}]; bands: [{points: [[step,
     low, high]], color}]; marks: [{at, color, dash, text, before, shade}], at steps; levels: [{at, color, name}], at
     values. What has a name is in the legend. */
  draw(x, { lines, bands = [], marks = [], levels = [] }) {
    const { context, width, height } = fitted(this.canvas);
    Object.assign(this, { context, width, height, x, bottom: height - (this.axis ? AXIS : BOTTOM) });
    context.clearRect(0, 0, width, height);
    context.font = FONT;
    this.scale([...lines, ...bands], levels);
    for (const mark of marks) if (mark.shade && mark.at < x[1]) this.fill(mark.at, mark.shade);
    this.drawGrid();
    context.save();
    context.beginPath();
    context.rect(LEFT, TOP - 2, width - LEFT - RIGHT, this.bottom - TOP + 4);
    context.clip();
    for (const level of levels) this.stroke([[x[0], level.at], [x[1], level.at]], { dash: [2, 3], width: 1, ...level });
    for (const mark of marks) this.drawMark(mark);
    for (const band of bands) this.drawBand(band);
    for (const line of lines) this.stroke(line.points, line);
    context.restore();
    this.drawTexts(marks);
    this.drawLegend([...lines, ...levels.map((level) => ({ dash: [2, 3], ...level }))].filter(({ name }) => name));
  }

  scale(drawn, levels) {
    const ok = (value) => Number.isFinite(value) && (!this.log || value > 0);
    let [low, high] = this.least ?? [Infinity, -Infinity];
    for (const { points, aside } of drawn) {
      if (aside) continue;
      for (const [at, ...values] of points)
        if (at >= this.x[0] && at <= this.x[1])
          for (const value of values) if (ok(value)) [low, high] = [Math.min(low, value), Math.max(high, value)];
    }
    for (const { at, aside } of levels) if (!aside) [low, high] = [Math.min(low, at), Math.max(high, at)];
    if (!(low < high)) [low, high] = Number.isFinite(low) ? [low - 0.5, low + 0.5] : [0, 1];
    if (this.log) [low, high] = [Math.log10(Math.max(low, 1e-8)) - 0.1, Math.log10(high) + 0.15];
    else { const room = 0.06 * (high - low); [low, high] = [low - room, high + room]; }
    Object.assign(this, { low, high });
  }

  across(step) { return LEFT + ((step - this.x[0]) / (this.x[1] - this.x[0])) * (this.width - LEFT - RIGHT); }
  up(value) {
    const v = this.log ? Math.log10(Math.max(value, 1e-12)) : value;
    return this.bottom - ((v - this.low) / (this.high - this.low)) * (this.bottom - TOP);
  }

  drawGrid() {
    const { context } = this;
    context.textAlign = "right";
    context.textBaseline = "middle";
    for (const [value, text] of this.log ? this.powers() : ticks(this.low, this.high, Math.max(3, Math.floor((this.bottom - TOP) / 24)))) {
      const y = Math.round(this.up(value)) + 0.5;
      this.rule([LEFT, y], [this.width - RIGHT, y], COLORS.grid);
      context.fillStyle = COLORS.text;
      context.fillText(text, LEFT - 8, y);
    }
    context.textAlign = "center";
    context.textBaseline = "top";
    for (const [step, text] of ticks(...this.x, Math.floor((this.width - LEFT - RIGHT) / 80))) {
      const at = Math.round(this.across(step)) + 0.5;
      this.rule([at, TOP], [at, this.bottom], COLORS.grid);
      if (this.axis) { context.fillStyle = COLORS.text; context.fillText(text, at, this.bottom + 5); }
    }
    if (this.axis) {
      context.textAlign = "right";
      context.fillText("steps ahead", this.width - RIGHT, this.bottom + 18);
    }
  }

  powers() {
    const every = Math.max(1, Math.ceil((this.high - this.low) / Math.max(2, (this.bottom - TOP) / 26)));
    const found = [];
    for (let power = Math.ceil(this.low); power <= this.high; power++)
      if (power % every === 0) found.push([10 ** power, Math.abs(power) < 3 ? String(Number((10 ** power).toPrecision(1))) : `10${raised(power)}`]);
    return found;
  }

  drawTexts(marks) {
    const { context } = this;
    context.textAlign = "left";
    context.textBaseline = "alphabetic";
    context.fillStyle = "#20262d";
    context.fillText(this.title, LEFT, TOP - 9);
    for (const { at, text, color, before } of marks) {
      if (!text || at < this.x[0] || at > this.x[1]) continue;
      const x = this.across(at), flips = before || x + context.measureText(text).width + 8 > this.width - RIGHT;
      context.textAlign = flips ? "right" : "left";
      Object.assign(context, { fillStyle: color, strokeStyle: "#ffffff", lineWidth: 3 });
      context.strokeText(text, x + (flips ? -6 : 6), this.bottom - 7);
      context.fillText(text, x + (flips ? -6 : 6), this.bottom - 7);
    }
  }

  /* Above the right end, from right to left. */
  drawLegend(named) {
    const { context } = this;
    context.textAlign = "right";
    context.textBaseline = "alphabetic";
    let right = this.width - RIGHT;
    for (const { name, color, dash = [] } of named.reverse()) {
      context.fillStyle = COLORS.text;
      context.fillText(name, right, TOP - 9);
      right -= context.measureText(name).width + 6;
      context.setLineDash(dash);
      this.rule([right - 20, TOP - 13], [right, TOP - 13], color, 2);
      context.setLineDash([]);
      right -= 20 + 16;
    }
  }

  drawMark({ at, color, dash = [], width = 1 }) {
    if (at < this.x[0] || at > this.x[1]) return;
    const x = Math.round(this.across(at)) + 0.5;
    this.context.setLineDash(dash);
    this.rule([x, TOP], [x, this.bottom], color, width);
    this.context.setLineDash([]);
  }

  fill(from, color) {
    this.context.fillStyle = color;
    const left = Math.max(this.across(from), LEFT);
    this.context.fillRect(left, TOP, this.width - RIGHT - left, this.bottom - TOP);
  }

  drawBand({ points, color }) {
    const { context } = this;
    context.beginPath();
    points.forEach(([step, low], i) => context[i ? "lineTo" : "moveTo"](this.across(step), this.up(low)));
    for (let i = points.length - 1; i >= 0; i--) context.lineTo(this.across(points[i][0]), this.up(points[i][2]));
    context.fillStyle = color;
    context.fill();
  }

  stroke(points, { color, width = 1.5, dash = [], alpha = 1 }) {
    const { context } = this, every = Math.max(1, Math.floor(points.length / 1500));
    context.beginPath();
    for (let i = 0, pen = false; i < points.length; i += every) {
      const [step, value] = points[i];
      if (!Number.isFinite(value)) { pen = false; continue; }
      context[pen ? "lineTo" : "moveTo"](this.across(step), this.up(value));
      pen = true;
    }
    context.setLineDash(dash);
    Object.assign(context, { strokeStyle: color, lineWidth: width, globalAlpha: alpha, lineJoin: "round" }).stroke();
    context.setLineDash([]);
    context.globalAlpha = 1;
  }

  rule(from, to, color, width = 1) {
    const { context } = this;
    context.beginPath();
    context.moveTo(...from);
    context.lineTo(...to);
    Object.assign(context, { strokeStyle: color, lineWidth: width }).stroke();
  }
}

/* Round numbers between two, [value, text], about so many. */
function ticks(low, high, count) {
  const rough = (high - low) / Math.max(count, 1), power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((n) => n * power).find((size) => size >= rough) ?? rough;
  const found = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high + 1e-9 * step; i++)
    found.push([i * step, String(Number((i * step).toPrecision(6)))]);
  return found;
}

function raised(power) { return [...String(power)].map((letter) => ({ "-": "⁻" })[letter] ?? "⁰¹²³⁴⁵⁶⁷⁸⁹"[letter]).join(""); }
