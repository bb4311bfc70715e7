// Kernels for processors that multiply bf16 (AVX512-BF16). native.py compiles the .cpp files of this folder when they
// are first needed and calls them through ctypes. Without a compiler or such a processor torch's own operations do the
// same work. Here: the vocabulary head, norm and rotation, GELU, and the row-wise AdamW.
//
// Numbers are bf16 in memory and float32 in registers. Every row is computed by one thread in a fixed order, so results
// do not depend on the number of threads.

#include "kernels.h"

// --- the vocabulary head ---------------------------------------------------------------------------------------------

// 16 logits of the softmax, from 16 products: the cap, then the bias. Capped, slope becomes 1 - tanh^2.
template <bool CAPPED>
static inline __m512 logit16(__m512 z, __m512 bias, float cap, __m512& slope) {
    if (!CAPPED) return _mm512_add_ps(z, bias);
    const __m512 one = _mm512_set1_ps(1.0f), twice = _mm512_min_ps(_mm512_mul_ps(z, _mm512_set1_ps(2 / cap)), _mm512_set1_ps(40.0f));
    const __m512 tanh = _mm512_sub_ps(one, _mm512_div_ps(_mm512_set1_ps(2.0f), _mm512_add_ps(exp16(twice), one)));
    slope = _mm512_fnmadd_ps(tanh, tanh, one);
    return _mm512_fmadd_ps(tanh, _mm512_set1_ps(cap), bias);
}

template <bool CAPPED>
static void softmax_row(bf16* z, bf16* side, i64 vocab, const float* bias, float bias_top, i64 target, float exact,
                        float cap, float* loss, float* scale) {
    float rounded = widen(z[target]), slope = 1;
    const i64 whole = vocab / 16 * 16, rest = vocab - whole;
    bf16 last_z[16] = {0}, last_side[16];  // the last logits, filled up with some of no probability
    float last_bias[16];
    for (i64 j = 0; j < 16; j++) last_bias[j] = j >= rest ? -INFINITY : bias ? bias[whole + j] : 0.0f;
    memcpy(last_z, z + whole, rest * sizeof(bf16));
    const auto biased = [&](const bf16* at, const float* b) {
        return b && !CAPPED ? _mm512_add_ps(widen16(at), _mm512_loadu_ps(b)) : widen16(at);
    };
    __m512 top16 = biased(last_z, last_bias);
    for (i64 j = 0; j < whole; j += 16) top16 = _mm512_max_ps(top16, biased(z + j, bias ? bias + j : nullptr));
    float top = _mm512_reduce_max_ps(top16);
    if (CAPPED) {
        top = cap * std::tanh(top / cap) + bias_top;  // not the maximum, but at least as large
        const float tanh = std::tanh(exact / cap);
        slope = 1 - tanh * tanh;
        exact = cap * tanh;
        rounded = cap * std::tanh(rounded / cap);
    }
    const __m512 minus_top = _mm512_set1_ps(-top);
    const auto sixteen = [&](bf16* at, const float* b, bf16* beside, __m512& sum) {
        __m512 slope16;
        const __m512 x = logit16<CAPPED>(widen16(at), b ? _mm512_loadu_ps(b) : _mm512_setzero_ps(), cap, slope16);
        const __m512 e = exp16(_mm512_add_ps(x, minus_top));
        sum = _mm512_add_ps(sum, e);
        _mm256_storeu_si256((__m256i*)at, narrow16(CAPPED ? _mm512_mul_ps(e, slope16) : e));
        if (CAPPED && beside) _mm256_storeu_si256((__m256i*)beside, narrow16(e));
    };
    __m512 sum0 = _mm512_setzero_ps(), sum1 = sum0;
    i64 j = 0;
    for (; j + 32 <= whole; j += 32) {
        sixteen(z + j, bias ? bias + j : nullptr, side ? side + j : nullptr, sum0);
        sixteen(z + j + 16, bias ? bias + j + 16 : nullptr, side ? side + j + 16 : nullptr, sum1);
    }
    if (j < whole) sixteen(z + j, bias ? bias + j : nullptr, side ? side + j : nullptr, sum0);
    sixteen(last_z, last_bias, last_side, sum1);
    memcpy(z + whole, last_z, rest * sizeof(bf16));
    if (side) memcpy(side + whole, last_side, rest * sizeof(bf16));
    const double shift = (double)(bias ? bias[target] : 0.0f) - top, mine = std::exp(exact + shift);
    const double total = (double)_mm512_reduce_add_ps(_mm512_add_ps(sum0, sum1)) + (mine - std::exp(rounded + shift));
    *loss = (float)(std::log(total) - exact - shift);
    *scale = (float)(1 / total);
    z[target] = narrow((float)(mine - total) * slope);
    if (CAPPED && side) side[target] = narrow((float)(mine - total));
}

