/**
 * The transformer: reference/model_solution.py's, forward and backward, for one row of tokens at a time. The heavy work
 * is in kernels.cpp; gradients of several rows add up until `zeroGradients`.
 */

/** @import { Block, Kernels } from "./kernels.js" */

/**
 * @typedef {"embedding" | "position" | "matrix" | "head" | "scalar"} Kind
 * @typedef {{name: string, kind: Kind, shape: number[], data: Block, grad: Block}} Parameter
 * @typedef {object} Config
 * @property {number} dModel
 * @property {number} heads
 * @property {number} layers
 * @property {number} context  tokens that the model sees at most
 * @property {number} tokens   rows of the embeddings
 * @property {number} rows     rows of the head; with `shared` the last one stands for that many tokens
 * @property {number} shared
 * @property {boolean} positions  true: there is a table of positions
 * @property {{base: number, fraction: number} | null} rotary  rotary positions on that fraction of a head
 * @property {number | null} smear  initial share of the previous token added to each; null adds none
 * @property {boolean} qkNorm  true: queries and keys are divided by their root mean square
 * @property {number | null} scale  of the scores; null is 1 / sqrt(d_model / heads)
 * @typedef {{layer: number, head: number, mode: "zero" | "mean"}} HeadOff
 */

const EPS = 1e-5; // of LayerNorm
const QK_EPS = 1e-6;
const CHUNK = 128; // rows of logits in memory at a time

/** As Python rounds: halves go to the even neighbour. @param {number} x */
const roundToEven = (x) => (x % 1 === 0.5 ? 2 * Math.round(x / 2) : Math.round(x));

export class Model {
  /** @param {Kernels} kernels @param {Config} config */
  constructor(kernels, config) {
    this.kernels = kernels;
    this.config = config;
    const { dModel: d, heads, layers, context: T, tokens, rows } = config;
    this.dHead = d / heads;
    this.scale = config.scale ?? 1 / Math.sqrt(this.dHead);
    this.pairs = config.rotary ? roundToEven(Math.floor(this.dHead / 2) * config.rotary.fraction) : 0;
    /** @type {Parameter[]} */
    this.parameters = [];
    const make = (/** @type {string} */ name, /** @type {Kind} */ kind, /** @type {number[]} */ ...shape) => {
      const size = shape.reduce((a, b) => a * b, 1);
      const parameter = { name, kind, shape, data: kernels.alloc(size), grad: kernels.alloc(size) };
      this.parameters.push(parameter);
      return parameter;
    };
    const linear = (/** @type {string} */ name, /** @type {number} */ to, /** @type {number} */ from) => ({
      weight: make(`${name}.weight`, "matrix", to, from),
      bias: make(`${name}.bias`, "scalar", to),
    });
    const norm = (/** @type {string} */ name) => ({ gain: make(`${name}.weight`, "scalar", d), bias: make(`${name}.bias`, "scalar", d) });
    this.embeddings = make("embeddings.weight", "embedding", tokens, d);
    this.positions = config.positions ? make("position_embeddings.weight", "position", T, d) : null;
    this.smear = config.smear === null ? null : make("inputs.0.shares", "scalar", 1, d);
    this.blocks = Array.from({ length: layers }, (_, i) => ({
      norm1: norm(`backbone.${i}.pre_layer_norm`),
      qkv: linear(`backbone.${i}.attention.W_qkv`, 3 * d, d),
      out: linear(`backbone.${i}.attention.W_o`, d, d),
      norm2: norm(`backbone.${i}.post_layer_norm`),
      up: linear(`backbone.${i}.mlp.fc1`, 4 * d, d),
      down: linear(`backbone.${i}.mlp.fc2`, d, 4 * d),
    }));
    this.finalNorm = norm("final_layer_norm");
    this.head = make("lm_head.weight", "head", rows, d);

    const alloc = kernels.alloc;
    this.ids = alloc(T);
    this.embedded = alloc(T * d);
    this.targets = alloc(T);
    this.losses = alloc(T);
    this.saved = Array.from({ length: layers }, () => ({
      x: alloc(T * d), normed: alloc(T * d), stats1: alloc(2 * T), qkv: alloc(3 * T * d), turned: alloc(3 * T * d),
      rms: alloc(2 * heads * T), weights: alloc(heads * T * T), mixed: alloc(T * d), middle: alloc(T * d),
      normed2: alloc(T * d), stats2: alloc(2 * T), wide: alloc(4 * T * d), active: alloc(4 * T * d),
    })); // prettier-ignore
    this.last = { x: alloc(T * d), stats: alloc(2 * T), hidden: alloc(T * d) };
    this.grad = { x: alloc(T * d), a: alloc(4 * T * d), b: alloc(T * d), qkv: alloc(3 * T * d), scores: alloc(64 * T) };
    this.width = (rows + 3) & ~3; // logits of a token, in whole vectors
    this.logits = alloc(Math.min(CHUNK, T) * this.width);
    this.angles = alloc(Math.max(2 * T * this.pairs, 4));
    this.fillAngles();
    for (const { gain } of [this.finalNorm, ...this.blocks.flatMap((b) => [b.norm1, b.norm2])]) kernels.floats(gain.data).fill(1);
    if (this.smear) kernels.floats(this.smear.data).fill(config.smear ?? 0);
    /** @type {HeadOff[]} heads whose output is replaced before the output projection */
    this.off = [];
    /** @type {Float32Array[][]} mean output of each layer's heads, for the mode "mean" */
    this.means = [];
  }

