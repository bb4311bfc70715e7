// Kernels for processors that multiply bf16 (AVX512-BF16). native.py compiles this file when it is first needed and
// calls it through ctypes. Without a compiler or such a processor torch's own operations do the same work.
//
// Numbers are bf16 in memory and float32 in registers. Every row, and every head of a text, is computed by one thread
// in a fixed order, so results do not depend on the number of threads.

#include <immintrin.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>

typedef uint16_t bf16;
typedef int64_t i64;

static inline float widen(bf16 x) {
    uint32_t bits = (uint32_t)x << 16;
    float f;
    memcpy(&f, &bits, 4);
    return f;
}

static inline __m512 widen16(const bf16* p) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)p)), 16));
}

static inline __m256i narrow16(__m512 x) { return (__m256i)_mm512_cvtneps_pbh(x); }

static inline bf16 narrow(float x) { return (bf16)_mm256_extract_epi16(narrow16(_mm512_set1_ps(x)), 0); }

static inline __m512i lanes() { return _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0); }

// exp with a relative error of 2e-7: 2^n times a polynomial on [-ln 2 / 2, ln 2 / 2] (Cephes' expf). -inf gives 0.
static inline __m512 exp16(__m512 x) {
    x = _mm512_max_ps(x, _mm512_set1_ps(-200.0f));
    const __m512 n = _mm512_roundscale_ps(_mm512_mul_ps(x, _mm512_set1_ps(1.44269504f)), 8);
    __m512 r = _mm512_fnmadd_ps(n, _mm512_set1_ps(0.693359375f), x);
    r = _mm512_fnmadd_ps(n, _mm512_set1_ps(-2.12194440e-4f), r);
    __m512 p = _mm512_set1_ps(1.9875691500e-4f);
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.3981999507e-3f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(8.3334519073e-3f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(4.1665795894e-2f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.6666665459e-1f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(5.0000001201e-1f));
    p = _mm512_fmadd_ps(p, _mm512_mul_ps(r, r), _mm512_add_ps(r, _mm512_set1_ps(1.0f)));
    return _mm512_scalef_ps(p, n);
}

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

// --- causal attention ------------------------------------------------------------------------------------------------

// Tiles of 64 queries by 64 keys. vdpbf16ps multiplies pairs, so operands lie in two forms:
//   lanes:  [n / 16][d / 2][16][2], 16 rows side by side, pairs along d       (for products that sum over d)
//   pairs:  [n / 2][d][2], two rows interleaved                               (for products that sum over rows)
// n is the number of tokens rounded up to a multiple of 64, with zeros in the rows that are none.

static const i64 B = 64;

struct Strides {
    i64 batch, head, time;  // in elements; the last axis is contiguous
};

// acc[4][64] += a (4 rows, element k of row r at a[r * row + k * step], 32 bit) times b [k][64] lanes, 16 at a time at
// distance `panel`.
static inline void product(__m512 acc[4][4], const int32_t* a, i64 row, i64 step, const int32_t* b, i64 panel,
                           i64 stride, i64 depth) {
    for (i64 k = 0; k < depth; k++) {
        const int32_t* bk = b + k * stride;
        const __m512bh b0 = (__m512bh)_mm512_loadu_si512(bk), b1 = (__m512bh)_mm512_loadu_si512(bk + panel),
                       b2 = (__m512bh)_mm512_loadu_si512(bk + 2 * panel),
                       b3 = (__m512bh)_mm512_loadu_si512(bk + 3 * panel);
#pragma GCC unroll 4
        for (int r = 0; r < 4; r++) {
            const __m512bh x = (__m512bh)_mm512_set1_epi32(a[r * row + k * step]);
            acc[r][0] = _mm512_dpbf16_ps(acc[r][0], x, b0);
            acc[r][1] = _mm512_dpbf16_ps(acc[r][1], x, b1);
            acc[r][2] = _mm512_dpbf16_ps(acc[r][2], x, b2);
            acc[r][3] = _mm512_dpbf16_ps(acc[r][3], x, b3);
        }
    }
}

static inline void zero(__m512 acc[4][4]) {
    for (int r = 0; r < 4; r++)
        for (int c = 0; c < 4; c++) acc[r][c] = _mm512_setzero_ps();
}

// c [4][64], rows at distance `row`, += acc.
static inline void add_to(float* c, i64 row, __m512 acc[4][4]) {
    for (int r = 0; r < 4; r++)
        for (int v = 0; v < 4; v++) {
            float* p = c + r * row + 16 * v;
            _mm512_storeu_ps(p, _mm512_add_ps(_mm512_loadu_ps(p), acc[r][v]));
        }
}

template <int D>
static void to_rows(const bf16* x, i64 stride, i64 n, i64 padded, bf16* out) {
    for (i64 t = 0; t < n; t++) memcpy(out + t * D, x + t * stride, D * sizeof(bf16));
    memset(out + n * D, 0, (padded - n) * D * sizeof(bf16));
}

template <int D>
static void to_lanes(const bf16* rows, i64 padded, int32_t* out) {
    const int32_t* x = (const int32_t*)rows;
    const __m512i index = _mm512_mullo_epi32(lanes(),
                                             _mm512_set1_epi32(D / 2));
    for (i64 t = 0; t < padded; t += 16)
        for (int p = 0; p < D / 2; p++)
            _mm512_storeu_si512(out + t * (D / 2) + p * 16, _mm512_i32gather_epi32(index, x + t * (D / 2) + p, 4));
}

template <int D>
static void to_pairs(const bf16* rows, i64 padded, int32_t* out) {
    for (i64 t = 0; t < padded; t += 2)
        for (int d = 0; d < D; d += 16) {
            const __m512i a = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)(rows + t * D + d)));
            const __m512i b = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)(rows + (t + 1) * D + d)));
            _mm512_storeu_si512(out + t / 2 * D + d, _mm512_or_si512(a, _mm512_slli_epi32(b, 16)));
        }
}

