// The costly operations of training a GPT-2 style transformer, for WebAssembly: products of matrices, norms, GELU,
// attention and the softmax over the vocabulary, forward and backward, and AdamW. One thread, no library. build.sh
// builds them with clang, for float32 (kernels.wasm) and for float64 (kernels64.wasm), which is half as fast. model.js
// has the structure of the model: it allocates every array here and calls these functions, as the textbook calls
// torch.
//
// Arrays are row-major. T is the number of tokens, d a width. "+=" in a comment means that a result is added to what
// the array holds, as gradients are.

typedef unsigned int u32;
#ifdef DOUBLE
typedef double real;
typedef long long whole;
#else
typedef float real;
typedef int whole;
#endif
enum { LANES = 16 / sizeof(real) };
typedef real vec __attribute__((vector_size(16), aligned(sizeof(real))));
typedef whole whole_vec __attribute__((vector_size(16), aligned(sizeof(real))));

#define EXPORT(name) extern "C" __attribute__((export_name(#name)))

extern "C" unsigned char __heap_base;

// --- memory: arrays are allocated one after the other, and freed all at once -----------------------------------------

static u32 top = 0;

// The address of n new numbers, all zero at first use; 0 if the browser gives no more memory.
EXPORT(alloc) real *alloc(u32 n) {
  if (!top) top = ((u32)&__heap_base + 15) & ~15u;
  const u32 begin = top, bytes = (n * (u32)sizeof(real) + 15) & ~15u;
  if (n > (1u << 30) / (sizeof(real) / 4) - 4 || bytes > ~0u - begin) return 0;
  const u32 pages = (begin + bytes + 65535) >> 16, have = __builtin_wasm_memory_size(0);
  if (pages > have && __builtin_wasm_memory_grow(0, pages - have) == (__SIZE_TYPE__)-1) return 0;
  top = begin + bytes;
  return (real *)begin;
}
EXPORT(mark) u32 mark() { return top; }
EXPORT(release) void release(u32 to) { top = to; }

EXPORT(fill) void fill(real *x, u32 n, real value) {
  for (u32 i = 0; i < n; i++) x[i] = value;
}

// --- elementary functions ---------------------------------------------------------------------------------------------

static inline vec splat(real x) { return x - (vec){}; }
#ifdef DOUBLE
static inline vec larger(vec a, vec b) { return __builtin_wasm_pmax_f64x2(a, b); }
static inline vec smaller(vec a, vec b) { return __builtin_wasm_pmin_f64x2(a, b); }
static inline real root(real x) { return __builtin_sqrt(x); }
#else
static inline vec larger(vec a, vec b) { return __builtin_wasm_pmax_f32x4(a, b); }
static inline vec smaller(vec a, vec b) { return __builtin_wasm_pmin_f32x4(a, b); }
static inline real root(real x) { return __builtin_sqrtf(x); }
#endif

#ifdef DOUBLE
// exp by x = n ln 2 + r and the series of exp(r); relative error 2e-16 from -600 to 708, 0 below.
static inline vec exp_v(vec x) {
  const whole_vec kept = x > splat(-600);
  x = smaller(larger(x, splat(-600)), splat(708));
  const vec magic = splat(6755399441055744.0); // 1.5 * 2^52: adding it rounds to integers
  const vec moved = x * 1.4426950408889634 + magic, n = moved - magic; // n is in the last bits of `moved`
  const vec r = (x - n * 0.693145751953125) - n * 1.42860682030941723212e-6;
  vec p = splat(1.0 / 6227020800); // 1 / 13!
  double factorial = 1.0 / 6227020800;
  for (int k = 13; k >= 1; k--) p = p * r + (factorial *= k);
  return (vec)((whole_vec)(p * (vec)(((whole_vec)moved + 1023) << 52)) & kept);
}
#else
// exp by x = n ln 2 + r and the polynomial of the Cephes library; relative error 2e-7 from -60 to 88, 0 below: products of
// numbers near 1e-38 are slow.
static inline vec exp_v(vec x) {
  const whole_vec kept = x > splat(-60.0f);
  x = smaller(larger(x, splat(-60.0f)), splat(88.0f));
  const vec magic = splat(12582912.0f); // 1.5 * 2^23: adding it rounds to integers
  const vec moved = x * 1.44269504088896341f + magic, n = moved - magic; // n is in the last bits of `moved`
  const vec r = (x - n * 0.693359375f) - n * -2.12194440e-4f;
  vec p = splat(1.9875691500e-4f);
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  return (vec)((whole_vec)(p * (vec)(((whole_vec)moved + 127) << 23)) & kept);
}
#endif
static inline real exp1(real x) { return exp_v(splat(x))[0]; }

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

