// y = x W^T + b for weights of 8 or 4 bits, with each row of x rounded to 8 bits. The sums of products are whole numbers,
// so a row's result does not depend, to the bit, on the rows beside it.
//
// Weights lie in panels of 64 rows of W (columns of y), in the order in which they are read. The instruction vpdpbusd
// adds up four products of an unsigned and a signed byte in each of 16 columns.

#include "kernels.h"

namespace {

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

}  // namespace

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