static void* take(char*& memory, i64 bytes) {
    char* start = memory;
    memory += (bytes + 63) / 64 * 64;
    return start;
}

template <int D>
static void forward_head(const bf16* q, const bf16* k, const bf16* v, bf16* out, float* lse, i64 n, i64 sq, i64 sk,
                         i64 sv, i64 so, float scale, char* memory) {
    const i64 padded = (n + B - 1) / B * B;
    bf16* rows = (bf16*)take(memory, padded * D * 2);
    int32_t* k_lanes = (int32_t*)take(memory, padded * D * 2);
    int32_t* v_pairs = (int32_t*)take(memory, padded * D * 2);
    float* scores = (float*)take(memory, 16 * padded * 4);
    bf16* p = (bf16*)take(memory, 16 * padded * 2);
    to_rows<D>(k, sk, n, padded, rows);
    to_lanes<D>(rows, padded, k_lanes);
    to_rows<D>(v, sv, n, padded, rows);
    to_pairs<D>(rows, padded, v_pairs);
    to_rows<D>(q, sq, n, padded, rows);
    const __m512 scale16 = _mm512_set1_ps(scale);
    for (i64 q0 = 0; q0 < n; q0 += 16) {
        const i64 keys = (q0 + 16 + B - 1) / B * B;
        for (i64 k0 = 0; k0 < keys; k0 += B)
            for (i64 r0 = 0; r0 < 16; r0 += 4) {
                __m512 acc[4][4];
                zero(acc);
                product(acc, (const int32_t*)(rows + (q0 + r0) * D), D / 2, 1, k_lanes + k0 * (D / 2), 16 * (D / 2),
                        16, D / 2);
                for (int r = 0; r < 4; r++)
                    for (int c = 0; c < 4; c++)
                        _mm512_storeu_ps(scores + (r0 + r) * padded + k0 + 16 * c, _mm512_mul_ps(acc[r][c], scale16));
            }
        float inverse[16];
        for (i64 r = 0; r < 16; r++) {
            float* s = scores + r * padded;
            const i64 query = q0 + r, seen = query + 1;  // keys 0 .. query
            const i64 end = (seen + 15) / 16 * 16;
            const __mmask16 last = (__mmask16)(0xffff >> (end - seen));
            __m512 tail = _mm512_mask_mov_ps(_mm512_set1_ps(-INFINITY), last, _mm512_loadu_ps(s + end - 16));
            _mm512_storeu_ps(s + end - 16, tail);
            __m512 top16 = tail;
            for (i64 j = 0; j < end - 16; j += 16) top16 = _mm512_max_ps(top16, _mm512_loadu_ps(s + j));
            const float top = _mm512_reduce_max_ps(top16);
            const __m512 top_all = _mm512_set1_ps(top);
            __m512 sum = _mm512_setzero_ps();
            for (i64 j = 0; j < end; j += 16) {
                const __m512 e = exp16(_mm512_sub_ps(_mm512_loadu_ps(s + j), top_all));
                sum = _mm512_add_ps(sum, e);
                _mm256_storeu_si256((__m256i*)(p + r * padded + j), narrow16(e));
            }
            memset(p + r * padded + end, 0, (keys - end) * sizeof(bf16));
            const float total = _mm512_reduce_add_ps(sum);
            inverse[r] = 1 / total;
            if (query < n) lse[query] = top + std::log(total);
        }
        for (i64 r0 = 0; r0 < 16; r0 += 4)
            for (int d = 0; d < D; d += 64) {
                __m512 acc[4][4];
                zero(acc);
                product(acc, (const int32_t*)(p + r0 * padded), padded / 2, 1, v_pairs + d, 16, D, keys / 2);
                for (int r = 0; r < 4; r++) {
                    if (q0 + r0 + r >= n) break;
                    const __m512 by = _mm512_set1_ps(inverse[r0 + r]);
                    for (int c = 0; c < 4; c++)
                        _mm256_storeu_si256((__m256i*)(out + (q0 + r0 + r) * so + d + 16 * c),
                                            narrow16(_mm512_mul_ps(acc[r][c], by)));
                }
            }
    }
}

