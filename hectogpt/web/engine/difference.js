/** Paired differences of losses, window by window. */

/** @typedef {{delta: number, se: number, sums: number[], sizes: number[]}} Difference  in nats per token; sums over windows, and their numbers of tokens */

/** The mean over all tokens, and its standard error over windows (NaN for a single window). @param {number[]} sums @param {number[]} sizes @returns {Difference} */
export function meanDifference(sums, sizes) {
  const tokens = sizes.reduce((a, b) => a + b, 0);
  const delta = sums.reduce((a, b) => a + b, 0) / tokens;
  const k = sums.length;
  const squares = sums.reduce((total, sum, w) => total + (sum - delta * sizes[w]) ** 2, 0);
  return { delta, se: k > 1 ? Math.sqrt((squares * k) / (k - 1)) / tokens : NaN, sums, sizes };
}
