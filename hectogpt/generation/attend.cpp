// Causal attention over cached keys and values, in float32. A row's result does not depend, to the bit, on the rows
// beside it.

#include "kernels.h"

namespace {

struct Attention {
    const float* q;         // [batch, heads, time, d]
    const float* keys;      // [batch, heads, capacity, d]
    const float* values;    // [batch, heads, capacity, d]
    const int64_t* starts;  // [batch]: the slot at which a row's text starts
    float* out;             // [batch, time, heads, d]
    int heads, time, d, capacity;
    int first;              // slot of the first query; keys and values are there up to slot first + time - 1
    float scale;
};

// exp(x) for x <= 0, to 2 units in the last place (Cephes' polynomial).
inline __m512 exponential(__m512 x) {
    x = _mm512_max_ps(_mm512_set1_ps(-87.0f), x);  // in this order a NaN stays
    __m512 n = _mm512_roundscale_ps(_mm512_mul_ps(x, _mm512_set1_ps(1.44269504f)), 0);
    __m512 r = _mm512_fnmadd_ps(n, _mm512_set1_ps(0.693359375f), x);
    r = _mm512_fnmadd_ps(n, _mm512_set1_ps(-2.12194440e-4f), r);
    __m512 p = _mm512_set1_ps(1.9875691500e-4f);
    for (float c : {1.3981999507e-3f, 8.3334519073e-3f, 4.1665795894e-2f, 1.6666665459e-1f, 5.0000001201e-1f})
        p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(c));
    p = _mm512_fmadd_ps(p, _mm512_mul_ps(r, r), _mm512_add_ps(r, _mm512_set1_ps(1)));
    return _mm512_scalef_ps(p, n);
}

// The softmax of count scores, in place.
void softmax(float* scores, int count) {
    __m512 most = _mm512_set1_ps(-INFINITY), sum = _mm512_setzero_ps();
    for (int i = 0; i < count; i += 16) {
        __mmask16 inside = first_of_16(count - i);
        most = _mm512_mask_max_ps(most, inside, most, _mm512_maskz_loadu_ps(inside, scores + i));
    }
    __m512 top = _mm512_set1_ps(_mm512_reduce_max_ps(most));
    for (int i = 0; i < count; i += 16) {
        __mmask16 inside = first_of_16(count - i);
        __m512 e = exponential(_mm512_sub_ps(_mm512_maskz_loadu_ps(inside, scores + i), top));
        _mm512_mask_storeu_ps(scores + i, inside, e);
        sum = _mm512_mask_add_ps(sum, inside, sum, e);
    }
    __m512 divisor = _mm512_set1_ps(_mm512_reduce_add_ps(sum));
    for (int i = 0; i < count; i += 16) {
        __mmask16 inside = first_of_16(count - i);
        __m512 e = _mm512_maskz_loadu_ps(inside, scores + i);
        _mm512_mask_storeu_ps(scores + i, inside, _mm512_div_ps(e, divisor));
    }
}

// out[r] = sum over the count keys of weights[r][key] values[key], for ROWS queries.
template <int ROWS>
void weigh(const Attention& t, const float* weights, int stride, int count, const float* values, float* out) {
    for (int d = 0; d < t.d; d += COLUMNS) {
        __m512 sum[ROWS][4];
        __mmask16 inside[4];
#pragma GCC unroll 4
        for (int v = 0; v < 4; v++) inside[v] = first_of_16(t.d - d - 16 * v);
#pragma GCC unroll 8
        for (int r = 0; r < ROWS; r++)
#pragma GCC unroll 4
            for (int v = 0; v < 4; v++) sum[r][v] = _mm512_setzero_ps();
        for (int key = 0; key < count; key++) {
            __m512 value[4];
#pragma GCC unroll 4
            for (int v = 0; v < 4; v++) value[v] = _mm512_maskz_loadu_ps(inside[v], values + (size_t)key * t.d + d + 16 * v);
#pragma GCC unroll 8
            for (int r = 0; r < ROWS; r++) {
                __m512 weight = _mm512_set1_ps(weights[(size_t)r * stride + key]);
#pragma GCC unroll 4
                for (int v = 0; v < 4; v++) sum[r][v] = _mm512_fmadd_ps(weight, value[v], sum[r][v]);
            }
        }
#pragma GCC unroll 8
        for (int r = 0; r < ROWS; r++)
#pragma GCC unroll 4
            for (int v = 0; v < 4; v++)
                _mm512_mask_storeu_ps(out + (size_t)r * t.heads * t.d + d + 16 * v, inside[v], sum[r][v]);
    }
}

