"use strict";
/* An observation as a picture: images as they are; well-known environments as drawings, the dream over the truth. */

const COLORS = { truth: "#333333", dream: "#0072b2", threshold: "#d55e00", usual: "#7a8794", grid: "#e8eaed", text: "#5f6873" };

/* name -> [entries that it needs, what it draws: (pen, value by entry, color, alpha)], in a square from -1 to 1, y up. */
const DRAWINGS = {
  pendulum: [[0, 1], (pen, v, color) => {
    pen.line([[0, 0], [-0.8 * v[1], 0.8 * v[0]]], color, 0.16);
    pen.dot(0, 0, 0.035, "#ffffff");
  }],
  cartpole: [[0, 2], (pen, v, color) => {
    const x = v[0] / 2.6, y = -0.35;
    pen.line([[-1, y - 0.11], [1, y - 0.11]], "#c9ced6", 0.01);
    pen.box(x - 0.18, y - 0.1, 0.36, 0.2, color);
    pen.line([[x, y + 0.06], [x + 0.9 * Math.sin(v[2]), y + 0.06 + 0.9 * Math.cos(v[2])]], color, 0.07);
  }],
  acrobot: [[0, 1, 2, 3], (pen, v, color) => {
    const one = Math.atan2(v[1], v[0]), both = one + Math.atan2(v[3], v[2]);
    const knee = [0.42 * Math.sin(one), -0.42 * Math.cos(one)];
    pen.line([[-1, 0.42], [1, 0.42]], "#c9ced6", 0.01);
    pen.line([[0, 0], knee, [knee[0] + 0.42 * Math.sin(both), knee[1] - 0.42 * Math.cos(both)]], color, 0.1);
    pen.dot(0, 0, 0.03, "#ffffff");
  }],
  mountain_car: [[0], (pen, v, color) => {
    const place = (x) => [(x + 0.3) / 0.95, 0.6 * Math.sin(3 * x) - 0.1];
    pen.line(Array.from({ length: 61 }, (_, i) => place(-1.2 + (1.8 * i) / 60)), "#c9ced6", 0.012);
    const [x, y] = place(v[0]);
    pen.dot(x, y + 0.07, 0.07, color);
  }],
};

class Picture {
  constructor(canvas, caption, data) {
    Object.assign(this, { canvas, caption, images: data.images });
    this.vectors = data.entries.length;
    this.camera = null;  // the environment's own picture of the truth
    const drawing = data.drawing && DRAWINGS[data.drawing.name];
    if (drawing && drawing[0].every((entry) => data.drawing.entries.includes(entry)))
      [this.places, this.paint] = [data.drawing.entries, drawing[1]];
    if (this.images.length)
      this.sheets = this.images.flatMap(([h, w]) => [0, 1].map(() => Object.assign(document.createElement("canvas"), { width: w, height: h })));
  }

  /* Whether there is anything to see beside the curves. */
  get shows() { return Boolean(this.paint || this.images.length || this.camera); }

  draw(truth, dream) {
    const { context, width, height } = fitted(this.canvas);
    context.clearRect(0, 0, width, height);
    if (this.images.length) this.drawImages(context, width, height, truth, dream);
    else if (this.paint) {
      if (truth) this.drawState(context, width, height, truth, COLORS.truth, 0.35);
      if (dream) this.drawState(context, width, height, dream, COLORS.dream, 0.75);
    } else if (this.camera?.complete && this.camera.naturalWidth) {
      const scale = Math.min(width / this.camera.naturalWidth, height / this.camera.naturalHeight);
      const [w, h] = [this.camera.naturalWidth * scale, this.camera.naturalHeight * scale];
      context.drawImage(this.camera, (width - w) / 2, (height - h) / 2, w, h);
    }
  }

  drawState(context, width, height, obs, color, alpha) {
    const scale = Math.min(width, height) / 2.1, at = (x, y) => [width / 2 + x * scale, height / 2 - y * scale];
    const values = [];
    this.places.forEach((entry, i) => { values[entry] = obs[i]; });
    if (!values.every(Number.isFinite)) return;
    const pen = {
      line(points, stroke, thick) {
        context.beginPath();
        points.forEach((point, i) => context[i ? "lineTo" : "moveTo"](...at(...point)));
        Object.assign(context, { strokeStyle: stroke, lineWidth: thick * scale, lineCap: "round", lineJoin: "round" }).stroke();
      },
      dot(x, y, r, fill) {
        context.beginPath();
        context.arc(...at(x, y), r * scale, 0, 2 * Math.PI);
        Object.assign(context, { fillStyle: fill }).fill();
      },
      box(x, y, w, h, fill) {
        const [left, top] = at(x, y + h);
        context.beginPath();
        context.roundRect(left, top, w * scale, h * scale, 0.03 * scale);
        Object.assign(context, { fillStyle: fill }).fill();
      },
    };
    context.globalAlpha = alpha;
    this.paint(pen, values, color);
    context.globalAlpha = 1;
  }

  drawImages(context, width, height, truth, dream) {
    const gap = 12, side = (width - gap) / 2;
    let start = this.vectors;
    this.images.forEach(([h, w, channels], k) => {
      [truth, dream].forEach((obs, column) => {
        if (!obs) return;
        const sheet = this.sheets[2 * k + column], pen = sheet.getContext("2d"), pixels = pen.createImageData(w, h);
        for (let i = 0; i < h * w; i++) {
          for (let c = 0; c < 3; c++) pixels.data[4 * i + c] = obs[start + i * channels + (channels >= 3 ? c : 0)];
          pixels.data[4 * i + 3] = 255;
        }
        pen.putImageData(pixels, 0, 0);
        const scale = Math.min(side / w, height / this.images.length / h);
        context.imageSmoothingEnabled = false;
        context.drawImage(sheet, column * (side + gap) + (side - w * scale) / 2,
          (k * height) / this.images.length + (height / this.images.length - h * scale) / 2, w * scale, h * scale);
      });
      start += h * w * channels;
    });
  }
}

/* A canvas's pen, in CSS pixels, with the canvas as large as it is shown. */
function fitted(canvas) {
  const ratio = window.devicePixelRatio || 1, { clientWidth: width, clientHeight: height } = canvas;
  if (canvas.width !== Math.round(width * ratio) || canvas.height !== Math.round(height * ratio))
    Object.assign(canvas, { width: Math.round(width * ratio), height: Math.round(height * ratio) });
  const context = canvas.getContext("2d");
  context.setTransform(ratio, 0, 0, ratio, 0, 0);
  return { context, width, height };
}
