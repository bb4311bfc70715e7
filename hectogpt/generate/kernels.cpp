// What decoding a token takes, for AVX-512. A row's result does not depend, to the bit, on the rows beside it.
//
// int_linear: y = x W^T + b for weights of 8 or 4 bits, with each row of x rounded to 8 bits. Weights lie in panels of 64 rows of W (columns of y), in the order in which they are read. The instruction vpdpbusd
// adds up four products of an unsigned and a signed byte in each of 16 columns.
//
// attend: causal attention over cached keys and values, in float32.
#include <immintrin.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

namespace {

constexpr int COLUMNS = 64;   // of a panel: four vectors of 16
constexpr int GROUP = 32;     // weights of 4 bits that share a scale; rows of x are padded to a multiple of it
constexpr int GROUP_BYTES = COLUMNS * (GROUP / 2 + 2);  // 4-bit weights and the float16 scales of a panel's columns
constexpr int AHEAD = 4096;   // bytes by which weights are fetched before they are used

struct Linear {
    const float* x;         // [rows, k]
    const uint8_t* weight;  // [panels, ...]
    const float* scale;     // [n], 8 bits only
    const int32_t* excess;  // [n], 8 bits only: 128 times the sum of a row of W
    const float* bias;      // [n] or null
    float* y;               // [rows, n]
    int rows, k, n;
    int padded;             // k, padded
    uint8_t* rounded;       // [rows, padded]: x / step, with 128 added for 8 bits
    float* step;            // [rows]: max|x| / 127
    int32_t* minus_8_sums;  // [rows, padded / GROUP], 4 bits only: -8 times the sum of a group of the rounded x
};

__mmask16 first_of_16(int count) { return (1u << std::clamp(count, 0, 16)) - 1; }

void round_row(const Linear& t, int row, int add) {
    const float* x = t.x + (size_t)row * t.k;
    uint8_t* rounded = t.rounded + (size_t)row * t.padded;
    __m512 most = _mm512_setzero_ps();
    __mmask16 not_numbers = 0;
    for (int i = 0; i < t.k; i += 16) {
        __m512 part = _mm512_maskz_loadu_ps(first_of_16(t.k - i), x + i);
        most = _mm512_max_ps(most, _mm512_abs_ps(part));
        not_numbers |= _mm512_cmp_ps_mask(part, part, _CMP_UNORD_Q);
    }
    // A NaN in x has to come out as NaN; max passes over it.
    float step = not_numbers ? NAN : std::max(_mm512_reduce_max_ps(most), 1e-30f) / 127;
    __m512 divisor = _mm512_set1_ps(step);
    for (int i = 0; i < t.padded; i += 16) {
        __m512 quotient = _mm512_div_ps(_mm512_maskz_loadu_ps(first_of_16(t.k - i), x + i), divisor);
        __m512i whole = _mm512_add_epi32(_mm512_cvtps_epi32(quotient), _mm512_set1_epi32(add));
        _mm_storeu_si128((__m128i*)(rounded + i), _mm512_cvtepi32_epi8(whole));
    }
    t.step[row] = step;
}

void sum_groups(const Linear& t, int row) {
    const int8_t* rounded = (const int8_t*)t.rounded + (size_t)row * t.padded;
    for (int group = 0; group < t.padded / GROUP; group++) {
        int32_t sum = 0;
        for (int i = 0; i < GROUP; i++) sum += rounded[group * GROUP + i];
        t.minus_8_sums[(size_t)row * (t.padded / GROUP) + group] = -8 * sum;
    }
}

// Four bytes, in each of 16 places.
inline __m512i repeat(const uint8_t* bytes) {
    int32_t word;
    std::memcpy(&word, bytes, 4);
    return _mm512_set1_epi32(word);
}

inline void fetch(const uint8_t* weight) {
    for (int line = 0; line < 4; line++) _mm_prefetch((const char*)weight + AHEAD + 64 * line, _MM_HINT_T0);
}

// The loops over ROWS and over the four vectors must be unrolled, or the sums are kept in memory.
template <int ROWS>
void panel_8(const Linear& t, int panel, int row) {
    __m512i sum[ROWS][4];
#pragma GCC unroll 8
    for (int r = 0; r < ROWS; r++)
#pragma GCC unroll 4
        for (int v = 0; v < 4; v++) sum[r][v] = _mm512_setzero_si512();
    const uint8_t* weight = t.weight + (size_t)panel * t.padded * COLUMNS;
    const uint8_t* x = t.rounded + (size_t)row * t.padded;
    for (int i = 0; i < t.padded; i += 4, weight += 4 * COLUMNS) {
        if (ROWS <= 4) fetch(weight);
        __m512i w[4];
#pragma GCC unroll 4
        for (int v = 0; v < 4; v++) w[v] = _mm512_loadu_si512(weight + 64 * v);
#pragma GCC unroll 8
        for (int r = 0; r < ROWS; r++) {
            __m512i four = repeat(x + (size_t)r * t.padded + i);
#pragma GCC unroll 4
            for (int v = 0; v < 4; v++) sum[r][v] = _mm512_dpbusd_epi32(sum[r][v], four, w[v]);
        }
    }
    alignas(64) int32_t sums[ROWS][COLUMNS];
#pragma GCC unroll 8
    for (int r = 0; r < ROWS; r++)
#pragma GCC unroll 4
        for (int v = 0; v < 4; v++) _mm512_store_si512(sums[r] + 16 * v, sum[r][v]);
    int first = panel * COLUMNS, columns = std::min(COLUMNS, t.n - first);
    for (int r = 0; r < ROWS; r++) {
        float step = t.step[row + r], *y = t.y + (size_t)(row + r) * t.n + first;
        for (int c = 0; c < columns; c++) {
            float product = (sums[r][c] - t.excess[first + c]) * t.scale[first + c] * step;
            y[c] = t.bias ? product + t.bias[first + c] : product;
        }
    }
}

// In 4 bits w = (q - 8) scale with q from 0 to 15, so a group's sum of x w is scale (sum x q - 8 sum x).
template <int ROWS>
void panel_4(const Linear& t, int panel, int row) {
    int groups = t.padded / GROUP;
    __m512 total[ROWS][4];
#pragma GCC unroll 8
    for (int r = 0; r < ROWS; r++)
#pragma GCC unroll 4
        for (int v = 0; v < 4; v++) total[r][v] = _mm512_setzero_ps();
    const uint8_t* weight = t.weight + (size_t)panel * groups * GROUP_BYTES;
    const uint8_t* x = t.rounded + (size_t)row * t.padded;
    const int32_t* start = t.minus_8_sums + (size_t)row * groups;
    const __m512i low = _mm512_set1_epi8(15);
    for (int g = 0; g < groups; g++, weight += GROUP_BYTES) {
        const uint8_t* scales = weight + COLUMNS * GROUP / 2;
        if (ROWS <= 4)
            for (int part = 0; part < GROUP_BYTES; part += 256) fetch(weight + part);
#pragma GCC unroll 4
        for (int v = 0; v < 4; v++) {
            __m512i q[8];
#pragma GCC unroll 4
            for (int j = 0; j < 4; j++) {
                __m512i both = _mm512_loadu_si512(weight + 256 * v + 64 * j);
                q[j] = _mm512_and_si512(both, low);
                q[j + 4] = _mm512_and_si512(_mm512_srli_epi16(both, 4), low);
            }
            __m512 scale = _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)(scales + 32 * v)));
#pragma GCC unroll 8
            for (int r = 0; r < ROWS; r++) {
                __m512i sum = _mm512_set1_epi32(start[(size_t)r * groups + g]);
#pragma GCC unroll 8
                for (int j = 0; j < 8; j++)
                    sum = _mm512_dpbusd_epi32(sum, q[j], repeat(x + (size_t)r * t.padded + g * GROUP + 4 * j));
                total[r][v] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum), scale, total[r][v]);
            }
        }
    }
    alignas(64) float totals[ROWS][COLUMNS];