// One query of one head.
void attend_one(const Attention& t, const float* q, const float* keys, const float* values, int count, float* out) {
    static thread_local std::vector<float> scores;
    scores.resize(count);
    int whole = t.d / 16 * 16;
    __mmask16 rest = first_of_16(t.d - whole);
    for (int key = 0; key < count; key++) {
        __m512 sum = _mm512_setzero_ps();
        const float* k = keys + (size_t)key * t.d;
        for (int d = 0; d < whole; d += 16)
            sum = _mm512_fmadd_ps(_mm512_loadu_ps(q + d), _mm512_loadu_ps(k + d), sum);
        if (rest) {
            __m512 last = _mm512_maskz_loadu_ps(rest, k + whole);
            sum = _mm512_fmadd_ps(_mm512_maskz_loadu_ps(rest, q + whole), last, sum);
        }
        scores[key] = _mm512_reduce_add_ps(sum) * t.scale;
    }
    softmax(scores.data(), count);
    weigh<1>(t, scores.data(), count, count, values, out);
}

// ROWS queries of one head that follow each other; the first of them sees `count` keys. transposed: the keys as
// [tile of 64 keys, d, 64].
template <int ROWS>
void attend_rows(const Attention& t, const float* q, const float* transposed, const float* values, int count, float* out) {
    static thread_local std::vector<float> all;
    int most = count + ROWS - 1, tiles = (most + COLUMNS - 1) / COLUMNS, stride = tiles * COLUMNS;
    all.resize((size_t)ROWS * stride);
    float* scores = all.data();
    for (int tile = 0; tile < tiles; tile++) {
        __m512 sum[ROWS][4];
#pragma GCC unroll 8
        for (int r = 0; r < ROWS; r++)
#pragma GCC unroll 4
            for (int v = 0; v < 4; v++) sum[r][v] = _mm512_setzero_ps();
        const float* part = transposed + (size_t)tile * t.d * COLUMNS;
        for (int d = 0; d < t.d; d++, part += COLUMNS) {
            __m512 key[4];
#pragma GCC unroll 4
            for (int v = 0; v < 4; v++) key[v] = _mm512_loadu_ps(part + 16 * v);
#pragma GCC unroll 8
            for (int r = 0; r < ROWS; r++) {
                __m512 x = _mm512_set1_ps(q[(size_t)r * t.d + d]);
#pragma GCC unroll 4
                for (int v = 0; v < 4; v++) sum[r][v] = _mm512_fmadd_ps(x, key[v], sum[r][v]);
            }
        }
        __m512 scale = _mm512_set1_ps(t.scale);
#pragma GCC unroll 8
        for (int r = 0; r < ROWS; r++)
#pragma GCC unroll 4
            for (int v = 0; v < 4; v++)
                _mm512_storeu_ps(scores + (size_t)r * stride + tile * COLUMNS + 16 * v, _mm512_mul_ps(sum[r][v], scale));
    }
    for (int r = 0; r < ROWS; r++) {
        softmax(scores + (size_t)r * stride, count + r);
        std::fill(scores + (size_t)r * stride + count + r, scores + (size_t)r * stride + most, 0.0f);
    }
    weigh<ROWS>(t, scores, stride, most, values, out);
}

void attend_head(const Attention& t, int row, int head) {
    size_t at = (size_t)row * t.heads + head;
    int start = (int)t.starts[row];
    const float* q = t.q + at * t.time * t.d;
    const float* keys = t.keys + (at * t.capacity + start) * t.d;
    const float* values = t.values + (at * t.capacity + start) * t.d;
    float* out = t.out + ((size_t)row * t.time * t.heads + head) * t.d;
    size_t step = (size_t)t.heads * t.d;  // from a query's result to the next one's
    int padding = std::clamp(start - t.first, 0, t.time);
    for (int i = 0; i < padding; i++) std::fill(out + i * step, out + i * step + t.d, 0.0f);
    if (t.time == 1 && !padding) return attend_one(t, q, keys, values, t.first + 1 - start, out);
    int count = t.first + t.time - start;
    if (count <= 0) return;
    static thread_local std::vector<float> transposed;
    transposed.assign((size_t)(count + COLUMNS - 1) / COLUMNS * COLUMNS * t.d, 0.0f);
    for (int key = 0; key < count; key++)
        for (int d = 0; d < t.d; d++)
            transposed[((size_t)(key / COLUMNS) * t.d + d) * COLUMNS + key % COLUMNS] = keys[(size_t)key * t.d + d];
    int i = padding;
    for (; t.time - i >= 6; i += 6)
        attend_rows<6>(t, q + (size_t)i * t.d, transposed.data(), values, t.first + i + 1 - start, out + i * step);
    for (; i < t.time; i++)
        attend_rows<1>(t, q + (size_t)i * t.d, transposed.data(), values, t.first + i + 1 - start, out + i * step);
}

}  // namespace

extern "C" void attend(const float* q, const float* keys, const float* values, const int64_t* starts, float* out,
                       int batch, int heads, int time, int d, int capacity, int first, float scale, int threads) {
    Attention t{q, keys, values, starts, out, heads, time, d, capacity, first, scale};
    bool much = (size_t)batch * heads * time * (first + time) * d > 200000;
#pragma omp parallel for num_threads(threads) schedule(dynamic) if (much)
    for (int task = 0; task < batch * heads; task++) attend_head(t, task / heads, task % heads);
}
