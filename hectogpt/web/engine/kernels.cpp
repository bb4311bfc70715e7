// What a training step of a GPT-2 style transformer costs most, for WebAssembly: products of matrices, norms, GELU,
// attention and the softmax over the vocabulary, forward and backward, and AdamW. One thread, float32, no library.
//
// Built by build.sh with clang; kernels.wasm beside it is the result. The structure of the model is in model.js: it
// allocates every array here and calls these functions, as the textbook calls torch.
//
// Arrays are row-major. T is the number of tokens, d a width. "+=" in a comment means that a result is added to what
// the array holds, as gradients are.

typedef unsigned int u32;
typedef float f4 __attribute__((vector_size(16), aligned(4)));
typedef int i4 __attribute__((vector_size(16), aligned(4)));

#define EXPORT(name) extern "C" __attribute__((export_name(#name)))

extern "C" unsigned char __heap_base;

// --- memory: arrays are taken one after the other, and given back all at once -----------------------------------------

static u32 top = 0;

// The address of n new floats, all zero at first use; 0 if the browser gives no more memory.
EXPORT(alloc) float *alloc(u32 n) {
  if (!top) top = ((u32)&__heap_base + 15) & ~15u;
  const u32 begin = top, bytes = (n * 4 + 15) & ~15u;
  if (n > (1u << 30) - 4 || bytes > ~0u - begin) return 0;
  const u32 pages = (begin + bytes + 65535) >> 16, have = __builtin_wasm_memory_size(0);
  if (pages > have && __builtin_wasm_memory_grow(0, pages - have) == (__SIZE_TYPE__)-1) return 0;
  top = begin + bytes;
  return (float *)begin;
}
EXPORT(mark) u32 mark() { return top; }
EXPORT(release) void release(u32 to) { top = to; }

EXPORT(fill) void fill(float *x, u32 n, float value) {
  for (u32 i = 0; i < n; i++) x[i] = value;
}

// --- elementary functions ---------------------------------------------------------------------------------------------

static inline f4 splat(float x) { return (f4){x, x, x, x}; }
static inline f4 larger(f4 a, f4 b) { return __builtin_wasm_pmax_f32x4(a, b); }
static inline f4 smaller(f4 a, f4 b) { return __builtin_wasm_pmin_f32x4(a, b); }

// exp by x = n ln 2 + r and the polynomial of the Cephes library; relative error 2e-7 from -87 to 88.
static inline f4 exp4(f4 x) {
  const f4 lo = splat(-87.0f), hi = splat(88.0f), magic = splat(12582912.0f); // 1.5 * 2^23: adding it rounds to integers
  x = smaller(larger(x, lo), hi);
  const f4 moved = x * 1.44269504088896341f + magic, n = moved - magic; // n is in the last bits of `moved`
  const f4 r = (x - n * 0.693359375f) - n * -2.12194440e-4f;
  f4 p = splat(1.9875691500e-4f);
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  const i4 power = ((i4)moved + 127) << 23;
  return p * (f4)power;
}
static inline float exp1(float x) { return exp4(splat(x))[0]; }

// The natural logarithm of a positive number, by ln((1 + s) / (1 - s)) = 2 (s + s^3 / 3 + ...).
static double log1(double x) {
  union { double value; unsigned long long bits; } u = {x};
  int e = (int)(u.bits >> 52) - 1023;
  u.bits = (u.bits & 0xfffffffffffffULL) | (1023ULL << 52);
  if (u.value > 1.4142135623730951) { u.value /= 2; e++; }
  const double s = (u.value - 1) / (u.value + 1), q = s * s;
  double sum = 0;
  for (int k = 21; k >= 1; k -= 2) sum = sum * q + 1.0 / k;
  return 2 * s * sum + e * 0.6931471805599453;
}

static inline float sum4(f4 x) { return (x[0] + x[1]) + (x[2] + x[3]); }
static inline float max4(f4 x) {
  const float a = x[0] > x[1] ? x[0] : x[1], b = x[2] > x[3] ? x[2] : x[3];
  return a > b ? a : b;
}

// --- products of matrices -----------------------------------------------------------------------------------------------

enum { ROWS = 4, COLS = 8, DEPTH = 256, BLOCK_M = 256, BLOCK_N = 128 };
static float packed_a[BLOCK_M * DEPTH], packed_b[BLOCK_N * DEPTH];

