/** Split a text into training and held-out tokens, as `hectogpt train --corpus FILE` does, and count n-grams. */

/** @import { Tokenizer } from "./tokenizer.js" */

const MOST_TEXT = 10e6; // characters
const TRAIN_SHARE = 0.85;
const DEV_SHARE = 0.925;
const LEAST_SHARE = 0.02;
const [PASSAGES, SHORTEST, LONGEST, MANY] = [128, 64, 8192, 1000];

// Python's \s, character by character.
const PYTHON_SPACE = "\\t-\\r\\x1c-\\x20\\x85\\xa0\\u1680\\u2000-\\u200a\\u2028\\u2029\\u202f\\u205f\\u3000";
const BLANK_LINE = `\\n[${PYTHON_SPACE.replace("\\t-\\r", "\\t\\x0b-\\r")}]*\\n[${PYTHON_SPACE}]*|\\r[${PYTHON_SPACE.replace("\\t-\\r", "\\t-\\x0c")}]*\\r[${PYTHON_SPACE}]*`;
const BREAKS = [BLANK_LINE, "\\n|\\r(?!\\n)", `[${PYTHON_SPACE}](?=[^${PYTHON_SPACE}])`].map((pattern) => new RegExp(pattern));

/** @typedef {{train: Uint32Array, dev: Uint32Array, passages: number}} Corpus */

/** Cut a text into consecutive parts of `length` to 2 * length characters. @param {string[]} characters @param {number} length */
function cutPassages(characters, length) {
  const parts = [];
  let start = 0;
  while (characters.length - start > 2 * length) {
    const window = characters.slice(start + length, start + 2 * length).join("");
    let stop = start + 2 * length;
    for (const pattern of BREAKS) {
      const found = pattern.exec(window);
      if (!found) continue;
      stop = start + length + [...window.slice(0, found.index + found[0].length)].length;
      break;
    }
    parts.push(characters.slice(start, stop).join(""));
    start = stop;
  }
  parts.push(characters.slice(start).join(""));
  return parts;
}

/** @param {string} text @param {string} salt */
function splitOf(text, salt) {
  const hash = sha256(new TextEncoder().encode(salt + text));
  const number = hash[0] / 2 ** 32 + hash[1] / 2 ** 64;
  return number < TRAIN_SHARE ? "train" : number < DEV_SHARE ? "dev" : "test";
}

/** The passages of a text with their splits. Throws for a text that is too short. @param {string} text */
function assignSplits(text) {
  const characters = [...text];
  for (const repetitive of characters.length >= PASSAGES * SHORTEST ? [false, true] : [false]) {
    let length = Math.min(Math.max(Math.floor(characters.length / PASSAGES), SHORTEST), LONGEST);
    for (let count = 0; length >= SHORTEST && count < MANY; length = Math.floor(length / 2)) {
      const parts = cutPassages(characters, length).map((part, i) => ({ text: part, split: splitOf(part, repetitive ? `${i} ` : "") }));
      count = parts.length;
      /** @type {Record<string, number>} */
      const sizes = { train: 0, dev: 0, test: 0 };
      for (const part of parts) sizes[part.split] += [...part.text].length;
      if (Math.min(sizes.train, sizes.dev, sizes.test) >= LEAST_SHARE * characters.length) return parts;
    }
  }
  throw new Error(`The text is too short: it has ${characters.length.toLocaleString("en")} characters, and training and held-out text need at least ${(PASSAGES * SHORTEST).toLocaleString("en")} together.`);
}

/** @param {string} text @param {Tokenizer} tokenizer @returns {Corpus} */
export function readCorpus(text, tokenizer) {
  if (text.length > MOST_TEXT) throw new Error(`The text has ${Math.round(text.length / 1e6)} million characters; a tab reads at most ${MOST_TEXT / 1e6} million. Use a part of it, or run hectogpt train --corpus.`);
  if (!text.trim()) throw new Error("There is no text yet. Paste one, drop a file, or choose one from the list.");
  if (/\u0000/.test(text)) throw new Error("This is not a text file: it contains zero bytes. Drop a plain text file.");
  /** @type {Record<string, number[]>} */
  const ids = { train: [], dev: [], test: [] };
  const parts = assignSplits(text);
  for (const { text: part, split } of parts) {
    if (!part.trim()) continue;
    for (const id of tokenizer.encode(part)) ids[split].push(id);
    ids[split].push(tokenizer.endOfText);
  }
  return { train: Uint32Array.from(ids.train), dev: Uint32Array.from(ids.dev), passages: parts.length };
}

