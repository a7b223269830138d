"use strict";
/* The model: awake it sees each frame; in a dream it goes on from its own predictions, by actions alone. */

class Dream {
  constructor(data) {
    const { weights, ...programs } = data.programs;
    const tensors = Engine.weightsOf(weights);
    this.run = Object.fromEntries(Object.entries(programs).map(([name, each]) => [name, Engine.program(each, tensors)]));
    this.sizes = Object.fromEntries(Object.entries(programs).map(([name, { inputs }]) => [name, inputs.map(([, shape]) => shape)]));
    this.weights = Float32Array.from(data.error_weights);
    this.interval = data.interval;
    this.begin();
  }

  /* At an episode's start nothing is remembered. */
  begin() {
    this.carry = new Float32Array(this.sizes.observe[2][1]);
    this.isFirst = 1;
    this.ahead = 0;
    this.futures = null;
  }

  /* See a frame: from here a dream can begin. */
  see(obs) {
    [this.z, this.h] = this.run.observe(obs, [this.isFirst], this.carry);
    this.isFirst = 0;
    this.ahead = 0;
    this.futures = null;
  }

  /* Take an action; the frame that is expected after it, {obs, norm, low, high}. While awake, `see` what really follows. */
  act(action, dreaming) {
    if (dreaming) this.ahead++;
    const band = dreaming ? this.spread(action) : {};
    const [obs, , , z, h, carry] = this.run.predict(this.z, this.h, action);
    if (dreaming) [this.z, this.h] = [z, h];
    else this.carry = carry;
    return { obs, norm: Math.hypot(...h), ...band, ...(dreaming ? this.members() : {}) };
  }

  /* The interval of so many futures, drawn side by side. */
  spread(action) {
    if (!this.run.spread) return {};
    const [[count], , , [, noises]] = this.sizes.spread;
    const beside = (array) => { const all = new Float32Array(count * array.length); for (let i = 0; i < count; i++) all.set(array, i * array.length); return all; };
    const [z, h] = this.futures ?? [beside(this.z), beside(this.h)];
    const noise = Float32Array.from({ length: count * noises }, normal);
    const [mean, deviation, nextZ, nextH] = this.run.spread(z, h, beside(Float32Array.from(action)), noise);
    this.futures = [nextZ, nextH];
    const widths = this.interval.widths, knot = Math.min(Math.round(4 * Math.log2(this.ahead)), widths.length - 1);
    const half = deviation.map((each, i) => each * widths[knot][i]);
    return { low: mean.map((each, i) => each - half[i]), high: mean.map((each, i) => each + half[i]) };
  }

  /* The least and the most that any member predicts. */
  members() {
    if (!this.run.members) return {};
    const [each] = this.run.members(this.z), width = this.weights.length;
    const over = (pick) => Float32Array.from({ length: width }, (_, i) => {
      let found = each[i];
      for (let k = i; k < each.length; k += width) found = pick(found, each[k]);
      return found;
    });
    return { low: over(Math.min), high: over(Math.max) };
  }

  /* Squared error over the variance of the training data: 1 is predicting the mean. */
  error(obs, truth) {
    let sum = 0;
    for (let i = 0; i < truth.length; i++) sum += this.weights[i] * (obs[i] - truth[i]) ** 2;
    return Number.isFinite(sum) ? sum : Infinity;
  }
}

function normal() {  // Box and Muller 1958
  return Math.sqrt(-2 * Math.log(1 - Math.random())) * Math.cos(2 * Math.PI * Math.random());
}