// sums [D][padded] of float32 to bf16 rows [n][D] at distance `stride`, 16 x 16 at a time.
template <int D>
static void write_transposed(const float* sums, i64 padded, i64 n, bf16* out, i64 stride) {
    const __m512i index = _mm512_mullo_epi32(lanes(),
                                             _mm512_set1_epi32((int)padded));
    for (i64 t0 = 0; t0 < n; t0 += 16)
        for (int d = 0; d < D; d += 16)
            for (i64 t = t0; t < std::min(n, t0 + 16); t++)
                _mm256_storeu_si256((__m256i*)(out + t * stride + d),
                                    narrow16(_mm512_i32gather_ps(index, sums + d * padded + t, 4)));
}

template <int D>
static void backward_head(const bf16* q, const bf16* k, const bf16* v, const bf16* out, const bf16* grad,
                          const float* lse, bf16* dq, bf16* dk, bf16* dv, i64 n, i64 sq, i64 sk, i64 sv, i64 so,
                          i64 sg, i64 sdq, i64 sdk, i64 sdv, float scale, char* memory) {
    const i64 padded = (n + B - 1) / B * B;
    bf16* q_rows = (bf16*)take(memory, padded * D * 2);
    bf16* g_rows = (bf16*)take(memory, padded * D * 2);
    bf16* rows = (bf16*)take(memory, padded * D * 2);
    int32_t* k_lanes = (int32_t*)take(memory, padded * D * 2);
    int32_t* v_lanes = (int32_t*)take(memory, padded * D * 2);
    int32_t* k_pairs = (int32_t*)take(memory, padded * D * 2);
    int32_t* q_pairs = (int32_t*)take(memory, padded * D * 2);
    int32_t* g_pairs = (int32_t*)take(memory, padded * D * 2);
    float* dk_sums = (float*)take(memory, padded * D * 4);  // transposed, [D][padded]
    float* dv_sums = (float*)take(memory, padded * D * 4);
    float* dq_sums = (float*)take(memory, B * D * 4);
    float* p = (float*)take(memory, B * B * 4);
    bf16* ds = (bf16*)take(memory, B * B * 2);
    int32_t* p_pairs = (int32_t*)take(memory, B * B * 2);
    int32_t* ds_pairs = (int32_t*)take(memory, B * B * 2);
    to_rows<D>(k, sk, n, padded, rows);
    to_lanes<D>(rows, padded, k_lanes);
    to_pairs<D>(rows, padded, k_pairs);
    to_rows<D>(v, sv, n, padded, rows);
    to_lanes<D>(rows, padded, v_lanes);
    to_rows<D>(q, sq, n, padded, q_rows);
    to_pairs<D>(q_rows, padded, q_pairs);
    to_rows<D>(grad, sg, n, padded, g_rows);
    to_pairs<D>(g_rows, padded, g_pairs);
    memset(dk_sums, 0, padded * D * 4);
    memset(dv_sums, 0, padded * D * 4);
    const __m512 scale16 = _mm512_set1_ps(scale);
    const __m512i lane = lanes();
    for (i64 q0 = 0; q0 < padded; q0 += B) {
        float delta[B], shift[B];
        for (i64 r = 0; r < B; r++) {
            delta[r] = 0;
            shift[r] = INFINITY;  // a row that is none: its p is 0
            if (q0 + r >= n) continue;
            __m512 sum = _mm512_setzero_ps();
            for (int d = 0; d < D; d += 16)
                sum = _mm512_fmadd_ps(widen16(g_rows + (q0 + r) * D + d), widen16(out + (q0 + r) * so + d), sum);
            delta[r] = _mm512_reduce_add_ps(sum);
            shift[r] = lse[q0 + r];
        }
        memset(dq_sums, 0, B * D * 4);
        for (i64 k0 = 0; k0 <= q0; k0 += B) {
            for (i64 r0 = 0; r0 < B; r0 += 4) {
                __m512 s[4][4], g[4][4];
                zero(s);
                product(s, (const int32_t*)(q_rows + (q0 + r0) * D), D / 2, 1, k_lanes + k0 * (D / 2), 16 * (D / 2),
                        16, D / 2);
                for (int r = 0; r < 4; r++)
                    for (int c = 0; c < 4; c++) {
                        __m512 e = _mm512_fmsub_ps(s[r][c], scale16, _mm512_set1_ps(shift[r0 + r]));
                        e = exp16(e);
                        if (k0 == q0) {
                            const __m512i key = _mm512_add_epi32(lane, _mm512_set1_epi32(16 * c));
                            e = _mm512_maskz_mov_ps(_mm512_cmple_epi32_mask(key, _mm512_set1_epi32((int)(r0 + r))), e);
                        }
                        _mm512_storeu_ps(p + r * B + 16 * c, e);
                    }
                zero(g);
                product(g, (const int32_t*)(g_rows + (q0 + r0) * D), D / 2, 1, v_lanes + k0 * (D / 2), 16 * (D / 2),
                        16, D / 2);
                for (int r = 0; r < 4; r += 2)
                    for (int c = 0; c < 4; c++) {
                        const __m512 pa = _mm512_loadu_ps(p + r * B + 16 * c);
                        const __m512 pb = _mm512_loadu_ps(p + (r + 1) * B + 16 * c);
                        const __m512 da = _mm512_sub_ps(g[r][c], _mm512_set1_ps(delta[r0 + r]));
                        const __m512 db = _mm512_sub_ps(g[r + 1][c], _mm512_set1_ps(delta[r0 + r + 1]));
                        const __m256i a = narrow16(_mm512_mul_ps(_mm512_mul_ps(pa, scale16), da));
                        const __m256i b = narrow16(_mm512_mul_ps(_mm512_mul_ps(pb, scale16), db));
                        const i64 pair = (r0 + r) / 2 * B + 16 * c;
                        _mm256_storeu_si256((__m256i*)(ds + (r0 + r) * B + 16 * c), a);
                        _mm256_storeu_si256((__m256i*)(ds + (r0 + r + 1) * B + 16 * c), b);
                        _mm512_storeu_si512(ds_pairs + pair,
                                            _mm512_or_si512(_mm512_cvtepu16_epi32(a),
                                                            _mm512_slli_epi32(_mm512_cvtepu16_epi32(b), 16)));
                        _mm512_storeu_si512(
                            p_pairs + pair,
                            _mm512_or_si512(_mm512_cvtepu16_epi32(narrow16(pa)),
                                            _mm512_slli_epi32(_mm512_cvtepu16_epi32(narrow16(pb)), 16)));
                    }
            }
            for (i64 r0 = 0; r0 < B; r0 += 4)
                for (int d = 0; d < D; d += 64) {
                    __m512 acc[4][4];
                    zero(acc);
                    product(acc, (const int32_t*)(ds + r0 * B), B / 2, 1, k_pairs + k0 / 2 * D + d, 16, D, B / 2);
                    add_to(dq_sums + r0 * D + d, D, acc);
                }
            for (int d = 0; d < D; d += 4) {
                __m512 acc[4][4];
                zero(acc);
                product(acc, g_pairs + q0 / 2 * D + d, 1, D, p_pairs, 16, B, B / 2);
                add_to(dv_sums + d * padded + k0, padded, acc);
                zero(acc);
                product(acc, q_pairs + q0 / 2 * D + d, 1, D, ds_pairs, 16, B, B / 2);
                add_to(dk_sums + d * padded + k0, padded, acc);
            }
        }
        for (i64 r = 0; r < B && q0 + r < n; r++)
            for (int d = 0; d < D; d += 16)
                _mm256_storeu_si256((__m256i*)(dq + (q0 + r) * sdq + d),
                                    narrow16(_mm512_loadu_ps(dq_sums + r * D + d)));
    }
    write_transposed<D>(dk_sums, padded, n, dk, sdk);
    write_transposed<D>(dv_sums, padded, n, dv, sdv);
}

