// Causal attention in bf16, forward and backward; kernels.cpp says when it is used. Every head of a text is computed by
// one thread in a fixed order, so results do not depend on the number of threads.

#include "kernels.h"

// Tiles of 64 queries by 64 keys. vdpbf16ps multiplies pairs, so operands lie in two forms:
//   lanes:  [n / 16][d / 2][16][2], 16 rows side by side, pairs along d       (for products that sum over d)
//   pairs:  [n / 2][d][2], two rows interleaved                               (for products that sum over rows)
// n is the number of tokens rounded up to a multiple of 64, with zeros in the rows that are none.

static const i64 B = 64;

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