  fillAngles() {
    if (!this.config.rotary) return;
    const table = this.kernels.floats(this.angles);
    for (let t = 0; t < this.config.context; t++) {
      for (let i = 0; i < this.pairs; i++) {
        const angle = t * Math.fround(this.config.rotary.base ** (-i / this.pairs));
        table.set([Math.cos(angle), Math.sin(angle)], 2 * (t * this.pairs + i));
      }
    }
  }

  zeroGradients() {
    for (const { grad } of this.parameters) this.kernels.call.fill(grad.at, grad.length, 0);
  }

  // y[T, to] = x[T, from] W^T + bias, and its gradients
  /** @param {Block} x @param {{weight: Parameter, bias: Parameter}} map @param {Block} y @param {number} T @param {number} add */
  linear(x, { weight, bias }, y, T, add) {
    const [to, from] = weight.shape;
    this.kernels.call.product(T, to, from, x.at, from, 1, weight.data.at, 1, from, y.at, to, add);
    this.kernels.call.add_bias(y.at, bias.data.at, T, to);
  }

  /** @param {Block} dy @param {Block} x @param {{weight: Parameter, bias: Parameter}} map @param {Block} dx @param {number} T */
  linearBackward(dy, x, { weight, bias }, dx, T) {
    const [to, from] = weight.shape;
    const { call } = this.kernels;
    call.product(to, from, T, dy.at, 1, to, x.at, from, 1, weight.grad.at, from, 1);
    call.bias_backward(dy.at, bias.grad.at, T, to);
    call.product(T, from, to, dy.at, to, 1, weight.data.at, from, 1, dx.at, from, 0);
  }

  /** @param {Block} from @param {Block} to @param {number} n */
  copy(from, to, n) {
    this.kernels.floats(to).set(this.kernels.floats(from).subarray(0, n));
  }