// The sum of a vector, which starts with pairs of neighbours, and its largest element.
static inline real sum_of(vec x) {
  for (int n = LANES / 2; n; n /= 2)
    for (int i = 0; i < n; i++) x[i] = x[2 * i] + x[2 * i + 1];
  return x[0];
}
static inline real max_of(vec x) {
  for (int i = 1; i < LANES; i++) x[0] = x[i] > x[0] ? x[i] : x[0];
  return x[0];
}

// --- products of matrices -----------------------------------------------------------------------------------------------

enum { ROWS = 4, COLS = 2 * LANES, DEPTH = 256, BLOCK_M = 256, BLOCK_N = 128 };
static real packed_a[BLOCK_M * DEPTH], packed_b[BLOCK_N * DEPTH];

// Panels of ROWS rows, zeros below the last row: packed_a[panel][k][row].
static void pack_a(const real *a, u32 row, u32 col, u32 m, u32 k) {
  real *to = packed_a;
  for (u32 i = 0; i < m; i += ROWS) {
    const real *from = a + i * row;
    if (i + ROWS <= m && row == 1)
      for (u32 l = 0; l < k; l++, to += ROWS) __builtin_memcpy(to, from + l * col, ROWS * sizeof(real));
    else if (i + ROWS <= m)
      for (u32 l = 0; l < k; l++, to += ROWS, from += col)
        for (u32 r = 0; r < ROWS; r++) to[r] = from[r * row];
    else
      for (u32 l = 0; l < k; l++)
        for (u32 r = 0; r < ROWS; r++) *to++ = i + r < m ? from[r * row + l * col] : 0.0f;
  }
}
static void pack_b(const real *b, u32 row, u32 col, u32 k, u32 n) {
  real *to = packed_b;
  for (u32 j = 0; j < n; j += COLS)
    for (u32 l = 0; l < k; l++) {
      const real *from = b + l * row + j * col;
      if (col == 1 && j + COLS <= n) {
        __builtin_memcpy(to, from, COLS * sizeof(real));
      } else {
        for (u32 c = 0; c < COLS; c++) to[c] = j + c < n ? from[c * col] : 0.0f;
      }
      to += COLS;
    }
}
static void micro(u32 k, const real *a, const real *b, vec *c) {
  vec c00 = splat(0), c01 = c00, c10 = c00, c11 = c00, c20 = c00, c21 = c00, c30 = c00, c31 = c00;
  for (u32 l = 0; l < k; l++, a += ROWS, b += COLS) {
    const vec b0 = *(const vec *)b, b1 = *(const vec *)(b + LANES);
    const vec a0 = splat(a[0]), a1 = splat(a[1]), a2 = splat(a[2]), a3 = splat(a[3]);
    c00 += a0 * b0; c01 += a0 * b1;
    c10 += a1 * b0; c11 += a1 * b1;
    c20 += a2 * b0; c21 += a2 * b1;
    c30 += a3 * b0; c31 += a3 * b1;
  }
  c[0] = c00; c[1] = c01; c[2] = c10; c[3] = c11; c[4] = c20; c[5] = c21; c[6] = c30; c[7] = c31;
}

// c[m, n] = a[m, k] b[k, n] (+= if add). The strides of a and b in each direction are given, so either may be
// transposed. Rows of c are ldc apart.
EXPORT(product)
void product(u32 m, u32 n, u32 k, const real *a, u32 a_row, u32 a_col, const real *b, u32 b_row, u32 b_col, real *c,
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
            vec tile[ROWS * 2];
            micro(depth, packed_a + y * depth, packed_b + x * depth, tile);
            const u32 rows = height - y < ROWS ? height - y : ROWS, cols = width - x < COLS ? width - x : COLS;
            for (u32 r = 0; r < rows; r++) {
              real *to = c + (i + y + r) * ldc + j + x;
              if (cols == COLS) {
                vec *wide = (vec *)to;
                wide[0] = adds ? wide[0] + tile[2 * r] : tile[2 * r];
                wide[1] = adds ? wide[1] + tile[2 * r + 1] : tile[2 * r + 1];
              } else {
                const real *from = (const real *)(tile + 2 * r);
                for (u32 q = 0; q < cols; q++) to[q] = adds ? to[q] + from[q] : from[q];
              }
            }
          }
      }
    }
  }
}

