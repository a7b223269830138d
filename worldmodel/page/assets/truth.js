"use strict";
/* Where the truth comes from: the simulator behind the page, or recorded episodes in it.
   A frame is {obs, picture, over}; null where the truth can say no more. */

class SimulatedTruth {
  constructor() { this.name = "simulator"; this.drivable = true; }

  reset() { return this.ask("/reset", { seed: Math.floor(Math.random() * 2 ** 31) }); }
  step(action) { return this.ask("/step", { action: [...action] }); }

  async ask(path, question) {
    let response;
    try {
      response = await fetch(path, { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(question) });
    } catch {
      throw new Error("the program behind this page has ended: start `worldmodel play` again");
    }
    if (!response.ok) throw new Error(await response.text());
    const { vectors, pixels, over, picture } = await response.json();
    return vectors ? { obs: Float32Array.from([...vectors, ...bytes(pixels)]), picture, over } : null;
  }
}

class RecordedTruth {
  constructor(episodes, obsWidth, actionWidth) {
    this.episodes = episodes.map((episode) => {
      const vectors = Engine.decoded(episode.vectors), pixels = bytes(episode.pixels), actions = Engine.decoded(episode.actions);
      const count = episode.frames, nVectors = vectors.length / count, nPixels = pixels.length / count;
      const obs = (t) => {
        const frame = new Float32Array(obsWidth);
        frame.set(vectors.subarray(t * nVectors, (t + 1) * nVectors));
        frame.set(pixels.subarray(t * nPixels, (t + 1) * nPixels), nVectors);
        return frame;
      };
      return { name: episode.name, count, obs, action: (t) => actions.slice(t * actionWidth, (t + 1) * actionWidth) };
    });
    this.chosen = 0;
    this.drivable = false;
  }

  get episode() { return this.episodes[this.chosen]; }
  get name() { return `recording ${this.episode.name}`; }
  async reset() { this.t = 0; return this.frame(); }
  /* The action that was taken at this frame; null at the end. */
  get action() { return this.t + 1 < this.episode.count ? this.episode.action(this.t) : null; }
  async step() { this.t++; return this.frame(); }
  frame() { return this.t < this.episode.count ? { obs: this.episode.obs(this.t), over: this.t + 1 >= this.episode.count } : null; }
}

function bytes(text) { return Uint8Array.from(atob(text ?? ""), (letter) => letter.charCodeAt(0)); }