static i64 workspace(i64 n, i64 d) {
    const i64 padded = (n + B - 1) / B * B;
    return 64 * 40 + padded * d * 2 * 8 + padded * d * 4 * 2 + 16 * padded * 6 + B * d * 4 + B * B * 10;
}

// q, k, v, out: [batch, head, time, d] by strides (batch, head, time) of each in this order; lse [batch, head, time].
// Returns 0, or 1 for a d that there is no code for, 2 without memory.
extern "C" int attention_forward(const bf16* q, const bf16* k, const bf16* v, bf16* out, float* lse,
                                 const i64* strides, i64 batch, i64 heads, i64 n, i64 d, float scale, int threads) {
    if (d != 64 && d != 128) return 1;
    const Strides* s = (const Strides*)strides;
    int fault = 0;
#pragma omp parallel num_threads(threads)
    {
        char* memory = (char*)aligned_alloc(64, (workspace(n, d) + 63) / 64 * 64);
        if (!memory) {
#pragma omp atomic write
            fault = 2;
        }
#pragma omp for schedule(dynamic)
        for (i64 unit = 0; unit < batch * heads; unit++) {
            if (!memory) continue;
            const i64 b = unit / heads, h = unit % heads;
#define AT(x, i) (x + b * s[i].batch + h * s[i].head)
            auto run = d == 64 ? forward_head<64> : forward_head<128>;
            run(AT(q, 0), AT(k, 1), AT(v, 2), AT(out, 3), lse + unit * n, n, s[0].time, s[1].time, s[2].time, s[3].time,
                scale, memory);
        }
        free(memory);
    }
    return fault;
}