// Panels of ROWS rows, zeros below the last row: packed_a[panel][k][row].
static void pack_a(const float *a, u32 row, u32 col, u32 m, u32 k) {
  float *to = packed_a;
  for (u32 i = 0; i < m; i += ROWS) {
    const float *from = a + i * row;
    if (i + ROWS <= m && row == 1)
      for (u32 l = 0; l < k; l++, to += ROWS) *(f4 *)to = *(const f4 *)(from + l * col);
    else if (i + ROWS <= m)
      for (u32 l = 0; l < k; l++, to += ROWS, from += col)
        *(f4 *)to = (f4){from[0], from[row], from[2 * row], from[3 * row]};
    else
      for (u32 l = 0; l < k; l++)
        for (u32 r = 0; r < ROWS; r++) *to++ = i + r < m ? from[r * row + l * col] : 0.0f;
  }
}
static void pack_b(const float *b, u32 row, u32 col, u32 k, u32 n) {
  float *to = packed_b;
  for (u32 j = 0; j < n; j += COLS)
    for (u32 l = 0; l < k; l++) {
      const float *from = b + l * row + j * col;
      if (col == 1 && j + COLS <= n) {
        *(f4 *)to = *(const f4 *)from;
        *(f4 *)(to + 4) = *(const f4 *)(from + 4);
      } else {
        for (u32 c = 0; c < COLS; c++) to[c] = j + c < n ? from[c * col] : 0.0f;
      }
      to += COLS;
    }
}
static void micro(u32 k, const float *a, const float *b, f4 *c) {
  f4 c00 = splat(0), c01 = c00, c10 = c00, c11 = c00, c20 = c00, c21 = c00, c30 = c00, c31 = c00;
  for (u32 l = 0; l < k; l++, a += ROWS, b += COLS) {
    const f4 b0 = *(const f4 *)b, b1 = *(const f4 *)(b + 4);
    const f4 a0 = splat(a[0]), a1 = splat(a[1]), a2 = splat(a[2]), a3 = splat(a[3]);
    c00 += a0 * b0; c01 += a0 * b1;
    c10 += a1 * b0; c11 += a1 * b1;
    c20 += a2 * b0; c21 += a2 * b1;
    c30 += a3 * b0; c31 += a3 * b1;
  }
  c[0] = c00; c[1] = c01; c[2] = c10; c[3] = c11; c[4] = c20; c[5] = c21; c[6] = c30; c[7] = c31;
}

// c[m, n] = a[m, k] b[k, n] (+= if add), with the distance of neighbours in each direction, so that either may be
// transposed. Rows of c are ldc apart.
EXPORT(product)
void product(u32 m, u32 n, u32 k, const float *a, u32 a_row, u32 a_col, const float *b, u32 b_row, u32 b_col, float *c,
             u32 ldc, u32 add) {
  for (u32 l = 0; l < k; l += DEPTH) {
    const u32 depth = k - l < DEPTH ? k - l : DEPTH;
    const bool adds = add || l;
    for (u32 j = 0; j < n; j += BLOCK_N) {
      const u32 width = n - j < BLOCK_N ? n - j : BLOCK_N;
      pack_b(b + l * b_row + j * b_col, b_row, b_col, depth, width);
      for (u32 i = 0; i < m; i += BLOCK_M) {
        const u32 height = m - i < BLOCK_M ? m - i : BLOCK_M;
        pack_a(a + i * a_row + l * a_col, a_row, a_col, height, depth);
        for (u32 y = 0; y < height; y += ROWS)
          for (u32 x = 0; x < width; x += COLS) {
            f4 tile[ROWS * 2];
            micro(depth, packed_a + y * depth, packed_b + x * depth, tile);
            const u32 rows = height - y < ROWS ? height - y : ROWS, cols = width - x < COLS ? width - x : COLS;
            for (u32 r = 0; r < rows; r++) {
              float *to = c + (i + y + r) * ldc + j + x;
              if (cols == COLS) {
                f4 *wide = (f4 *)to;
                wide[0] = adds ? wide[0] + tile[2 * r] : tile[2 * r];
                wide[1] = adds ? wide[1] + tile[2 * r + 1] : tile[2 * r + 1];
              } else {
                const float *from = (const float *)(tile + 2 * r);
                for (u32 q = 0; q < cols; q++) to[q] = adds ? to[q] + from[q] : from[q];
              }
            }
          }
      }
    }
  }
}