  /** The normalised output of the last layer for a row of token numbers, in `last.hidden`. @param {ArrayLike<number>} ids */
  hidden(ids) {
    const { call, size } = this.kernels;
    const { dModel: d, heads } = this.config;
    const T = ids.length;
    const D = this.dHead;
    this.kernels.words(this.ids).set(ids);
    let x = this.saved.length ? this.saved[0].x : this.last.x;
    call.embed(this.ids.at, this.embeddings.data.at, this.positions ? this.positions.data.at : 0, x.at, T, d);
    if (this.smear) this.addPrevious(x, T, d);
    this.blocks.forEach((block, l) => {
      const s = this.saved[l];
      call.layer_norm(s.x.at, block.norm1.gain.data.at, block.norm1.bias.data.at, s.normed.at, s.stats1.at, T, d, EPS);
      this.linear(s.normed, block.qkv, s.qkv, T, 0);
      const qk = this.turns ? s.turned : s.qkv;
      for (let h = 0; h < heads; h++) {
        const at = size * h * D;
        if (this.turns) {
          for (const [part, rms] of [[0, 0], [1, heads * T]]) {
            const offset = at + size * part * d;
            call.norm_rotate(s.qkv.at + offset, s.turned.at + offset, s.rms.at + size * (rms + h * T), this.angles.at, T, D, 3 * d, this.pairs, +this.config.qkNorm, QK_EPS);
          }
        }
        call.attention(qk.at + at, qk.at + at + size * d, s.qkv.at + at + 2 * size * d, s.weights.at + size * h * T * T, s.mixed.at + at, T, D, 3 * d, 3 * d, d, this.scale);
      }
      this.switchOff(l, T);
      const next = l + 1 < this.blocks.length ? this.saved[l + 1].x : this.last.x;
      this.copy(s.x, s.middle, T * d);
      this.linear(s.mixed, block.out, s.middle, T, 1);
      call.layer_norm(s.middle.at, block.norm2.gain.data.at, block.norm2.bias.data.at, s.normed2.at, s.stats2.at, T, d, EPS);
      this.linear(s.normed2, block.up, s.wide, T, 0);
      call.gelu(s.wide.at, s.active.at, 4 * T * d);
      this.copy(s.middle, next, T * d);
      this.linear(s.active, block.down, next, T, 1);
      x = next;
    });
    call.layer_norm(x.at, this.finalNorm.gain.data.at, this.finalNorm.bias.data.at, this.last.hidden.at, this.last.stats.at, T, d, EPS);
  }

  /** x[t] += share * x[t - 1]; `embedded` keeps x as it was. @param {Block} x @param {number} T @param {number} d */
  addPrevious(x, T, d) {
    this.copy(x, this.embedded, T * d);
    const [to, from] = [this.kernels.floats(x), this.kernels.floats(this.embedded)];
    const share = this.kernels.floats(/** @type {Parameter} */ (this.smear).data);
    for (let i = d; i < T * d; i++) to[i] += share[i % d] * from[i - d];
  }

  /** The gradients of the shares, and dx from that of the sum to that of x. @param {Parameter} smear @param {Block} dx @param {number} T @param {number} d */
  addPreviousBackward(smear, dx, T, d) {
    const [to, from] = [this.kernels.floats(dx), this.kernels.floats(this.embedded)];
    const [share, grad] = [this.kernels.floats(smear.data), this.kernels.floats(smear.grad)];
    for (let i = d; i < T * d; i++) {
      grad[i % d] += to[i] * from[i - d];
      to[i - d] += share[i % d] * to[i];
    }
  }

  get turns() {
    return this.pairs > 0 || this.config.qkNorm;
  }

  /** Replace the outputs of the heads that are off. @param {number} layer @param {number} T */
  switchOff(layer, T) {
    const here = this.off.filter((off) => off.layer === layer);
    if (!here.length) return;
    const mixed = this.kernels.floats(this.saved[layer].mixed);
    const d = this.config.dModel;
    for (const { head, mode } of here) {
      for (let t = 0; t < T; t++) {
        for (let i = 0; i < this.dHead; i++) mixed[t * d + head * this.dHead + i] = mode === "mean" ? this.means[layer][head][i] : 0;
      }
    }
  }

  /**
   * The losses of a row's tokens 1.. given tokens 0.., in nats. `scale` other than 0 adds scale times the gradient of
   * their sum to the gradients.
   * @param {ArrayLike<number>} inputs embedding rows [T] @param {ArrayLike<number>} targets head rows [T] @param {number} scale
   */
  row(inputs, targets, scale) {
    const T = inputs.length;
    const { call, size } = this.kernels;
    const { dModel: d, rows, shared } = this.config;
    this.hidden(inputs);
    this.kernels.words(this.targets).set(targets);
    const dh = this.grad.b;
    for (let at = 0; at < T; at += CHUNK) {
      const n = Math.min(CHUNK, T - at);
      const h = this.last.hidden.at + size * at * d;
      call.product(n, rows, d, h, d, 1, this.head.data.at, 1, d, this.logits.at, this.width, 0);
      call.cross_entropy(this.logits.at, this.targets.at + 4 * at, this.losses.at + size * at, n, rows, this.width, shared, scale || 1);
      if (!scale) continue;
      call.product(n, d, rows, this.logits.at, this.width, 1, this.head.data.at, d, 1, dh.at + size * at * d, d, 0);
      call.product(rows, d, n, this.logits.at, 1, this.width, h, d, 1, this.head.grad.at, d, 1);
    }
    if (scale) this.backward(T);
    return this.kernels.floats(this.losses).slice(0, T);
  }