// y[T, n] += bias, and its gradient: dbias[n] += sums over the tokens.
EXPORT(add_bias) void add_bias(real *y, const real *bias, u32 T, u32 n) {
  for (u32 t = 0; t < T; t++)
    for (u32 i = 0; i < n; i++) y[t * n + i] += bias[i];
}
EXPORT(bias_backward) void bias_backward(const real *dy, real *dbias, u32 T, u32 n) {
  for (u32 t = 0; t < T; t++)
    for (u32 i = 0; i < n; i++) dbias[i] += dy[t * n + i];
}

// --- embeddings -----------------------------------------------------------------------------------------------------------

// x[T, d] = table[ids] + positions[0 .. T-1] (positions 0: none)
EXPORT(embed) void embed(const u32 *ids, const real *table, const real *positions, real *x, u32 T, u32 d) {
  for (u32 t = 0; t < T; t++)
    for (u32 i = 0; i < d; i++) x[t * d + i] = table[ids[t] * d + i] + (positions ? positions[t * d + i] : 0.0f);
}
EXPORT(embed_backward)
void embed_backward(const u32 *ids, const real *dx, real *dtable, real *dpositions, u32 T, u32 d) {
  for (u32 t = 0; t < T; t++)
    for (u32 i = 0; i < d; i++) {
      dtable[ids[t] * d + i] += dx[t * d + i];
      if (dpositions) dpositions[t * d + i] += dx[t * d + i];
    }
}

// --- norms ----------------------------------------------------------------------------------------------------------------