// y[T, n] += bias, and its gradient: dbias[n] += sums over the tokens.
EXPORT(add_bias) void add_bias(float *y, const float *bias, u32 T, u32 n) {
  for (u32 t = 0; t < T; t++)
    for (u32 i = 0; i < n; i++) y[t * n + i] += bias[i];
}
EXPORT(bias_backward) void bias_backward(const float *dy, float *dbias, u32 T, u32 n) {
  for (u32 t = 0; t < T; t++)
    for (u32 i = 0; i < n; i++) dbias[i] += dy[t * n + i];
}

// --- embeddings -----------------------------------------------------------------------------------------------------------

// x[T, d] = table[ids] + positions[0 .. T-1] (positions 0: none)
EXPORT(embed) void embed(const u32 *ids, const float *table, const float *positions, float *x, u32 T, u32 d) {
  for (u32 t = 0; t < T; t++)
    for (u32 i = 0; i < d; i++) x[t * d + i] = table[ids[t] * d + i] + (positions ? positions[t * d + i] : 0.0f);
}
EXPORT(embed_backward)
void embed_backward(const u32 *ids, const float *dx, float *dtable, float *dpositions, u32 T, u32 d) {
  for (u32 t = 0; t < T; t++)
    for (u32 i = 0; i < d; i++) {
      dtable[ids[t] * d + i] += dx[t * d + i];
      if (dpositions) dpositions[t * d + i] += dx[t * d + i];
    }
}

// --- norms ----------------------------------------------------------------------------------------------------------------

// LayerNorm. y = gain (x - mean) / sqrt(variance + eps) + bias; saved[T, 2] keeps mean and 1 / sqrt(variance + eps).
EXPORT(layer_norm)
void layer_norm(const float *x, const float *gain, const float *bias, float *y, float *saved, u32 T, u32 d, float eps) {
  for (u32 t = 0; t < T; t++, x += d, y += d) {
    double mean = 0, variance = 0;
    for (u32 i = 0; i < d; i++) mean += x[i];
    mean /= d;
    for (u32 i = 0; i < d; i++) variance += (x[i] - mean) * (x[i] - mean);
    const float scale = (float)(1.0 / __builtin_sqrt(variance / d + eps)), m = (float)mean;
    saved[2 * t] = m;
    saved[2 * t + 1] = scale;
    for (u32 i = 0; i < d; i++) y[i] = gain[i] * (x[i] - m) * scale + bias[i];
  }
}
// dx[T, d] += the gradient; dgain, dbias += theirs.
EXPORT(layer_norm_backward)
void layer_norm_backward(const float *dy, const float *x, const float *gain, const float *saved, float *dx, float *dgain,
                         float *dbias, u32 T, u32 d) {
  for (u32 t = 0; t < T; t++, x += d, dy += d, dx += d) {
    const float m = saved[2 * t], scale = saved[2 * t + 1];
    float along = 0, mean = 0;
    for (u32 i = 0; i < d; i++) {
      const float unit = (x[i] - m) * scale, g = dy[i] * gain[i];
      mean += g;
      along += g * unit;
      dgain[i] += dy[i] * unit;
      dbias[i] += dy[i];
    }
    mean /= d;
    along /= d;
    for (u32 i = 0; i < d; i++) dx[i] += (dy[i] * gain[i] - mean - (x[i] - m) * scale * along) * scale;
  }
}

// Queries or keys of one head: divided by their root mean square, then the first `pairs` dimensions rotated against the
// next `pairs` by angles[T, pairs, 2] (cosine, sine). x and y have rows `row` floats apart; saved[T] keeps 1 / rms.
EXPORT(norm_rotate)
void norm_rotate(const float *x, float *y, float *saved, const float *angles, u32 T, u32 d, u32 row, u32 pairs, u32 norm,
                 float eps) {
  for (u32 t = 0; t < T; t++, x += row, y += row) {
    float scale = 1;
    if (norm) {
      float squares = 0;
      for (u32 i = 0; i < d; i++) squares += x[i] * x[i];
      scale = 1 / __builtin_sqrtf(squares / d + eps);
    }
    saved[t] = scale;
    for (u32 i = 0; i < d; i++) y[i] = x[i] * scale;
    for (u32 i = 0; i < pairs; i++) {
      const float c = angles[(t * pairs + i) * 2], s = angles[(t * pairs + i) * 2 + 1], p = y[i], q = y[i + pairs];
      y[i] = p * c - q * s;
      y[i + pairs] = p * s + q * c;
    }
  }
}
// dy is replaced by the gradient of x.
EXPORT(norm_rotate_backward)
void norm_rotate_backward(float *dy, const float *x, const float *saved, const float *angles, u32 T, u32 d, u32 row,
                          u32 pairs, u32 norm) {
  for (u32 t = 0; t < T; t++, x += row, dy += row) {
    for (u32 i = 0; i < pairs; i++) {
      const float c = angles[(t * pairs + i) * 2], s = angles[(t * pairs + i) * 2 + 1], p = dy[i], q = dy[i + pairs];
      dy[i] = p * c + q * s;
      dy[i + pairs] = q * c - p * s;
    }
    if (!norm) continue;
    const float scale = saved[t];
    float along = 0;
    for (u32 i = 0; i < d; i++) along += dy[i] * x[i] * scale;
    along /= d;
    for (u32 i = 0; i < d; i++) dy[i] = (dy[i] - x[i] * scale * along) * scale;
  }
}