// The gradients dq, dk, dv; strides of q, k, v, out, grad, dq, dk, dv.
extern "C" int attention_backward(const bf16* q, const bf16* k, const bf16* v, const bf16* out, const bf16* grad,
                                  const float* lse, bf16* dq, bf16* dk, bf16* dv, const i64* strides, i64 batch,
                                  i64 heads, i64 n, i64 d, float scale, int threads) {
    if (d != 64 && d != 128) return 1;
    const Strides* s = (const Strides*)strides;
    int fault = 0;
#pragma omp parallel num_threads(threads)
    {
        char* memory = (char*)aligned_alloc(64, (workspace(n, d) + 63) / 64 * 64);
        if (!memory) {
#pragma omp atomic write
            fault = 2;
        }
#pragma omp for schedule(dynamic)
        for (i64 unit = 0; unit < batch * heads; unit++) {
            if (!memory) continue;
            const i64 b = unit / heads, h = unit % heads;
            auto run = d == 64 ? backward_head<64> : backward_head<128>;
            run(AT(q, 0), AT(k, 1), AT(v, 2), AT(out, 3), AT(grad, 4), lse + unit * n, AT(dq, 5), AT(dk, 6), AT(dv, 7),
                n, s[0].time, s[1].time, s[2].time, s[3].time, s[4].time, s[5].time, s[6].time, s[7].time, scale,
                memory);
        }
        free(memory);
    }
    return fault;
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
