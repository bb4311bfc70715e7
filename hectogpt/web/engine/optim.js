/** AdamW with learning rates by kind, and Muon for the hidden matrices; the same numbers as hectogpt/training/optim. */

/** @import { Block } from "./kernels.js" */
/** @import { Kind, Model, Parameter } from "./model.js" */

/**
 * @typedef {object} AdamW
 * @property {number} lr
 * @property {[number, number]} betas
 * @property {number} eps
 * @property {number} weightDecay
 * @property {Partial<Record<Kind, number>>} lrs  own learning rates of kinds
 * @typedef {{lr: number, momentum: number, momentumStart: number, momentumSteps: number}} Muon
 */

const QUINTIC = [3.4445, -4.775, 2.0315]; // K. Jordan's quintic, which pushes singular values towards 1

export class Optimizer {
  /** @param {Model} model @param {AdamW} adamw @param {Muon | null} muon */
  constructor(model, adamw, muon) {
    this.model = model;
    this.adamw = adamw;
    this.muon = muon;
    this.state = model.parameters.map((p) => {
      const first = model.kernels.alloc(p.data.length);
      return { first, second: this.usesMuon(p) ? null : model.kernels.alloc(p.data.length) };
    });
    const largest = Math.max(0, ...model.parameters.filter((p) => this.usesMuon(p)).map((p) => p.data.length));
    const side = Math.max(0, ...model.parameters.filter((p) => this.usesMuon(p)).map((p) => Math.min(...p.shape)));
    this.update = model.kernels.alloc(Math.max(largest, 4));
    this.turned = model.kernels.alloc(Math.max(largest, 4));
    this.gram = model.kernels.alloc(Math.max(side * side, 4));
    this.square = model.kernels.alloc(Math.max(side * side, 4));
  }

  /** @param {Parameter} p */
  usesMuon(p) {
    return this.muon !== null && p.kind === "matrix";
  }

  /** Apply the gradients of 0-based `step`, every learning rate times `factor`. @param {number} step @param {number} factor */
  step(step, factor) {
    const { call } = this.model.kernels;
    const { betas, eps, weightDecay } = this.adamw;
    this.model.parameters.forEach((p, i) => {
      const { first, second } = this.state[i];
      if (!second) return this.muonStep(p, first, step, factor);
      const lr = (this.adamw.lrs[p.kind] ?? this.adamw.lr) * factor;
      const [one, two] = betas.map((beta) => 1 - beta ** (step + 1));
      call.adamw(p.data.at, p.grad.at, first.at, second.at, p.data.length, betas[0], betas[1], eps, 1 - lr * weightDecay, lr / one, Math.sqrt(two));
    });
  }

  /** @param {Parameter} p @param {Block} buffer @param {number} step @param {number} factor */
  muonStep(p, buffer, step, factor) {
    const muon = /** @type {Muon} */ (this.muon);
    const { call, size } = this.model.kernels;
    const share = muon.momentumSteps ? Math.min(step / muon.momentumSteps, 1) : 1;
    const momentum = muon.momentumStart + (muon.momentum - muon.momentumStart) * share;
    call.lerp(buffer.at, p.grad.at, buffer.length, momentum);
    const stacked = p.name.includes("W_qkv") ? 3 : 1; // queries, keys and values are three matrices
    const rows = p.shape[0] / stacked;
    const columns = p.shape[1];
    for (let part = 0; part < stacked; part++) {
      const offset = size * part * rows * columns;
      const n = rows * columns;
      const update = this.update.at;
      call.fill(update, n, 0);
      call.add_scaled(update, buffer.at + offset, n, 1);
      call.lerp(update, p.grad.at + offset, n, momentum); // Nesterov
      this.orthogonalize(rows, columns);
      call.add_scaled(p.data.at + offset, update, n, -muon.lr * factor * Math.sqrt(Math.max(1, rows / columns)));
    }
  }