// --- GELU in its tanh form --------------------------------------------------------------------------------------------------

static inline f4 gelu_tanh(f4 x) {
  const f4 e = exp4((x + x * x * x * 0.044715f) * (2 * 0.7978845608028654f));
  return 1.0f - 2.0f / (e + 1.0f);
}
EXPORT(gelu) void gelu(const float *x, float *y, u32 n) {
  for (u32 i = 0; i < n; i += 4) { // arrays are whole vectors long
    const f4 v = *(const f4 *)(x + i);
    *(f4 *)(y + i) = v * 0.5f * (1.0f + gelu_tanh(v));
  }
}
// dy is replaced by the gradient of x.
EXPORT(gelu_backward) void gelu_backward(float *dy, const float *x, u32 n) {
  for (u32 i = 0; i < n; i += 4) {
    const f4 v = *(const f4 *)(x + i), t = gelu_tanh(v);
    const f4 slope = 0.5f * (1.0f + t) + 0.5f * v * (1.0f - t * t) * 0.7978845608028654f * (1.0f + v * v * 0.134145f);
    *(f4 *)(dy + i) = *(f4 *)(dy + i) * slope;
  }
}

// --- attention --------------------------------------------------------------------------------------------------------------

enum { QUERIES = 64 }; // a block of queries sees the keys up to its own end, so half of the work is left out

// One head. q, k, v and out have rows `row`, `row`, `v_row` and `out_row` floats apart; weights[T, T] are kept.
EXPORT(attention)
void attention(const float *q, const float *k, const float *v, float *weights, float *out, u32 T, u32 d, u32 row,
               u32 v_row, u32 out_row, float scale) {
  for (u32 b = 0; b < T; b += QUERIES) {
    const u32 n = T - b < QUERIES ? T - b : QUERIES, end = b + n;
    float *w = weights + b * T;
    product(n, end, d, q + b * row, row, 1, k, 1, row, w, T, 0);
    for (u32 t = b; t < end; t++, w += T) {
      const u32 whole = (t + 1) & ~3u; // keys of whole vectors
      f4 most = splat(-1e30f), total = splat(0);
      for (u32 s = 0; s < whole; s += 4) {
        const f4 x = *(f4 *)(w + s);
        most = larger(most, x);
      }
      float largest = max4(most), sum = 0;
      for (u32 s = whole; s <= t; s++) largest = w[s] > largest ? w[s] : largest;
      for (u32 s = 0; s < whole; s += 4) {
        const f4 e = exp4((*(f4 *)(w + s) - largest) * scale);
        *(f4 *)(w + s) = e;
        total += e;
      }
      for (u32 s = whole; s <= t; s++) {
        w[s] = exp1((w[s] - largest) * scale);
        sum += w[s];
      }
      sum += sum4(total);
      for (u32 s = 0; s <= t; s++) w[s] /= sum;
      for (u32 s = t + 1; s < T; s++) w[s] = 0;
    }
    product(n, d, end, weights + b * T, T, 1, v, v_row, 1, out + b * out_row, out_row, 0);
  }
}
// dq, dk (rows `row` apart) and dv (`v_row`) += the gradients; dout has rows `out_row` apart; scratch[QUERIES, T].
EXPORT(attention_backward)
void attention_backward(const float *q, const float *k, const float *v, const float *weights, const float *dout,
                        float *dq, float *dk, float *dv, float *scratch, u32 T, u32 d, u32 row, u32 v_row, u32 out_row,
                        float scale) {
  for (u32 b = 0; b < T; b += QUERIES) {
    const u32 n = T - b < QUERIES ? T - b : QUERIES, end = b + n;
    const float *w = weights + b * T, *above = dout + b * out_row;
    product(end, d, n, w, 1, T, above, out_row, 1, dv, v_row, 1);
    product(n, end, d, above, out_row, 1, v, 1, v_row, scratch, T, 0);
    for (u32 t = 0; t < n; t++) {
      const float *p = w + t * T;
      float *g = scratch + t * T;
      f4 sums = splat(0);
      u32 s = 0;
      for (; s + 4 <= end; s += 4) sums += *(const f4 *)(p + s) * *(const f4 *)(g + s);
      float along = sum4(sums);
      for (; s < end; s++) along += p[s] * g[s];
      for (s = 0; s < end; s++) g[s] = p[s] * (g[s] - along) * scale;
    }
    product(n, d, end, scratch, T, 1, k, row, 1, dq + b * row, row, 1);
    product(end, d, n, scratch, 1, T, q + b * row, row, 1, dk, row, 1);
  }
}