/** SHA-256 as eight words. @param {Uint8Array} bytes */
function sha256(bytes) {
  const k = new Uint32Array(64);
  const h = new Uint32Array(8);
  for (let n = 2, i = 0; i < 64; n++) {
    if ([...Array(n).keys()].some((d) => d > 1 && n % d === 0)) continue;
    if (i < 8) h[i] = (Math.sqrt(n) % 1) * 2 ** 32;
    k[i++] = (Math.cbrt(n) % 1) * 2 ** 32;
  }
  const padded = new Uint8Array(((bytes.length + 72) >> 6) << 6);
  padded.set(bytes);
  padded[bytes.length] = 0x80;
  const view = new DataView(padded.buffer);
  view.setUint32(padded.length - 4, bytes.length * 8);
  view.setUint32(padded.length - 8, Math.floor(bytes.length / 2 ** 29));
  const w = new Uint32Array(64);
  const turn = (/** @type {number} */ x, /** @type {number} */ n) => (x >>> n) | (x << (32 - n));
  for (let at = 0; at < padded.length; at += 64) {
    for (let i = 0; i < 64; i++) {
      if (i < 16) w[i] = view.getUint32(at + 4 * i);
      else {
        const [a, b] = [w[i - 15], w[i - 2]];
        w[i] = w[i - 16] + (turn(a, 7) ^ turn(a, 18) ^ (a >>> 3)) + w[i - 7] + (turn(b, 17) ^ turn(b, 19) ^ (b >>> 10));
      }
    }
    let [a, b, c, d, e, f, g, z] = h;
    for (let i = 0; i < 64; i++) {
      const one = (z + (turn(e, 6) ^ turn(e, 11) ^ turn(e, 25)) + ((e & f) ^ (~e & g)) + k[i] + w[i]) | 0;
      const two = ((turn(a, 2) ^ turn(a, 13) ^ turn(a, 22)) + ((a & b) ^ (a & c) ^ (b & c))) | 0;
      [z, g, f, e, d, c, b, a] = [g, f, e, (d + one) | 0, c, b, a, (one + two) | 0];
    }
    [a, b, c, d, e, f, g, z].forEach((word, i) => (h[i] += word));
  }
  return h;
}

const DISCOUNT = 0.75;
const ADDED = 0.1; // to every token's count, as hectogpt.lab.ngram does

/** @param {Map<number, number>} map @param {number} key @param {number} by */
const count = (map, key, by = 1) => map.set(key, (map.get(key) ?? 0) + by);

/**
 * Held-out cross entropy of count models, in nats per token: uniform, unigram, and Kneser-Ney bigram and trigram with one
 * discount (Chen and Goodman 1999), as in hectogpt.lab.ngram.
 * @param {{tokens: Uint32Array, n: number}[]} rows what the run reads, each n times @param {Uint32Array} heldOut @param {number} vocabulary
 */
export function ngramLosses(rows, heldOut, vocabulary) {
  const V = vocabulary;
  const one = new Map();
  const [two, three, continued] = [new Map(), new Map(), new Map()];
  let total = 0;
  for (const { tokens: row, n } of rows) {
    for (let i = 0; i < row.length; i++) {
      count(one, row[i], n);
      total += n;
      if (i > 0) count(two, row[i - 1] * V + row[i], n);
      if (i > 1) count(three, (row[i - 2] * V + row[i - 1]) * V + row[i], n);
    }
  }
  const before = new Map();
  for (const pair of two.keys()) count(before, pair % V);
  for (const triple of three.keys()) count(continued, triple % (V * V));
  const [bigrams, middles, trigrams] = [two, continued, three].map((table) => tableOf(table, V));
  const first = (/** @type {number} */ y) => ((before.get(y) ?? 0) + ADDED) / (two.size + ADDED * V);
  const bigram = (/** @type {number} */ x, /** @type {number} */ y) => bigrams(x, y, first(y));
  const trigram = (/** @type {number} */ w, /** @type {number} */ x, /** @type {number} */ y) => trigrams(w * V + x, y, middles(x, y, first(y)));
  const sums = [0, 0, 0];
  for (let i = 1; i < heldOut.length; i++) {
    const [x, y] = [heldOut[i - 1], heldOut[i]];
    sums[0] -= Math.log(((one.get(y) ?? 0) + ADDED) / (total + ADDED * V));
    sums[1] -= Math.log(bigram(x, y));
    sums[2] -= Math.log(i > 1 ? trigram(heldOut[i - 2], x, y) : bigram(x, y));
  }
  const [unigram, kn2, kn3] = sums.map((sum) => sum / Math.max(heldOut.length - 1, 1));
  return { uniform: Math.log(V), unigram, bigram: kn2, trigram: kn3 };
}

/** max(c - D, 0) / total + (D kinds / total) shorter, or `shorter` if the context never occurred. @param {Map<number, number>} table @param {number} V */
function tableOf(table, V) {
  const [totals, kinds] = [new Map(), new Map()];
  for (const [key, n] of table) {
    const context = Math.floor(key / V);
    count(totals, context, n);
    count(kinds, context);
  }
  return (/** @type {number} */ context, /** @type {number} */ y, /** @type {number} */ shorter) => {
    const total = totals.get(context);
    if (!total) return shorter;
    const n = table.get(context * V + y) ?? 0;
    return (Math.max(n - DISCOUNT, 0) + DISCOUNT * kinds.get(context) * shorter) / total;
  };
}