  /** Newton-Schulz on `update`, five steps. @param {number} rows @param {number} columns */
  orthogonalize(rows, columns) {
    const { call } = this.model.kernels;
    const [x, y, gram, square] = [this.update.at, this.turned.at, this.gram.at, this.square.at];
    const [n, size] = [rows * columns, Math.min(rows, columns)];
    call.multiply(x, n, 1 / (Math.sqrt(call.square_sum(x, n)) + 1e-7));
    const wide = rows <= columns;
    const [along, across] = wide ? [columns, 1] : [1, columns]; // steps in memory along x's short and long side
    const long = Math.max(rows, columns);
    for (let i = 0; i < 5; i++) {
      call.product(size, size, long, x, along, across, x, across, along, gram, size, 0);
      call.product(size, size, size, gram, size, 1, gram, size, 1, square, size, 0);
      call.multiply(gram, size * size, QUINTIC[1]);
      call.add_scaled(gram, square, size * size, QUINTIC[2]);
      if (wide) call.product(rows, columns, rows, gram, size, 1, x, columns, 1, y, columns, 0);
      else call.product(rows, columns, columns, x, columns, 1, gram, 1, size, y, columns, 0);
      call.multiply(x, n, QUINTIC[0]);
      call.add_scaled(x, y, n, 1);
    }
  }
}

/** @typedef {{name: string, positions: boolean, rotary: {base: number, fraction: number} | null, qkNorm: boolean, smear: number | null, scale: number | null, adamw: AdamW, muon: Muon | null, decay?: {warmup: number, hold: number}}} Recipe */

/** @type {AdamW} */
const ASSIGNMENT = { lr: 1e-5, betas: [0.9, 0.999], eps: 1e-8, weightDecay: 0.01, lrs: {} };
/** @type {AdamW} */
const FAST = { lr: 5e-3, betas: [0.9, 0.95], eps: 1e-8, weightDecay: 0, lrs: {} };
/** @type {AdamW} */
const BY_KIND = { ...FAST, betas: [0.8, 0.95], eps: 1e-10, lrs: { embedding: 0.4, scalar: 0.03 } };
/** @type {Muon} */
export const JORDAN = { lr: 0.05, momentum: 0.95, momentumStart: 0.85, momentumSteps: 50 };
const PLAIN = { positions: true, rotary: null, smear: null, qkNorm: false, scale: null, muon: null };
const ROTARY = { ...PLAIN, positions: false, rotary: { base: 1024, fraction: 0.5 }, qkNorm: true, scale: 0.12, muon: JORDAN };
const WITH_HEAD = { ...BY_KIND, lrs: { ...BY_KIND.lrs, head: 0.03 } };

/** The rungs of hectogpt/lab/ladder.py that the page offers, from the assignment's baseline up, and the page's own recipe. @type {Recipe[]} */
export const RECIPES = [
  { name: "baseline", ...PLAIN, adamw: ASSIGNMENT },
  { name: "learning_rate", ...PLAIN, adamw: FAST },
  { name: "embedding_lr", ...PLAIN, adamw: BY_KIND },
  { name: "muon", ...PLAIN, adamw: BY_KIND, muon: JORDAN },
  { name: "rotary", ...ROTARY, adamw: BY_KIND },
  { name: "head_lr", ...ROTARY, adamw: WITH_HEAD },
  { name: "smear", ...ROTARY, adamw: WITH_HEAD, smear: 0.3 },
  { name: "browser", ...ROTARY, adamw: WITH_HEAD, smear: 0.3, decay: { warmup: 5, hold: 0.5 } },
];

/** The factor on learning rates at a 0-based step: hectogpt's LinearDecay, or 1. @param {Recipe} recipe @param {number} step @param {number} steps */
export function factorOf({ decay }, step, steps) {
  if (!decay) return 1;
  const start = Math.max(decay.hold * steps, Math.min(decay.warmup, steps));
  return Math.min(1, (step + 1) / decay.warmup) * (step < start ? 1 : Math.min(1, (steps - step) / (steps - start)));
}
