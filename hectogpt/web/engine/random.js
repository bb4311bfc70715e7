/** The same random numbers as in Python, from the same seeds: torch's normal numbers and numpy's Philox. */

/** The Mersenne Twister, which is torch's CPU generator. */
class MersenneTwister {
  /** @param {number} seed only its low 32 bits are used */
  constructor(seed) {
    const s = (this.state = new Uint32Array(624));
    s[0] = seed >>> 0;
    for (let i = 1; i < 624; i++) s[i] = Math.imul(1812433253, s[i - 1] ^ (s[i - 1] >>> 30)) + i;
    this.next = 624;
  }

  /** The next integer, from 0 to 2^32 - 1. */
  draw() {
    if (this.next === 624) this.twist();
    let y = this.state[this.next++];
    y ^= y >>> 11;
    y ^= (y << 7) & 0x9d2c5680;
    y ^= (y << 15) & 0xefc60000;
    return (y ^ (y >>> 18)) >>> 0;
  }

  twist() {
    const s = this.state;
    for (let i = 0; i < 624; i++) {
      const y = (s[i] & 0x80000000) | (s[(i + 1) % 624] & 0x7fffffff);
      s[i] = s[(i + 397) % 624] ^ (y >>> 1) ^ (y & 1 ? 0x9908b0df : 0);
    }
    this.next = 0;
  }
}

/** torch.Generator().manual_seed(seed), for `torch.empty(n).normal_(0, std)`; equal to torch's to about 1e-6. */
export class TorchNormal {
  /** @param {number} seed */
  constructor(seed) {
    this.twister = new MersenneTwister(seed);
  }

  uniform() {
    return (this.twister.draw() & 0xffffff) / 0x1000000;
  }

  /** @param {Float32Array} out at least 16 numbers @param {number} std */
  fill(out, std) {
    if (out.length < 16) throw new Error("torch draws fewer than 16 numbers in a different way");
    for (let i = 0; i < out.length; i++) out[i] = this.uniform();
    for (let i = 0; i + 16 <= out.length; i += 16) boxMuller(out, i, std);
    if (out.length % 16) {
      const last = out.length - 16;
      for (let i = last; i < out.length; i++) out[i] = this.uniform();
      boxMuller(out, last, std);
    }
    return out;
  }
}

/** Turn sixteen uniform numbers into normal ones, in place. @param {Float32Array} x @param {number} at @param {number} std */
function boxMuller(x, at, std) {
  for (let i = at; i < at + 8; i++) {
    const radius = Math.sqrt(-2 * Math.log(1 - x[i])) * std;
    const angle = 2 * Math.PI * x[i + 8];
    x[i] = radius * Math.cos(angle);
    x[i + 8] = radius * Math.sin(angle);
  }
}

const WORD = (1n << 64n) - 1n;

/** n raw numbers of numpy's Philox4x64 with a key of two words. @param {number} n @param {[bigint, bigint]} key */
function philox(n, key) {
  const found = new BigUint64Array(n + 3);
  for (let block = 0; block * 4 < n; block++) {
    let [a, b, c, d] = [BigInt(block + 1), 0n, 0n, 0n];
    let [k, l] = key;
    for (let round = 0; round < 10; round++) {
      const p = 0xd2e7470ee14c6c93n * a;
      const q = 0xca5a826395121157n * c;
      [a, b, c, d] = [(q >> 64n) ^ b ^ k, q & WORD, (p >> 64n) ^ d ^ l, p & WORD];
      [k, l] = [(k + 0x9e3779b97f4a7c15n) & WORD, (l + 0xbb67ae8584caa73bn) & WORD];
    }
    [a, b, c, d].forEach((word, i) => (found[block * 4 + i] = word));
  }
  return found.subarray(0, n);
}

/** The order in which an epoch shows n sequences: hectogpt's `Shuffled`. @param {number} n @param {number} seed @param {number} epoch */
export function shuffledOrder(n, seed, epoch) {
  const numbers = philox(n, [BigInt(seed), BigInt(epoch)]);
  const compare = (/** @type {number} */ i, /** @type {number} */ j) => (numbers[i] < numbers[j] ? -1 : numbers[i] > numbers[j] ? 1 : i - j);
  return Array.from({ length: n }, (_, i) => i).sort(compare);
}
