// Products for decoding: y = x W^T + b with weights in float32, bf16 or int8. The result of a row does not depend on
// the other rows, to the last bit.

#include "parallel.h"
#include "vector.h"

namespace {

constexpr int64_t MUCH = 100000;  // with more multiplications than this, threads pay off

// --- float32 and bf16 weights -----------------------------------------------------------------------------------------

// R rows of x times N rows of W, each sum in one vector.
template <class T, int R, int N>
inline void dot(const float* x, const T* w, i64 k, const float* bias, float* y, i64 n) {
    vf total[R][N];
#pragma GCC unroll 8
    for (int r = 0; r < R; r++)
#pragma GCC unroll 8
        for (int c = 0; c < N; c++) total[r][c] = vf{};
    i64 i = 0;
    for (; i + W <= k; i += W)
#pragma GCC unroll 8
        for (int c = 0; c < N; c++) {
            const vf row = load(w + c * k + i);
#pragma GCC unroll 8
            for (int r = 0; r < R; r++) total[r][c] = load(x + r * k + i) * row + total[r][c];
        }
    if (i < k)
        for (int c = 0; c < N; c++) {
            const vf row = load_part(w + c * k + i, k - i);
            for (int r = 0; r < R; r++) total[r][c] = load_part(x + r * k + i, k - i) * row + total[r][c];
        }
    for (int r = 0; r < R; r++)
        for (int c = 0; c < N; c++) y[r * n + c] = sum(total[r][c]) + (bias ? bias[c] : 0.0f);
}

template <class T, int R>
void dots(const float* x, const T* w, i64 k, i64 first, i64 last, const float* bias, float* y, i64 n) {
    constexpr int N = R == 4 ? 2 : 4;
    i64 c = first;
    for (; c + N <= last; c += N) dot<T, R, N>(x, w + c * k, k, bias ? bias + c : nullptr, y + c, n);
    for (; c < last; c++) dot<T, R, 1>(x, w + c * k, k, bias ? bias + c : nullptr, y + c, n);
}

template <class T>
void linear_all(const float* x, i64 rows, i64 k, i64 n, const T* w, const float* bias, float* y, int threads) {
    in_ranges(n, 64, rows * n * k > MUCH ? threads : 1, [&](i64 first, i64 last) {
        i64 row = 0;
        for (; row + 4 <= rows; row += 4) dots<T, 4>(x + row * k, w, k, first, last, bias, y + row * n, n);
        for (; row + 2 <= rows; row += 2) dots<T, 2>(x + row * k, w, k, first, last, bias, y + row * n, n);
        for (; row < rows; row++) dots<T, 1>(x + row * k, w, k, first, last, bias, y + row * n, n);
    });
}

// --- int8 weights, with each row of x rounded to 8 bits -----------------------------------------------------------------

// Weights are stored in panels of 64 rows of W (columns of y), in the order in which they are read: [k / 4][64][4].
// An instruction adds up four products of bytes in each column. The sums are integers, so every form of this code
// gives the same result.
constexpr int COLUMNS = 64, GROUP = 32;  // rows of x are padded to a multiple of GROUP
constexpr int AHEAD = 4096;              // weights are prefetched this many bytes ahead

#if defined(__AVX512VNNI__) && defined(__AVX512F__)
constexpr int BYTES = 64, ADD = 128, SUMS = 24;  // bytes of a vector; added to x to make it unsigned; vectors of sums
typedef int32_t vq __attribute__((vector_size(64)));
static inline vq dot4(vq sum, int32_t x, vq w) {
    return (vq)_mm512_dpbusd_epi32((__m512i)sum, _mm512_set1_epi32(x), (__m512i)w);
}
#elif defined(__AVXVNNI__)
constexpr int BYTES = 32, ADD = 128, SUMS = 8;
typedef int32_t vq __attribute__((vector_size(32)));
static inline vq dot4(vq sum, int32_t x, vq w) {
    return (vq)_mm256_dpbusd_avx_epi32((__m256i)sum, _mm256_set1_epi32(x), (__m256i)w);
}
#elif defined(__AVX2__)
constexpr int BYTES = 32, ADD = 0, SUMS = 8;
typedef int32_t vq __attribute__((vector_size(32)));
// |x| times w with x's sign: the sum of two products of at most 127 x 127 fits into 16 bits.
static inline vq dot4(vq sum, int32_t x, vq w) {
    const __m256i all_x = _mm256_set1_epi32(x), size = _mm256_abs_epi8(all_x);
    const __m256i pairs = _mm256_maddubs_epi16(size, _mm256_sign_epi8((__m256i)w, all_x));
    return sum + (vq)_mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
}
#elif defined(__aarch64__)
constexpr int BYTES = 16, ADD = 0, SUMS = 16;
typedef int32_t vq __attribute__((vector_size(16)));
static inline vq dot4(vq sum, int32_t x, vq w) {
    const int8x16_t a = vreinterpretq_s8_s32(vdupq_n_s32(x)), b = vreinterpretq_s8_s32((int32x4_t)w);
#if defined(__ARM_FEATURE_DOTPROD)
    return (vq)vdotq_s32((int32x4_t)sum, a, b);
#else
    const int32x4_t low = vpaddlq_s16(vmull_s8(vget_low_s8(a), vget_low_s8(b)));
    const int32x4_t high = vpaddlq_s16(vmull_high_s8(a, b));
    return sum + (vq)vpaddq_s32(low, high);
#endif
}
#endif
constexpr int VECTORS = COLUMNS * 4 / BYTES, LANES = BYTES / 4;  // vectors per 4 columns of W; rows of W per vector

struct Linear {
    i64 rows, k, n, padded;
    const uint8_t* weight;  // [panels, padded / 4, 64, 4]
    const float* scale;     // [n]
    const int32_t* sums;    // [n]: the sums of the rows of W
    const float* bias;      // [n] or null
    float* y;               // [rows, n]
    uint8_t* rounded;       // [rows, padded]: x / step + ADD
    float* step;            // [rows]: max|x| / 127
};

void round_row(const Linear& t, const float* x, i64 row) {
    typedef int8_t bytes __attribute__((vector_size(W)));
    uint8_t* rounded = t.rounded + row * t.padded;
    vf most = vf{};
    vi not_numbers = vi{};
    const auto part = [&](i64 i) { return i + W <= t.k ? load(x + i) : load_part(x + i, std::max<i64>(0, t.k - i)); };
    for (i64 i = 0; i < t.k; i += W) {
        const vf numbers = part(i);
        most = larger(magnitude(numbers), most);
        not_numbers |= numbers != numbers;
    }
    // A NaN in x must result in NaN, but `larger` ignores it.
    bool bad = false;
    for (int i = 0; i < W; i++) bad |= not_numbers[i] != 0;
    const float step = bad ? NAN : std::max(largest(most), 1e-30f) / 127;
    for (i64 i = 0; i < t.padded; i += W)
        store_as(rounded + i,
                 __builtin_convertvector(__builtin_convertvector(nearest(part(i) / step), vi) + ADD, bytes));
    t.step[row] = step;
}

template <int R>
void panel(const Linear& t, i64 number, i64 row) {
    constexpr int V = SUMS / R < VECTORS ? SUMS / R : VECTORS;
    static_assert(VECTORS % V == 0, "a panel is a whole number of tiles");
    const uint8_t* x = t.rounded + row * t.padded;
    int32_t sums[R][COLUMNS];
    for (int tile = 0; tile < VECTORS; tile += V) {
        const uint8_t* weight = t.weight + number * t.padded * COLUMNS + tile * BYTES;
        vq total[R][V];
#pragma GCC unroll 8
        for (int r = 0; r < R; r++)
#pragma GCC unroll 16
            for (int v = 0; v < V; v++) total[r][v] = vq{};
        for (i64 i = 0; i < t.padded; i += 4, weight += 4 * COLUMNS) {
            if (R <= 4)
                for (int line = 0; line < V * BYTES; line += 64) __builtin_prefetch(weight + AHEAD + line);
#pragma GCC unroll 16
            for (int v = 0; v < V; v++) {
                const vq w = load_as<vq>(weight + v * BYTES);
#pragma GCC unroll 8
                for (int r = 0; r < R; r++)
                    total[r][v] = dot4(total[r][v], load_as<int32_t>(x + r * t.padded + i), w);
            }
        }
#pragma GCC unroll 8
        for (int r = 0; r < R; r++)
#pragma GCC unroll 16
            for (int v = 0; v < V; v++) store_as(sums[r] + (tile + v) * LANES, total[r][v]);
    }
    const i64 first = number * COLUMNS, columns = std::min<i64>(COLUMNS, t.n - first);
    for (int r = 0; r < R; r++) {
        float step = t.step[row + r], *y = t.y + (row + r) * t.n + first;
        for (i64 c = 0; c < columns; c++) {
            const float product = (sums[r][c] - ADD * t.sums[first + c]) * t.scale[first + c] * step;
            y[c] = t.bias ? product + t.bias[first + c] : product;
        }
    }
}

}  // namespace