  /** From the gradient of the hidden states in `grad.b` to those of all parameters. @param {number} T */
  backward(T) {
    const { call, size } = this.kernels;
    const { dModel: d, heads } = this.config;
    const D = this.dHead;
    const { x: dx, a: wide, b: small, qkv: dqkv, scores } = this.grad;
    call.fill(dx.at, T * d, 0);
    const f = this.finalNorm;
    call.layer_norm_backward(small.at, this.last.x.at, f.gain.data.at, this.last.stats.at, dx.at, f.gain.grad.at, f.bias.grad.at, T, d);
    for (let l = this.blocks.length - 1; l >= 0; l--) {
      const block = this.blocks[l];
      const s = this.saved[l];
      this.linearBackward(dx, s.active, block.down, wide, T);
      call.gelu_backward(wide.at, s.wide.at, 4 * T * d);
      this.linearBackward(wide, s.normed2, block.up, small, T);
      const n2 = block.norm2;
      call.layer_norm_backward(small.at, s.middle.at, n2.gain.data.at, s.stats2.at, dx.at, n2.gain.grad.at, n2.bias.grad.at, T, d);
      this.linearBackward(dx, s.mixed, block.out, small, T);
      call.fill(dqkv.at, 3 * T * d, 0);
      const qk = this.turns ? s.turned : s.qkv;
      for (let h = 0; h < heads; h++) {
        const at = size * h * D;
        const [q, k, v] = [at, at + size * d, at + 2 * size * d];
        call.attention_backward(qk.at + q, qk.at + k, s.qkv.at + v, s.weights.at + size * h * T * T, small.at + at, dqkv.at + q, dqkv.at + k, dqkv.at + v, scores.at, T, D, 3 * d, 3 * d, d, this.scale);
        if (!this.turns) continue;
        for (const [offset, rms] of [[q, 0], [k, heads * T]]) {
          call.norm_rotate_backward(dqkv.at + offset, s.qkv.at + offset, s.rms.at + size * (rms + h * T), this.angles.at, T, D, 3 * d, this.pairs, +this.config.qkNorm);
        }
      }
      this.linearBackward(dqkv, s.normed, block.qkv, small, T);
      const n1 = block.norm1;
      call.layer_norm_backward(small.at, s.x.at, n1.gain.data.at, s.stats1.at, dx.at, n1.gain.grad.at, n1.bias.grad.at, T, d);
    }
    if (this.smear) this.addPreviousBackward(this.smear, dx, T, d);
    call.embed_backward(this.ids.at, dx.at, this.embeddings.grad.at, this.positions ? this.positions.grad.at : 0, T, d);
  }

  /** Attention of the last row: weights[layer][head] is a [T, T] array. @param {number} T */
  maps(T) {
    return this.saved.map(({ weights }) => {
      const all = this.kernels.floats(weights);
      return Array.from({ length: this.config.heads }, (_, h) => all.slice(h * T * T, (h + 1) * T * T));
    });
  }

  /** Logits of the token after a row, one for each row of the head. @param {ArrayLike<number>} ids */
  next(ids) {
    this.hidden(ids);
    const { dModel: d, rows } = this.config;
    this.kernels.call.product(1, rows, d, this.last.hidden.at + this.kernels.size * (ids.length - 1) * d, d, 1, this.head.data.at, 1, d, this.logits.at, this.width, 0);
    return this.kernels.floats(this.logits).slice(0, rows);
  }
}