// For each row of logits z [rows, vocab], in place: exp(z + bias - top), and at the target the same minus the sum, so
// that z times `scale` is softmax - onehot, the gradient. exact: the targets' logits before rounding. cap: 0 for none;
// with one the gradient has a factor 1 - tanh^2, and side, if there is one, gets it without (the bias needs that).
extern "C" int head_softmax(bf16* z, bf16* side, i64 rows, i64 vocab, const float* bias, float bias_top,
                             const i64* targets, const float* exact, float cap, float* losses, float* scale,
                             int threads) {
    auto one = cap > 0 ? softmax_row<true> : softmax_row<false>;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (i64 row = 0; row < rows; row++)
        one(z + row * vocab, side ? side + row * vocab : nullptr, vocab, bias, bias_top, targets[row], exact[row], cap,
            losses + row, scale + row);
    return 0;
}

// --- queries and keys: norm and rotation ------------------------------------------------------------------------------

// y = rotation of x / rms(x), for rows of D numbers. pairs: how many pairs (i, i + pairs) rotate, a multiple of 16.
template <int D>
static inline float normed(const bf16* x, float eps, __m512 v[D / 16]) {
    __m512 squares = _mm512_setzero_ps();
    for (int i = 0; i < D / 16; i++) {
        v[i] = widen16(x + 16 * i);
        squares = _mm512_fmadd_ps(v[i], v[i], squares);
    }
    const float r = 1 / std::sqrt(_mm512_reduce_add_ps(squares) / D + eps);
    for (int i = 0; i < D / 16; i++) v[i] = _mm512_mul_ps(v[i], _mm512_set1_ps(r));
    return r;
}

template <int D>
static void norm_rotate_row(const bf16* x, const bf16* grad, bf16* out, const float* cosines, const float* sines,
                            i64 pairs, float eps) {
    __m512 v[D / 16];
    const int half = (int)pairs / 16;
    const float r = normed<D>(x, eps, v);
    if (!grad) {
        for (int i = 0; i < half; i++) {
            const __m512 c = _mm512_loadu_ps(cosines + 16 * i), s = _mm512_loadu_ps(sines + 16 * i);
            const __m512 a = v[i], b = v[i + half];
            v[i] = _mm512_fmsub_ps(a, c, _mm512_mul_ps(b, s));
            v[i + half] = _mm512_fmadd_ps(a, s, _mm512_mul_ps(b, c));
        }
        for (int i = 0; i < D / 16; i++) _mm256_storeu_si256((__m256i*)(out + 16 * i), narrow16(v[i]));
        return;
    }
    // backward: turn the gradient back, then out = r (g - v mean(g v))
    __m512 g[D / 16], products = _mm512_setzero_ps();
    for (int i = 0; i < D / 16; i++) g[i] = widen16(grad + 16 * i);
    for (int i = 0; i < half; i++) {
        const __m512 c = _mm512_loadu_ps(cosines + 16 * i), s = _mm512_loadu_ps(sines + 16 * i);
        const __m512 a = g[i], b = g[i + half];
        g[i] = _mm512_fmadd_ps(a, c, _mm512_mul_ps(b, s));
        g[i + half] = _mm512_fmsub_ps(b, c, _mm512_mul_ps(a, s));
    }
    for (int i = 0; i < D / 16; i++) products = _mm512_fmadd_ps(g[i], v[i], products);
    const __m512 mean = _mm512_set1_ps(_mm512_reduce_add_ps(products) / D), r16 = _mm512_set1_ps(r);
    for (int i = 0; i < D / 16; i++)
        _mm256_storeu_si256((__m256i*)(out + 16 * i),
                            narrow16(_mm512_mul_ps(r16, _mm512_fnmadd_ps(v[i], mean, g[i]))));
}

// x, out, and in the backward pass grad (else null): [batch, head, time, d] by strides; cosines, sines [time, pairs].
extern "C" int norm_rotate(const bf16* x, const bf16* grad, bf16* out, const float* cosines, const float* sines,
                           const i64* strides, i64 batch, i64 heads, i64 n, i64 d, i64 pairs, float eps, int threads) {
    const Strides* s = (const Strides*)strides;
    auto one = d == 64 ? norm_rotate_row<64> : norm_rotate_row<128>;
#pragma omp parallel for num_threads(threads) schedule(static) collapse(2)
    for (i64 b = 0; b < batch; b++)
        for (i64 t = 0; t < n; t++)
            for (i64 h = 0; h < heads; h++)
                one(AT(x, 0) + t * s[0].time, grad ? AT(grad, 2) + t * s[2].time : nullptr, AT(out, 1) + t * s[1].time,
                    cosines + t * pairs, sines + t * pairs, pairs, eps);
    return 0;
}

// --- GELU in its tanh form --------------------------------------------------------------------------------------------