// weight [n, k], bf16 or float32; x [rows, k], bias [n] or null.
extern "C" int linear(int is_bf16, const float* x, i64 rows, i64 k, i64 n, const void* weight, const float* bias,
                      float* y, int threads) {
    is_bf16 ? linear_all(x, rows, k, n, (const bf16*)weight, bias, y, threads)
            : linear_all(x, rows, k, n, (const float*)weight, bias, y, threads);
    return 0;
}

// Returns 2 if there is not enough memory.
extern "C" int linear_int8(const float* x, i64 rows, i64 k, i64 n, const uint8_t* weight, const float* scale,
                           const int32_t* sums, const float* bias, float* y, int threads) {
    const i64 padded = (k + GROUP - 1) / GROUP * GROUP;
    char* memory = scratch(rows * (padded + 4));
    if (!memory) return 2;
    Linear t{rows, k, n, padded, weight, scale, sums, bias, y, (uint8_t*)memory, (float*)(memory + rows * padded)};
    in_ranges(rows, 4, rows > 16 ? threads : 1, [&](i64 first, i64 last) {
        for (i64 row = first; row < last; row++) round_row(t, x + row * k, row);
    });
    in_parallel((n + COLUMNS - 1) / COLUMNS, rows * n * k > MUCH ? threads : 1, [&](i64 number) {
        i64 row = 0;
#if defined(__AVX512VNNI__)
        for (; row + 6 <= rows; row += 6) panel<6>(t, number, row);
#endif
        for (; row + 4 <= rows; row += 4) panel<4>(t, number, row);
        for (; row + 2 <= rows; row += 2) panel<2>(t, number, row);
        for (; row < rows; row++) panel<1>(t, number, row);
    });
    return 0;
}
