"use strict";
/* Evaluates programs of worldmodel/page/programs.py: lists of core ATen operations on tensors of fixed sizes.
   A tensor is {data: Float32Array, shape, kind}, contiguous. An operation is bound once to its arguments and to what it
   writes to; running a program then runs what was bound, in order, without allocating anything. */

const Engine = (() => {
  const OPS = {};
  const define = (name, bind) => { OPS[name] = bind; };
  const numel = (shape) => shape.reduce((n, size) => n * size, 1);
  const isTensor = (value) => value !== null && typeof value === "object" && value.data instanceof Float32Array;
  const axisOf = (axis, shape) => (axis < 0 ? axis + shape.length : axis);
  const make = (shape, kind = "f") => ({ data: new Float32Array(numel(shape)), shape, kind });

  function stridesOf(shape) {
    const strides = new Array(shape.length);
    for (let i = shape.length - 1, n = 1; i >= 0; n *= shape[i--]) strides[i] = n;
    return strides;
  }

  /* Where the entries of a shape lie if they are read by strides from a start. */
  function places(shape, strides, start = 0) {
    const found = new Int32Array(numel(shape)), index = new Array(shape.length).fill(0);
    for (let n = 0, at = start; n < found.length; n++) {
      found[n] = at;
      for (let i = shape.length - 1; i >= 0; i--) {
        at += strides[i];
        if (++index[i] < shape[i]) break;
        at -= strides[i] * shape[i];
        index[i] = 0;
      }
    }
    return found;
  }

  /* A tensor, or a number, read as if it had a shape: [data, where each entry lies]. */
  function spreadOver(value, shape) {
    if (!isTensor(value)) return [Float32Array.of(Number(value)), new Int32Array(numel(shape))];
    const own = stridesOf(value.shape), missing = shape.length - value.shape.length;
    const strides = shape.map((_, i) => (i < missing || value.shape[i - missing] === 1 ? 0 : own[i - missing]));
    return [value.data, places(shape, strides)];
  }

  const share = (x, out) => { out.data = x.data; return null; };
  function read(x, out, strides, start = 0) {
    const from = places(out.shape, strides, start), source = x.data, target = out.data;
    return () => { for (let i = 0; i < target.length; i++) target[i] = source[from[i]]; };
  }
  const once = (fill) => { fill(); return null; };

  // --- entry by entry ------------------------------------------------------------------------------------------------

  const unary = (f) => ([x], out) => () => {
    const from = x.data, to = out.data;
    for (let i = 0; i < to.length; i++) to[i] = f(from[i]);
  };
  const binary = (f) => ([a, b, alpha = 1], out) => {
    const [x, atX] = spreadOver(a, out.shape), [y, atY] = spreadOver(b, out.shape), to = out.data;
    return () => { for (let i = 0; i < to.length; i++) to[i] = f(x[atX[i]], y[atY[i]], alpha); };
  };
  const halfToEven = (x) => {
    const whole = Math.round(x);
    return Math.abs(x % 1) === 0.5 && whole % 2 !== 0 ? whole - 1 : whole;
  };
  /* Chebyshev's approximation of erfc, with a relative error below 1.2e-7 (Press et al. 1992, section 6.2). */
  function erfc(x) {
    const t = 1 / (1 + 0.5 * Math.abs(x));
    const series = [0.17087277, -0.82215223, 1.48851587, -1.13520398, 0.27886807, -0.18628806, 0.09678418, 0.37409196,
      1.00002368, -1.26551223].reduce((sum, c) => sum * t + c, 0);
    const tail = t * Math.exp(-x * x + series);
    return x >= 0 ? tail : 2 - tail;
  }

  define("add", binary((x, y, alpha) => x + alpha * y));
  define("sub", binary((x, y, alpha) => x - alpha * y));
  define("mul", binary((x, y) => x * y));
  define("div", binary((x, y) => x / y));
  define("pow", binary((x, y) => Math.pow(x, y)));
  define("remainder", binary((x, y) => x - y * Math.floor(x / y)));
  define("maximum", binary((x, y) => Math.max(x, y)));
  define("minimum", binary((x, y) => Math.min(x, y)));
  define("gt", binary((x, y) => +(x > y)));
  define("ge", binary((x, y) => +(x >= y)));
  define("lt", binary((x, y) => +(x < y)));
  define("le", binary((x, y) => +(x <= y)));
  define("eq", binary((x, y) => +(x === y)));
  define("ne", binary((x, y) => +(x !== y)));
  define("logical_and", binary((x, y) => +(x !== 0 && y !== 0)));
  define("logical_or", binary((x, y) => +(x !== 0 || y !== 0)));
  define("bitwise_and", binary((x, y) => x & y));
  define("bitwise_or", binary((x, y) => x | y));
  define("neg", unary((x) => -x));
  define("abs", unary(Math.abs));
  define("exp", unary(Math.exp));
  define("expm1", unary(Math.expm1));
  define("log", unary(Math.log));
  define("log2", unary(Math.log2));
  define("log1p", unary(Math.log1p));
  define("floor", unary(Math.floor));
  define("ceil", unary(Math.ceil));
  define("round", unary(halfToEven));
  define("sign", unary(Math.sign));
  define("sqrt", unary(Math.sqrt));
  define("rsqrt", unary((x) => 1 / Math.sqrt(x)));
  define("reciprocal", unary((x) => 1 / x));
  define("tanh", unary(Math.tanh));
  define("sin", unary(Math.sin));
  define("cos", unary(Math.cos));
  define("relu", unary((x) => Math.max(x, 0)));
  define("sigmoid", unary((x) => 1 / (1 + Math.exp(-x))));
  define("erf", unary((x) => 1 - erfc(x)));
  define("erfc", unary(erfc));
  define("logical_not", unary((x) => +(x === 0)));
  define("bitwise_not", ([x], out) => unary(x.kind === "b" ? (v) => +(v === 0) : (v) => ~v)([x], out));
  define("isnan", unary((x) => +Number.isNaN(x)));
  define("_to_copy", ([x], out) => {
    const f = { b: (v) => +(v !== 0), i: Math.trunc, f: (v) => v }[out.kind];
    return unary(f)([x], out);
  });
  define("where", ([condition, a, b], out) => {
    const [c, atC] = spreadOver(condition, out.shape), to = out.data;
    const [x, atX] = spreadOver(a, out.shape), [y, atY] = spreadOver(b, out.shape);
    return () => { for (let i = 0; i < to.length; i++) to[i] = c[atC[i]] !== 0 ? x[atX[i]] : y[atY[i]]; };
  });
  define("clamp", ([x, least, most], out) => {
    const [low, atLow] = spreadOver(least ?? -Infinity, out.shape), [high, atHigh] = spreadOver(most ?? Infinity, out.shape);
    const from = x.data, to = out.data;
    return () => { for (let i = 0; i < to.length; i++) to[i] = Math.min(Math.max(from[i], low[atLow[i]]), high[atHigh[i]]); };
  });

  // --- shapes --------------------------------------------------------------------------------------------------------

  define("view", ([x], out) => share(x, out));
  define("unsqueeze", ([x], out) => share(x, out));
  define("squeeze", ([x], out) => share(x, out));
  define("alias", ([x], out) => share(x, out));
  define("clone", ([x], out) => share(x, out));
  define("_unsafe_view", ([x], out) => share(x, out));
  define("detach", ([x], out) => share(x, out));
  define("copy_strided", ([x], out) => share(x, out));
  define("getitem", ([several, i], out) => share(several[i], out));
  define("expand", ([x], out) => { const [, from] = spreadOver(x, out.shape); return gathered(x, from, out); });
  define("permute", ([x, axes], out) => {
    const strides = stridesOf(x.shape);
    return read(x, out, axes.map((axis) => strides[axisOf(axis, x.shape)]));
  });
  define("slice", ([x, axis = 0, start = 0, , step = 1], out) => {
    const strides = stridesOf(x.shape), along = axisOf(axis, x.shape), size = x.shape[along];
    const first = Math.min(Math.max((start ?? 0) < 0 ? start + size : start ?? 0, 0), size);
    return read(x, out, strides.map((s, i) => (i === along ? s * step : s)), first * strides[along]);
  });
  define("select", ([x, axis, index], out) => {
    const strides = stridesOf(x.shape), along = axisOf(axis, x.shape);
    const at = index < 0 ? index + x.shape[along] : index;
    return read(x, out, strides.filter((_, i) => i !== along), at * strides[along]);
  });
  define("flip", ([x, axes], out) => {
    const strides = stridesOf(x.shape), turned = axes.map((axis) => axisOf(axis, x.shape));
    const start = turned.reduce((sum, axis) => sum + strides[axis] * (x.shape[axis] - 1), 0);
    return read(x, out, strides.map((s, i) => (turned.includes(i) ? -s : s)), start);
  });
  define("unfold", ([x, axis, , step], out) => {
    const strides = stridesOf(x.shape), along = axisOf(axis, x.shape);
    return read(x, out, [...strides.map((s, i) => (i === along ? s * step : s)), strides[along]]);
  });
  define("diagonal", ([x, offset = 0, first = 0, second = 1], out) => {
    const strides = stridesOf(x.shape), a = axisOf(first, x.shape), b = axisOf(second, x.shape);
    const start = offset >= 0 ? offset * strides[b] : -offset * strides[a];
    return read(x, out, [...strides.filter((_, i) => i !== a && i !== b), strides[a] + strides[b]], start);
  });
  define("split_with_sizes", ([x, sizes, axis = 0], out) => {
    let start = 0;
    const parts = out.map((part, i) => {
      const copy = OPS.slice([x, axis, start, null, 1], part);
      start += sizes[i];
      return copy;
    });
    return () => { for (const part of parts) part(); };
  });
  define("cat", ([parts, axis = 0], out) => {
    const along = axisOf(axis, out.shape), after = numel(out.shape.slice(along + 1)), row = out.shape[along] * after;
    const used = parts.filter((part) => part.data.length), rows = numel(out.shape.slice(0, along)), to = out.data;
    return () => {
      let start = 0;
      for (const part of used) {
        const width = part.shape[along] * after, from = part.data;
        for (let i = 0; i < rows; i++)
          for (let j = 0; j < width; j++) to[i * row + start + j] = from[i * width + j];
        start += width;
      }
    };
  });
  define("constant_pad_nd", ([x, pad, value = 0], out) => {
    const strides = stridesOf(out.shape), rank = x.shape.length;
    const before = x.shape.map((_, i) => pad[2 * (rank - 1 - i)] ?? 0);
    if (pad.some((n) => n < 0)) throw new Error("a negative padding");
    const at = places(x.shape, strides, before.reduce((sum, n, i) => sum + n * strides[i], 0));
    return () => { out.data.fill(Number(value)); for (let i = 0; i < at.length; i++) out.data[at[i]] = x.data[i]; };
  });
  define("repeat", ([x, times], out) => {
    const missing = times.length - x.shape.length, shape = [...new Array(missing).fill(1), ...x.shape];
    const strides = stridesOf(shape);
    return gathered(x, places(times.flatMap((n, i) => [n, shape[i]]), strides.flatMap((s) => [0, s])), out);
  });
  define("slice_scatter", ([x, part, axis = 0, start = 0, , step = 1], out) => {
    const strides = stridesOf(x.shape), along = axisOf(axis, x.shape), size = x.shape[along];
    const first = (start ?? 0) < 0 ? start + size : start ?? 0;
    const at = places(part.shape, strides.map((s, i) => (i === along ? s * step : s)), first * strides[along]);
    return () => { out.data.set(x.data); for (let i = 0; i < at.length; i++) out.data[at[i]] = part.data[i]; };
  });
  define("empty", () => null);
  define("full", ([, value], out) => once(() => out.data.fill(Number(value))));
  define("full_like", ([, value], out) => once(() => out.data.fill(Number(value))));
  define("scalar_tensor", ([value], out) => once(() => out.data.fill(Number(value))));
  define("arange", ([start, , step = 1], out) => once(() => out.data.forEach((_, i) => { out.data[i] = start + i * step; })));

  function gathered(x, from, out) {
    return () => { for (let i = 0; i < out.data.length; i++) out.data[i] = x.data[from[i]]; };
  }
  const wrapped = (index, size) => (index < 0 ? index + size : index);
  define("gather", ([x, axis, index], out) => {
    const strides = stridesOf(x.shape), along = axisOf(axis, x.shape), stride = strides[along], size = x.shape[along];
    const base = places(out.shape, strides.map((s, i) => (i === along ? 0 : s)));
    return () => {
      for (let i = 0; i < base.length; i++) out.data[i] = x.data[base[i] + wrapped(index.data[i], size) * stride];
    };
  });
  define("index", ([x, indices], out) => {
    const first = indices.findIndex((index) => index !== null), chosen = indices.slice(first);
    if (chosen.includes(null)) throw new Error("an index with gaps");
    const strides = stridesOf(x.shape), last = first + chosen.length, middle = out.shape.length - x.shape.length + chosen.length;
    const shape = out.shape.slice(first, first + middle), maps = chosen.map((index) => spreadOver(index, shape));
    const before = places(x.shape.slice(0, first), strides.slice(0, first));
    const after = places(x.shape.slice(last), strides.slice(last)), many = numel(shape);
    return () => {
      for (let b = 0, n = 0; b < before.length; b++)
        for (let m = 0; m < many; m++) {
          let at = before[b];
          maps.forEach(([data, from], k) => { at += wrapped(data[from[m]], x.shape[first + k]) * strides[first + k]; });
          for (let a = 0; a < after.length; a++) out.data[n++] = x.data[at + after[a]];
        }
    };
  });

  // --- along axes ----------------------------------------------------------------------------------------------------

  /* [where each group of entries begins, where its entries lie from there], of the groups along some axes. */
  function groups(x, axes) {
    const every = axes === null || axes === undefined || axes.length === 0, strides = stridesOf(x.shape);
    const along = every ? x.shape.map((_, i) => i) : [axes].flat().map((axis) => axisOf(axis, x.shape));
    const pick = (values, inside) => values.filter((_, i) => along.includes(i) === inside);
    return [false, true].map((inside) => places(pick(x.shape, inside), pick(strides, inside)));
  }
  const reduction = (start, step, end = (value) => value) => ([x, axes], out) => {
    const [outer, inner] = groups(x, axes);
    return () => {
      for (let i = 0; i < outer.length; i++) {
        let value = start;
        for (let j = 0; j < inner.length; j++) value = step(value, x.data[outer[i] + inner[j]]);
        out.data[i] = end(value, inner.length);
      }
    };
  };
  define("sum", reduction(0, (sum, x) => sum + x));
  define("mean", reduction(0, (sum, x) => sum + x, (sum, n) => sum / n));
  define("amax", reduction(-Infinity, Math.max));
  define("amin", reduction(Infinity, Math.min));
  define("any", reduction(0, (some, x) => some || +(x !== 0)));
  define("prod", reduction(1, (product, x) => product * x));
  define("linalg_vector_norm", ([x, order = 2, axes], out) => {
    if (order !== 2) throw new Error(`a norm of order ${order}`);
    return reduction(0, (sum, v) => sum + v * v, Math.sqrt)([x, axes], out);
  });
  define("var", ([x, axes, correction = 1], out) => {
    const [outer, inner] = groups(x, axes);
    return () => {
      for (let i = 0; i < outer.length; i++) {
        let mean = 0, square = 0;
        for (const j of inner) mean += x.data[outer[i] + j] / inner.length;
        for (const j of inner) square += (x.data[outer[i] + j] - mean) ** 2;
        out.data[i] = square / (inner.length - (correction ?? 1));
      }
    };
  });
  define("argmax", ([x, axis], out) => {
    const [outer, inner] = groups(x, axis ?? null);
    return () => {
      for (let i = 0; i < outer.length; i++) {
        let best = 0;
        for (let j = 1; j < inner.length; j++)
          if (x.data[outer[i] + inner[j]] > x.data[outer[i] + inner[best]]) best = j;
        out.data[i] = best;
      }
    };
  });
  define("cumsum", ([x, axis], out) => {
    const [outer, inner] = groups(x, axis);
    return () => {
      for (const begin of outer) {
        let sum = 0;
        for (const j of inner) out.data[begin + j] = sum += x.data[begin + j];
      }
    };
  });
  const softmax = (inLogs) => ([x, axis], out) => {
    const [outer, inner] = groups(x, axis);
    return () => {
      for (const begin of outer) {
        let most = -Infinity, sum = 0;
        for (const j of inner) most = Math.max(most, x.data[begin + j]);
        for (const j of inner) sum += Math.exp(x.data[begin + j] - most);
        for (const j of inner) {
          const value = x.data[begin + j] - most;
          out.data[begin + j] = inLogs ? value - Math.log(sum) : Math.exp(value) / sum;
        }
      }
    };
  };
  define("_softmax", softmax(false));
  define("_log_softmax", softmax(true));

  /* (x - mean) / deviation over blocks of `width` entries, then scaled and shifted by entry(place). */
  function standardised(x, out, width, epsilon, scale, shift, entry) {
    return () => {
      for (let begin = 0; begin < x.data.length; begin += width) {
        let mean = 0, square = 0;
        for (let i = 0; i < width; i++) mean += x.data[begin + i];
        mean /= width;
        for (let i = 0; i < width; i++) square += (x.data[begin + i] - mean) ** 2;
        const by = 1 / Math.sqrt(square / width + epsilon);
        for (let i = 0; i < width; i++) {
          const k = entry(begin + i);
          out.data[begin + i] = (x.data[begin + i] - mean) * by * (scale ? scale.data[k] : 1) + (shift ? shift.data[k] : 0);
        }
      }
    };
  }
  define("native_layer_norm", ([x, shape, scale, shift, epsilon], out) => {
    const width = numel(shape);
    return standardised(x, out[0], width, epsilon, scale, shift, (at) => at % width);
  });
  define("native_group_norm", ([x, scale, shift, , channels, size, count, epsilon], out) =>
    standardised(x, out[0], (channels / count) * size, epsilon, scale, shift, (at) => Math.floor(at / size) % channels));

  // --- products ------------------------------------------------------------------------------------------------------

  /* to (m, n) += a (m, k) b (k, n), each from its own start. */
  function multiply(a, b, to, m, k, n, atA = 0, atB = 0, atTo = 0) {
    for (let i = 0; i < m; i++)
      for (let p = 0; p < k; p++) {
        const x = a[atA + i * k + p], row = atB + p * n, target = atTo + i * n;
        if (x !== 0) for (let j = 0; j < n; j++) to[target + j] += x * b[row + j];
      }
  }
  define("mm", ([a, b], out) => () => {
    out.data.fill(0);
    multiply(a.data, b.data, out.data, a.shape[0], a.shape[1], b.shape[1]);
  });
  define("addmm", ([bias, a, b, beta = 1, alpha = 1], out) => {
    if (beta !== 1 || alpha !== 1) throw new Error("addmm with factors");
    const [start, from] = spreadOver(bias, out.shape);
    return () => {
      for (let i = 0; i < out.data.length; i++) out.data[i] = start[from[i]];
      multiply(a.data, b.data, out.data, a.shape[0], a.shape[1], b.shape[1]);
    };
  });
  define("bmm", ([a, b], out) => {
    const [count, m, k] = a.shape, n = b.shape[2];
    return () => {
      out.data.fill(0);
      for (let i = 0; i < count; i++) multiply(a.data, b.data, out.data, m, k, n, i * m * k, i * k * n, i * m * n);
    };
  });
  define("convolution", ([x, weight, bias, stride, padding, dilation, transposed, , count], out) => {
    if (count !== 1 || dilation.some((d) => d !== 1)) throw new Error("a convolution with groups or dilation");
    const [batch, inputs, h, w] = x.shape, [, outputs, height, width] = out.shape, [kh, kw] = weight.shape.slice(2);
    const taps = kh * kw, plane = height * width;
    // a large plane [rows, columns] is written to, or read from, at each place of a small one, the stride apart
    const [rows, columns, large] = transposed ? [h, w, [height, width]] : [height, width, [h, w]];
    return () => {
      const to = out.data, from = x.data;
      for (let c = 0; c < batch * outputs; c++) to.fill(bias ? bias.data[c % outputs] : 0, c * plane, (c + 1) * plane);
      for (let b = 0; b < batch; b++)
        for (let o = 0; o < outputs; o++)
          for (let i = 0; i < inputs; i++) {
            const kernel = (transposed ? i * outputs + o : o * inputs + i) * taps;
            const source = (b * inputs + i) * h * w, target = (b * outputs + o) * plane;
            for (let ky = 0; ky < kh; ky++)
              for (let kx = 0; kx < kw; kx++) {
                const factor = weight.data[kernel + ky * kw + kx];
                for (let y = 0; y < rows; y++) {
                  const far = y * stride[0] + ky - padding[0];
                  if (far < 0 || far >= large[0]) continue;
                  const least = Math.max(0, Math.ceil((padding[1] - kx) / stride[1]));
                  const most = Math.min(columns, Math.floor((large[1] - 1 + padding[1] - kx) / stride[1]) + 1);
                  if (transposed) {
                    const a = source + y * w, z = target + far * width + kx - padding[1];
                    for (let j = least; j < most; j++) to[z + j * stride[1]] += factor * from[a + j];
                  } else {
                    const a = source + far * w + kx - padding[1], z = target + y * width;
                    for (let j = least; j < most; j++) to[z + j] += factor * from[a + j * stride[1]];
                  }
                }
              }
          }
    };
  });

  // --- programs ------------------------------------------------------------------------------------------------------

  /* Base64 of float32 as a Float32Array. */
  function decoded(text) {
    const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
    return new Float32Array(bytes.buffer);
  }

  /* The weights of programs, name -> tensor. */
  const weightsOf = (encoded) =>
    Object.fromEntries(Object.entries(encoded).map(([name, [shape, text]]) => [name, { data: decoded(text), shape, kind: "f" }]));

  /* A function of a program's inputs, arrays of numbers, that gives its outputs as new Float32Arrays. */
  function program({ inputs, constants, nodes, outputs }, weights) {
    const values = {}, fixed = new Set(Object.keys(constants)), steps = [];
    for (const [name, key] of Object.entries(constants)) values[name] = weights[key];
    for (const [name, shape] of inputs) values[name] = make(shape);
    const resolve = (argument) => {
      if (Array.isArray(argument)) return argument.map(resolve);
      if (typeof argument !== "string") return argument;
      return argument.startsWith("%") ? values[argument] : Number(argument);
    };
    const isFixed = (argument) =>
      Array.isArray(argument) ? argument.every(isFixed) : typeof argument !== "string" || !argument.startsWith("%") || fixed.has(argument);
    for (const [name, operation, given, shape, kind] of nodes) {
      values[name] = Array.isArray(shape[0]) ? shape.map((each) => make(each)) : make(shape, kind);
      const step = OPS[operation](given.map((argument) => resolve(argument)).map((value) => value ?? undefined), values[name]);
      if (isFixed(given)) {
        fixed.add(name);
        if (step) step();
      } else if (step) steps.push(step);
    }
    const results = outputs.map(resolve);
    return (...given) => {
      given.forEach((array, i) => values[inputs[i][0]].data.set(array));
      for (const step of steps) step();
      return results.map((result) => Float32Array.from(result.data));
    };
  }

  return { program, weightsOf, decoded };
})();