// x / (1 + exp(-2 u)) with u = sqrt(2 / pi) (x + 0.044715 x^3); with grad its derivative times grad.
extern "C" int gelu(const bf16* x, const bf16* grad, bf16* out, i64 n, int threads) {
    const __m512 one = _mm512_set1_ps(1.0f), c1 = _mm512_set1_ps(-1.5957691216f), c3 = _mm512_set1_ps(-0.0713548163f),
                 d3 = _mm512_set1_ps(0.2140644489f);
#pragma omp parallel for num_threads(threads) schedule(static)
    for (i64 part = 0; part < (n + 4095) / 4096; part++)
        for (i64 i = part * 4096; i < std::min(n, (part + 1) * 4096); i += 16) {
            const i64 left = n - i;
            bf16 in[16] = {0}, by[16] = {0};
            if (left < 16) {
                memcpy(in, x + i, left * sizeof(bf16));
                if (grad) memcpy(by, grad + i, left * sizeof(bf16));
            }
            const __m512 v = widen16(left < 16 ? in : x + i), square = _mm512_mul_ps(v, v);
            const __m512 e = exp16(_mm512_min_ps(_mm512_mul_ps(v, _mm512_fmadd_ps(c3, square, c1)), _mm512_set1_ps(80.0f)));
            const __m512 s = _mm512_div_ps(one, _mm512_add_ps(one, e));
            __m512 y = _mm512_mul_ps(v, s);
            if (grad) {
                const __m512 slope = _mm512_fmsub_ps(d3, square, c1);  // 2 du/dx
                y = _mm512_fmadd_ps(_mm512_mul_ps(y, _mm512_sub_ps(one, s)), slope, s);
                y = _mm512_mul_ps(y, widen16(left < 16 ? by : grad + i));
            }
            if (left < 16) {
                _mm256_storeu_si256((__m256i*)in, narrow16(y));
                memcpy(out + i, in, left * sizeof(bf16));
            } else {
                _mm256_storeu_si256((__m256i*)(out + i), narrow16(y));
            }
        }
    return 0;
}

// --- the row-wise AdamW of tables -------------------------------------------------------------------------------------

struct RowAdam {
    float beta1, beta2, correction1, correction2, eps, keep, threshold, lr, highest_lr, power;
};

// One step over the rows of a float32 table, in one pass; d is a multiple of 16. correction: 1 - beta^step; keep: 1 - lr
// times weight decay. A row that has never had a gradient does not change, and is not read.
extern "C" int row_adam(float* weights, const float* grads, float* averages, float* squares, float* updates, i64 rows,
                        i64 d, const RowAdam* settings, int threads) {
    const RowAdam& o = *settings;
    const __m512 beta1 = _mm512_set1_ps(o.beta1), beta2 = _mm512_set1_ps(o.beta2), eps = _mm512_set1_ps(o.eps);
    const __m512 rest1 = _mm512_set1_ps(1 - o.beta1), rest2 = _mm512_set1_ps(1 - o.beta2);
    const __m512 root = _mm512_set1_ps(1 / std::sqrt(o.correction2)), keep = _mm512_set1_ps(o.keep);
#pragma omp parallel for num_threads(threads) schedule(static)
    for (i64 row = 0; row < rows; row++) {
        const float* g = grads + row * d;
        __m512 largest = _mm512_setzero_ps();
        for (i64 j = 0; j < d; j += 16) largest = _mm512_max_ps(largest, _mm512_abs_ps(_mm512_loadu_ps(g + j)));
        if (_mm512_reduce_max_ps(largest) > o.threshold) updates[row] += 1;
        if (updates[row] == 0 && o.threshold == 0 && o.keep == 1) continue;
        const float own = o.highest_lr * std::pow(std::max(updates[row], 1.0f), -o.power);
        const __m512 by = _mm512_set1_ps(-std::max(own, o.lr) / o.correction1);
        float *w = weights + row * d, *m = averages + row * d, *v = squares + row * d;
        for (i64 j = 0; j < d; j += 16) {
            const __m512 x = _mm512_loadu_ps(g + j);
            const __m512 a = _mm512_fmadd_ps(beta1, _mm512_loadu_ps(m + j), _mm512_mul_ps(rest1, x));
            const __m512 b = _mm512_fmadd_ps(beta2, _mm512_loadu_ps(v + j), _mm512_mul_ps(rest2, _mm512_mul_ps(x, x)));
            const __m512 below = _mm512_fmadd_ps(_mm512_sqrt_ps(b), root, eps);
            const __m512 y = _mm512_mul_ps(keep, _mm512_loadu_ps(w + j));
            _mm512_storeu_ps(m + j, a);
            _mm512_storeu_ps(v + j, b);
            _mm512_storeu_ps(w + j, _mm512_fmadd_ps(by, _mm512_div_ps(a, below), y));
        }
    }
    return 0;
}