#pragma GCC unroll 8
    for (int r = 0; r < ROWS; r++)
#pragma GCC unroll 4
        for (int v = 0; v < 4; v++) _mm512_store_ps(totals[r] + 16 * v, total[r][v]);
    int first = panel * COLUMNS, columns = std::min(COLUMNS, t.n - first);
    for (int r = 0; r < ROWS; r++) {
        float step = t.step[row + r], *y = t.y + (size_t)(row + r) * t.n + first;
        for (int c = 0; c < columns; c++) {
            float product = totals[r][c] * step;
            y[c] = t.bias ? product + t.bias[first + c] : product;
        }
    }
}

void rows_8(const Linear& t, int panel) {
    int row = 0;
    for (; t.rows - row >= 6; row += 6) panel_8<6>(t, panel, row);
    switch (t.rows - row) {
        case 1: return panel_8<1>(t, panel, row);
        case 2: return panel_8<2>(t, panel, row);
        case 3: return panel_8<3>(t, panel, row);
        case 4: return panel_8<4>(t, panel, row);
        case 5: return panel_8<5>(t, panel, row);
    }
}

void rows_4(const Linear& t, int panel) {
    int row = 0;
    for (; t.rows - row >= 4; row += 4) panel_4<4>(t, panel, row);
    switch (t.rows - row) {
        case 1: return panel_4<1>(t, panel, row);
        case 2: return panel_4<2>(t, panel, row);
        case 3: return panel_4<3>(t, panel, row);
    }
}

// --- attention ---

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

extern "C" void int_linear(int bits, const float* x, int rows, int k, int n, const uint8_t* weight, const float* scale,
                           const int32_t* excess, const float* bias, float* y, int threads) {
    static thread_local std::vector<uint8_t> rounded;
    static thread_local std::vector<float> step;
    static thread_local std::vector<int32_t> minus_8_sums;
    int padded = (k + GROUP - 1) / GROUP * GROUP;
    rounded.resize((size_t)rows * padded);
    step.resize(rows);
    minus_8_sums.resize(bits == 4 ? (size_t)rows * (padded / GROUP) : 0);
    Linear t{x, weight, scale, excess, bias, y, rows, k, n, padded, rounded.data(), step.data(), minus_8_sums.data()};
#pragma omp parallel for num_threads(threads) if (rows > 16)
    for (int row = 0; row < rows; row++) {
        round_row(t, row, bits == 8 ? 128 : 0);
        if (bits == 4) sum_groups(t, row);
    }
    int panels = (n + COLUMNS - 1) / COLUMNS;
#pragma omp parallel for num_threads(threads) schedule(dynamic) if ((size_t)rows * n * k > 100000)
    for (int panel = 0; panel < panels; panel++) bits == 8 ? rows_8(t, panel) : rows_4(t, panel);
}