// --- the loss ---------------------------------------------------------------------------------------------------------------

// z[rows, V], rows `ld` floats apart (a multiple of 4, at least V), become their gradient: (softmax - one at the target) *
// scale. losses[rows] = -log softmax[target]. `shared` tokens have the last row of the head in common (0: none).
EXPORT(cross_entropy)
void cross_entropy(float *z, const u32 *targets, float *losses, u32 rows, u32 V, u32 ld, u32 shared, float scale) {
  const float extra = shared ? (float)log1(shared) : 0;
  for (u32 r = 0; r < rows; r++, z += ld) {
    z[V - 1] += extra;
    for (u32 i = V; i < ld; i++) z[i] = -1e30f;
    f4 most = splat(-1e30f), total = splat(0);
    for (u32 i = 0; i < ld; i += 4) {
      const f4 x = *(f4 *)(z + i);
      most = larger(most, x);
    }
    const float largest = max4(most), target = z[targets[r]];
    double sum = 0;
    for (u32 i = 0; i < ld;) {
      const u32 end = ld - i > 256 ? i + 256 : ld; // short sums in float32, their sum in float64
      total = splat(0);
      for (; i < end; i += 4) {
        const f4 e = exp4(*(f4 *)(z + i) - largest);
        *(f4 *)(z + i) = e;
        total += e;
      }
      sum += sum4(total);
    }
    losses[r] = (float)(log1(sum) + largest - target) + (shared && targets[r] == V - 1 ? extra : 0);
    const float factor = (float)(scale / sum);
    for (u32 i = 0; i < ld; i += 4) *(f4 *)(z + i) *= factor;
    z[targets[r]] -= scale;
  }
}

// --- optimizers -------------------------------------------------------------------------------------------------------------

EXPORT(square_sum) double square_sum(const float *x, u32 n) {
  double sum = 0;
  for (u32 i = 0; i < n; i++) sum += (double)x[i] * x[i];
  return sum;
}
EXPORT(multiply) void multiply(float *x, u32 n, float factor) {
  for (u32 i = 0; i < n; i++) x[i] *= factor;
}
// y += factor x
EXPORT(add_scaled) void add_scaled(float *y, const float *x, u32 n, float factor) {
  for (u32 i = 0; i < n; i++) y[i] += factor * x[i];
}
// y = x + share (y - x)
EXPORT(lerp) void lerp(float *y, const float *x, u32 n, float share) {
  for (u32 i = 0; i < n; i++) y[i] = x[i] + share * (y[i] - x[i]);
}
// AdamW (1711.05101) as torch has it: `keep` is 1 - lr * weight decay, step_size lr / (1 - beta1^t), root_correction
// sqrt(1 - beta2^t).
EXPORT(adamw)
void adamw(float *p, const float *g, float *m, float *v, u32 n, float beta1, float beta2, float eps, float keep,
           float step_size, float root_correction) {
  for (u32 i = 0; i < n; i += 4) { // arrays are whole vectors long
    const f4 grad = *(const f4 *)(g + i);
    const f4 a = *(f4 *)(m + i) * beta1 + grad * (1 - beta1), b = *(f4 *)(v + i) * beta2 + grad * grad * (1 - beta2);
    *(f4 *)(m + i) = a;
    *(f4 *)(v + i) = b;
    const f4 root = (f4){__builtin_sqrtf(b[0]), __builtin_sqrtf(b[1]), __builtin_sqrtf(b[2]), __builtin_sqrtf(b[3])};
    *(f4 *)(p + i) = *(f4 *)(p + i) * keep - step_size * a / (root / root_correction + eps);
  }
}
