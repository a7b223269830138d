"use strict";
/* The page: warms the model up on true frames, lets it dream, and draws what happens. */

(() => {
  const $ = (id) => document.getElementById(id);
  const data = JSON.parse($("data").textContent);
  const AT_ONCE = 3;  // entries that are shown
  const LONGEST = 6000;  // steps of a dream that are kept
  const warm = Math.max(2, data.steps);  // frames that the model sees before it dreams by itself
  const obsWidth = data.error_weights.length;

  let dream, truth, controls, picture;
  let past = [];  // {at, truth, obs, error, norm, low, high}; `at`, steps since the dream began, is 0 or below before
  let began = null;  // number of frames when the dream began; null: awake
  let seen = 0, hands = false, paused = false, over = false, stale = true, problem = "", within = [0, 0];
  let now = { truth: null, obs: null };

  // --- what happens --------------------------------------------------------------------------------------------------

  async function restart() {
    const first = await truth.reset();
    dream.begin();
    Object.assign(picture, { camera: null });
    [past, began, seen, hands, over, within] = [[], null, 0, truth.drivable, false, [0, 0]];
    takeTruth(first);
    wake(first.obs);
  }

  function takeTruth(frame) {
    if (frame?.picture) {
      picture.camera ??= new Image();
      picture.camera.src = frame.picture;
      picture.camera.onload = () => { stale = true; };
    }
    over = frame === null || frame.over;
  }

  /* The model sees a frame. */
  function wake(obs) {
    dream.see(obs);
    seen++;
    now = { truth: obs, obs: now.obs };
  }

  function sleep() {
    if (began !== null || now.truth === null) return;
    past = past.slice(-warm).map((row, i, { length }) => ({ ...row, at: i + 1 - length }));
    began = seen;
    within = [0, 0];
  }

  /* The model sees the present truth, and may dream from there. */
  function awake() {
    if (began === null || now.truth === null) return;
    began = null;
    dream.begin();  // what it dreamt is no memory
    past = [];
    wake(now.truth);
    seen = 1;
  }

  async function step() {
    if (began === null && seen > warm && !over) sleep();
    if (began === null && over) {  // it has ended before the model saw enough
      if (seen > 1) sleep();
      else return restart();
    }
    const recorded = truth.drivable || hands ? null : truth.action;
    if (recorded) controls.action = recorded;
    else if ($("random").checked) controls.wander();
    else controls.idle();
    const dreaming = began !== null, action = controls.action;
    const expected = dream.act(action, dreaming);
    const frame = over || (!truth.drivable && hands) ? null : await truth.step(action);
    takeTruth(frame);
    const real = frame?.obs ?? null;
    const row = { at: dreaming ? dream.ahead : past.length, truth: real, error: real ? dream.error(expected.obs, real) : NaN, ...expected };
    if (past.length < LONGEST) past.push(row);
    if (real && row.low) {
      within[0] += row.low.reduce((n, low, i) => n + (real[i] >= low && real[i] <= row.high[i]), 0);
      within[1] += real.length;
    }
    now = { truth: real, obs: expected.obs };
    if (!dreaming && real) wake(real);
    stale = true;
  }

  // --- what is seen --------------------------------------------------------------------------------------------------

  const charts = {};

  function chooseEntries() {
    const first = Number($("entries").value || 0), names = data.entries.slice(first, first + AT_ONCE);
    charts.values = names.map((name, i) => {
      const canvas = document.createElement("canvas");
      Object.assign(canvas, { id: `value${i}` }).setAttribute("role", "img");
      canvas.setAttribute("aria-label", `${name}: truth and dream`);
      return [new Chart(canvas, { title: name }), first + i];
    });
    $("values").replaceChildren(...charts.values.map(([chart]) => chart.canvas));
    $("values").hidden = names.length === 0;
    $("values").style.flexGrow = Math.max(1, 1.5 * names.length);
    stale = true;
  }

  function marks(texts) {
    const { trust } = data.validation ?? {};
    const found = [{ at: 0, color: "#20262d", before: true, text: texts ? "awake" : "" },
      { at: data.steps, color: COLORS.usual, dash: [4, 4], text: texts ? `T = ${data.steps}` : "" }];
    if (trust) found.push({ at: trust, color: COLORS.threshold, width: 1.5, shade: "#fdf1ea", text: texts ? "trust ends" : "" });
    return found;
  }

  function draw() {
    const last = past.length ? past[past.length - 1].at : 0;
    const { trust, longest = 0, threshold = 0.5, curves = {} } = data.validation ?? {};
    const far = Math.max(2 * data.steps, Math.min(1.15 * (trust ?? longest), 12 * data.steps));
    const x = [-Math.min(warm, 40), Math.max(far, 1.02 * last)];
    const shift = began === null ? -last : 0;  // awake, the present is at 0
    const rows = past.map((row) => [row.at + shift, row]).filter(([at]) => at >= x[0]);
    const line = (value) => rows.map(([at, row]) => [at, value(row)]);
    const dreamt = rows.filter(([at, row]) => row.low);
    for (const [chart, entry] of charts.values)
      chart.draw(x, {
        bands: [{ points: dreamt.map(([at, row]) => [at, row.low[entry], row.high[entry]]), color: "rgb(0 114 178 / 18%)" }],
        lines: [
          { points: line((row) => row.truth?.[entry]), color: COLORS.truth, width: 3, alpha: 0.4 },
          { points: line((row) => row.obs[entry]), color: COLORS.dream, width: 1.6 },
        ],
        marks: marks(false),
      });
    charts.errors.draw(x, {
      lines: [
        { points: line((row) => row.error), color: COLORS.dream, width: 1.8, name: "this dream" },
        ...(curves.nmse ? [{ points: curves.nmse, color: COLORS.usual, dash: [6, 4], name: "mean in validation" }] : []),
      ],
      levels: curves.nmse ? [{ at: threshold, color: COLORS.threshold, name: `${threshold}, where trust ends` }] : [],
      marks: marks(true),
    });
    charts.norm.draw(x, { lines: [{ points: line((row) => row.norm), color: COLORS.dream, width: 1.8 }], marks: marks(false) });
    picture.draw(now.truth, began === null ? null : now.obs);
    $("figure").hidden = !picture.shows;
    tell(last, trust, longest);
  }

  function tell(last, trust, longest) {
    const dreaming = began !== null, error = past.length ? past[past.length - 1].error : NaN;
    $("ahead").textContent = dreaming ? String(last) : "awake";
    if (dreaming && data.rate) $("ahead").append(Object.assign(document.createElement("small"), { textContent: ` ${(last / data.rate).toFixed(1)} s` }));
    $("error").textContent = Number.isNaN(error) ? "–" : shortened(error);
    $("verdict-name").textContent = within[1] ? (data.interval.level ? `truth within the ${100 * data.interval.level}% interval` : "truth within the members' range") : "validation trusts it for";
    $("verdict").textContent = within[1] ? `${((100 * within[0]) / within[1]).toFixed(0)}%`
      : !longest ? "not measured" : `${trust ?? longest} step${(trust ?? longest) === 1 ? "" : "s"}`;
    if (!within[1] && longest) $("verdict").append(Object.assign(document.createElement("small"), {
      textContent: trust ? ` (${Number((trust / data.steps).toPrecision(2))} T)` : ", the furthest measured" }));
    $("status").textContent = problem || state();
    $("status").classList.toggle("problem", Boolean(problem));
    $("dream").replaceChildren(dreaming ? "Wake up " : "Dream now ", Object.assign(document.createElement("kbd"), { textContent: "Enter" }));
    $("dream").disabled = dreaming && now.truth === null;
    $("pause").replaceChildren(paused ? "Go on " : "Pause ", Object.assign(document.createElement("kbd"), { textContent: "Space" }));
    Object.assign(document.body.dataset, { mode: dreaming ? "dreaming" : "awake", ahead: dreaming ? last : 0, error, seen });
  }

  function state() {
    if (began === null) return `Awake: the model sees every frame of the ${truth.drivable ? "simulator" : "recording"} (${Math.min(seen, warm)} of ${warm}), then it dreams.`;
    const alone = "Dreaming: the model sees nothing, and goes on by your actions alone";
    if (now.truth !== null) return truth.drivable ? `${alone}.` : "Dreaming by the recorded actions alone. Press a control to drive the dream yourself.";
    if (!truth.drivable && hands) return `${alone}. A recording cannot follow your hands, so the truth ends here.`;
    return `${alone}. The ${truth.drivable ? "simulator's episode" : "recording"} has ended.`;
  }

  const shortened = (value) => (value === Infinity ? "∞" : value >= 0.01 ? value.toPrecision(2).replace(/e.*/, "") && Number(value.toPrecision(2)).toString() : value.toExponential(1).replace("e-", "·10⁻").replace(/⁻(\d+)$/, (_, n) => raised(-n)));

  // --- hands and time ------------------------------------------------------------------------------------------------

  function keys() {
    window.addEventListener("keydown", (event) => {
      if (event.ctrlKey || event.metaKey || event.altKey || event.target.tagName === "SELECT") return;
      const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
      const onButton = event.target.tagName === "BUTTON" && (key === " " || key === "Enter");
      if (onButton) return;
      if (controls.press(key)) { event.preventDefault(); return; }
      const does = { " ": pause, Enter: turn, r: again }[key];
      if (!does || event.repeat || (key === " " && event.target.type === "checkbox")) return;
      event.preventDefault();
      does();
    });
    window.addEventListener("keyup", (event) => controls.release(event.key.length === 1 ? event.key.toLowerCase() : event.key));
    window.addEventListener("blur", () => controls.releaseAll());
  }

  function pause() { paused = !paused; stale = true; }
  let wish = null;  // what a hand asked for, done between two steps
  function turn() { wish = began === null ? sleep : awake; }
  function again() { wish = restart; problem = ""; }

  async function time() {
    for (let due = performance.now(); ; ) {
      try {
        if (wish) { const done = wish; wish = null; await done(); stale = true; }
        if (!paused && !problem) await step();
      } catch (error) {
        problem = error.message;
        stale = true;
      }
      due = Math.max(due + 1000 / Number($("speed").value), performance.now() - 50);
      await new Promise((resolve) => setTimeout(resolve, Math.max(0, due - performance.now())));
    }
  }

  function frames() {
    if (stale) { stale = false; draw(); }
    requestAnimationFrame(frames);
  }

  async function start() {
    $("title").textContent = data.environment;
    $("title").append(Object.assign(document.createElement("span"), { textContent: `  ${data.rule}` }));
    document.title = `${data.environment}, ${data.rule}: worldmodel play`;
    dream = new Dream(data);
    const touched = () => { hands = true; $("random").checked = false; stale = true; };
    controls = new Controls($("controls"), data.controls, touched);
    truth = data.recordings ? new RecordedTruth(data.recordings, obsWidth, controls.width) : new SimulatedTruth();
    picture = new Picture($("picture"), $("figure"), data);
    charts.errors = new Chart($("errors"), { title: "error / variance", log: true, least: [0.01, 1.5] });
    charts.norm = new Chart($("norm"), { title: "‖h‖, norm of the hidden state", axis: true });
    $("recording").hidden = truth.drivable;
    for (const [i, episode] of (truth.episodes ?? []).entries()) $("episode").append(new Option(episode.name, i));
    $("episode").addEventListener("change", () => { truth.chosen = Number($("episode").value); again(); });
    for (let i = 0; i < data.entries.length; i += AT_ONCE) $("entries").append(new Option(`${i + 1}–${Math.min(i + AT_ONCE, data.entries.length)} of ${data.entries.length}`, i));
    $("shown").hidden = data.entries.length <= AT_ONCE;
    $("entries").addEventListener("change", chooseEntries);
    $("random").addEventListener("change", () => { if ($("random").checked) hands = true; });
    for (const [id, does] of Object.entries({ dream: turn, pause, again })) $(id).addEventListener("click", does);
    chooseEntries();
    keys();
    await restart();
    frames();
    time();
  }

  start().catch((error) => { $("status").textContent = error.message; $("status").classList.add("problem"); throw error; });
})();