// LayerNorm. y = gain (x - mean) / sqrt(variance + eps) + bias; saved[T, 2] keeps mean and 1 / sqrt(variance + eps).
EXPORT(layer_norm)
void layer_norm(const real *x, const real *gain, const real *bias, real *y, real *saved, u32 T, u32 d, real eps) {
  for (u32 t = 0; t < T; t++, x += d, y += d) {
    double mean = 0, variance = 0;
    for (u32 i = 0; i < d; i++) mean += x[i];
    mean /= d;
    for (u32 i = 0; i < d; i++) variance += (x[i] - mean) * (x[i] - mean);
    const real scale = (real)(1.0 / __builtin_sqrt(variance / d + eps)), m = (real)mean;
    saved[2 * t] = m;
    saved[2 * t + 1] = scale;
    for (u32 i = 0; i < d; i++) y[i] = gain[i] * (x[i] - m) * scale + bias[i];
  }
}
// dx[T, d], dgain and dbias += their gradients.
EXPORT(layer_norm_backward)
void layer_norm_backward(const real *dy, const real *x, const real *gain, const real *saved, real *dx, real *dgain,
                         real *dbias, u32 T, u32 d) {
  for (u32 t = 0; t < T; t++, x += d, dy += d, dx += d) {
    const real m = saved[2 * t], scale = saved[2 * t + 1];
    real along = 0, mean = 0;
    for (u32 i = 0; i < d; i++) {
      const real unit = (x[i] - m) * scale, g = dy[i] * gain[i];
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
void norm_rotate(const real *x, real *y, real *saved, const real *angles, u32 T, u32 d, u32 row, u32 pairs, u32 norm,
                 real eps) {
  for (u32 t = 0; t < T; t++, x += row, y += row) {
    real scale = 1;
    if (norm) {
      real squares = 0;
      for (u32 i = 0; i < d; i++) squares += x[i] * x[i];
      scale = 1 / root(squares / d + eps);
    }
    saved[t] = scale;
    for (u32 i = 0; i < d; i++) y[i] = x[i] * scale;
    for (u32 i = 0; i < pairs; i++) {
      const real c = angles[(t * pairs + i) * 2], s = angles[(t * pairs + i) * 2 + 1], p = y[i], q = y[i + pairs];
      y[i] = p * c - q * s;
      y[i + pairs] = p * s + q * c;
    }
  }
}
// dy is replaced by the gradient of x.
EXPORT(norm_rotate_backward)
void norm_rotate_backward(real *dy, const real *x, const real *saved, const real *angles, u32 T, u32 d, u32 row,
                          u32 pairs, u32 norm) {
  for (u32 t = 0; t < T; t++, x += row, dy += row) {
    for (u32 i = 0; i < pairs; i++) {
      const real c = angles[(t * pairs + i) * 2], s = angles[(t * pairs + i) * 2 + 1], p = dy[i], q = dy[i + pairs];
      dy[i] = p * c + q * s;
      dy[i + pairs] = q * c - p * s;
    }
    if (!norm) continue;
    const real scale = saved[t];
    real along = 0;
    for (u32 i = 0; i < d; i++) along += dy[i] * x[i] * scale;
    along /= d;
    for (u32 i = 0; i < d; i++) dy[i] = (dy[i] - x[i] * scale * along) * scale;
  }
}

// --- GELU in its tanh form --------------------------------------------------------------------------------------------------

static inline vec gelu_tanh(vec x) {
  const vec e = exp_v((x + x * x * x * (real)0.044715) * (2 * (real)0.7978845608028654));
  return 1.0f - 2.0f / (e + 1.0f);
}
EXPORT(gelu) void gelu(const real *x, real *y, u32 n) {
  for (u32 i = 0; i < n; i += LANES) { // arrays are whole vectors long
    const vec v = *(const vec *)(x + i);
    *(vec *)(y + i) = v * 0.5f * (1.0f + gelu_tanh(v));
  }
}
// dy is replaced by the gradient of x.
EXPORT(gelu_backward) void gelu_backward(real *dy, const real *x, u32 n) {
  for (u32 i = 0; i < n; i += LANES) {
    const vec v = *(const vec *)(x + i), t = gelu_tanh(v);
    const vec slope = 0.5f * (1.0f + t) + 0.5f * v * (1.0f - t * t) * (real)0.7978845608028654 * (1.0f + v * v * (real)0.134145);
    *(vec *)(dy + i) = *(vec *)(dy + i) * slope;
  }
}

// --- attention --------------------------------------------------------------------------------------------------------------

enum { QUERIES = 64 }; // a block of queries sees the keys up to its own end, so half of the work is left out

// One head. q, k, v and out have rows `row`, `row`, `v_row` and `out_row` floats apart; weights[T, T] are kept.
EXPORT(attention)
void attention(const real *q, const real *k, const real *v, real *weights, real *out, u32 T, u32 d, u32 row,
               u32 v_row, u32 out_row, real scale) {
  for (u32 b = 0; b < T; b += QUERIES) {
    const u32 n = T - b < QUERIES ? T - b : QUERIES, end = b + n;
    real *w = weights + b * T;
    product(n, end, d, q + b * row, row, 1, k, 1, row, w, T, 0);
    for (u32 t = b; t < end; t++, w += T) {
      const u32 full = (t + 1) & ~(LANES - 1u); // keys of whole vectors
      vec most = splat(-1e30f), total = splat(0);
      for (u32 s = 0; s < full; s += LANES) {
        const vec x = *(vec *)(w + s);
        most = larger(most, x);
      }
      real largest = max_of(most), sum = 0;
      for (u32 s = full; s <= t; s++) largest = w[s] > largest ? w[s] : largest;
      for (u32 s = 0; s < full; s += LANES) {
        const vec e = exp_v((*(vec *)(w + s) - largest) * scale);
        *(vec *)(w + s) = e;
        total += e;
      }
      for (u32 s = full; s <= t; s++) {
        w[s] = exp1((w[s] - largest) * scale);
        sum += w[s];
      }
      sum += sum_of(total);
      for (u32 s = 0; s <= t; s++) w[s] /= sum;
      for (u32 s = t + 1; s < T; s++) w[s] = 0;
    }
    product(n, d, end, weights + b * T, T, 1, v, v_row, 1, out + b * out_row, out_row, 0);
  }
}
// dq, dk (rows `row` apart) and dv (`v_row`) += the gradients; dout has rows `out_row` apart; scratch[QUERIES, T].
EXPORT(attention_backward)
void attention_backward(const real *q, const real *k, const real *v, const real *weights, const real *dout,
                        real *dq, real *dk, real *dv, real *scratch, u32 T, u32 d, u32 row, u32 v_row, u32 out_row,
                        real scale) {
  for (u32 b = 0; b < T; b += QUERIES) {
    const u32 n = T - b < QUERIES ? T - b : QUERIES, end = b + n;
    const real *w = weights + b * T, *above = dout + b * out_row;
    product(end, d, n, w, 1, T, above, out_row, 1, dv, v_row, 1);
    product(n, end, d, above, out_row, 1, v, 1, v_row, scratch, T, 0);
    for (u32 t = 0; t < n; t++) {
      const real *p = w + t * T;
      real *g = scratch + t * T;
      vec sums = splat(0);
      u32 s = 0;
      for (; s + LANES <= end; s += LANES) sums += *(const vec *)(p + s) * *(const vec *)(g + s);
      real along = sum_of(sums);
      for (; s < end; s++) along += p[s] * g[s];
      for (s = 0; s < end; s++) g[s] = p[s] * (g[s] - along) * scale;
    }
    product(n, d, end, scratch, T, 1, k, row, 1, dq + b * row, row, 1);
    product(end, d, n, scratch, 1, T, q + b * row, row, 1, dk, row, 1);
  }
}

// --- the loss ---------------------------------------------------------------------------------------------------------------

// z[rows, V], rows `ld` numbers apart (a multiple of 4, at least V), become their gradient: (softmax - one at the target) *
// scale. losses[rows] = -log softmax[target]. `shared` tokens share the last row of the head (0: none).
EXPORT(cross_entropy)
void cross_entropy(real *z, const u32 *targets, real *losses, u32 rows, u32 V, u32 ld, u32 shared, real scale) {
  const real extra = shared ? (real)log1(shared) : 0;
  for (u32 r = 0; r < rows; r++, z += ld) {
    z[V - 1] += extra;
    for (u32 i = V; i < ld; i++) z[i] = -1e30f;
    vec most = splat(-1e30f), total = splat(0);
    for (u32 i = 0; i < ld; i += LANES) {
      const vec x = *(vec *)(z + i);
      most = larger(most, x);
    }
    const real largest = max_of(most), target = z[targets[r]];
    double sum = 0;
    for (u32 i = 0; i < ld;) {
      const u32 end = ld - i > 256 ? i + 256 : ld; // short sums in the arrays' precision, their sum in float64
      total = splat(0);
      for (; i < end; i += LANES) {
        const vec e = exp_v(*(vec *)(z + i) - largest);
        *(vec *)(z + i) = e;
        total += e;
      }
      sum += sum_of(total);
    }
    losses[r] = (real)(log1(sum) + largest - target) + (shared && targets[r] == V - 1 ? extra : 0);
    const real factor = (real)(scale / sum);
    for (u32 i = 0; i < ld; i += LANES) *(vec *)(z + i) *= factor;
    z[targets[r]] -= scale;
  }
}

// --- optimizers -------------------------------------------------------------------------------------------------------------

EXPORT(square_sum) double square_sum(const real *x, u32 n) {
  double sum = 0;
  for (u32 i = 0; i < n; i++) sum += (double)x[i] * x[i];
  return sum;
}
EXPORT(multiply) void multiply(real *x, u32 n, real factor) {
  for (u32 i = 0; i < n; i++) x[i] *= factor;
}
// y += factor x
EXPORT(add_scaled) void add_scaled(real *y, const real *x, u32 n, real factor) {
  for (u32 i = 0; i < n; i++) y[i] += factor * x[i];
}
// y = x + share (y - x)
EXPORT(lerp) void lerp(real *y, const real *x, u32 n, real share) {
  for (u32 i = 0; i < n; i++) y[i] = x[i] + share * (y[i] - x[i]);
}
// AdamW (1711.05101) as torch has it: `keep` is 1 - lr * weight decay, step_size lr / (1 - beta1^t), root_correction
// sqrt(1 - beta2^t).
EXPORT(adamw)
void adamw(real *p, const real *g, real *m, real *v, u32 n, real beta1, real beta2, real eps, real keep,
           real step_size, real root_correction) {
  for (u32 i = 0; i < n; i += LANES) { // arrays are whole vectors long
    const vec grad = *(const vec *)(g + i);
    const vec a = *(vec *)(m + i) * beta1 + grad * (1 - beta1), b = *(vec *)(v + i) * beta2 + grad * grad * (1 - beta2);
    *(vec *)(m + i) = a;
    *(vec *)(v + i) = b;
    vec roots;
    for (int l = 0; l < LANES; l++) roots[l] = root(b[l]);
    *(vec *)(p + i) = *(vec *)(p + i) * keep - step_size * a / (roots / root_correction + eps);
  }
}
