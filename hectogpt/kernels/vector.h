// Vectors of WIDTH float32 numbers in GCC's and Clang's vector extensions, from one source for every CPU. bf16
// numbers are widened when they are read. Intrinsics are used where the extensions have no operator.
//
// Compile with -ffp-contract=fast and never with -ffast-math, which folds the rounding in `exponential` away.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#ifndef WIDTH
#if defined(__AVX512F__)
#define WIDTH 16
#elif defined(__AVX2__)
#define WIDTH 8
#else
#define WIDTH 4
#endif
#endif

// Each is 1 if a vector is one register, of AVX-512, AVX2 or NEON. Vectors wider than the CPU's take several registers.
#if WIDTH == 16 && defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512DQ__)
#define IN_512 1
#else
#define IN_512 0
#endif
#if WIDTH == 8 && defined(__AVX2__) && defined(__FMA__)
#define IN_256 1
#else
#define IN_256 0
#endif
#if WIDTH == 4 && defined(__aarch64__)
#define IN_NEON 1
#else
#define IN_NEON 0
#endif
#if IN_512 && defined(__AVX512BF16__)
#define IN_512_BF16 1
#else
#define IN_512_BF16 0
#endif

typedef uint16_t bf16;
typedef int64_t i64;
constexpr int W = WIDTH;
typedef float vf __attribute__((vector_size(4 * WIDTH)));
typedef int32_t vi __attribute__((vector_size(4 * WIDTH)));
typedef uint32_t vu __attribute__((vector_size(4 * WIDTH)));
typedef bf16 vh __attribute__((vector_size(2 * WIDTH)));

template <class V>
static inline V load_as(const void* p) {
    V v;
    memcpy(&v, p, sizeof v);
    return v;
}
template <class V>
static inline void store_as(void* p, V v) {
    memcpy(p, &v, sizeof v);
}

static inline vf all(float x) { return x - vf{}; }  // not 0 + x, which would lose the sign of -0
static inline vi all(int32_t x) { return x - vi{}; }

// --- bf16 -------------------------------------------------------------------------------------------------------------

static inline vu widen_bits(vh x) {
#if IN_512
    return (vu)_mm512_cvtepu16_epi32(load_as<__m256i>(&x));
#elif IN_256
    return (vu)_mm256_cvtepu16_epi32(load_as<__m128i>(&x));
#else
    return __builtin_convertvector(x, vu);
#endif
}

static inline vf widen(vh x) { return (vf)(widen_bits(x) << 16); }

// Rounds to the nearest bf16, ties to even; NaN stays NaN.
static inline vh narrow(vf x) {
#if IN_512_BF16
    const auto h = _mm512_cvtneps_pbh((__m512)x);
    return load_as<vh>(&h);
#else
    const vu bits = (vu)x, rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16, quiet = (bits >> 16) | 0x40;
    const vu result = (bits & 0x7fffffff) > 0x7f800000 ? quiet : rounded;
#if IN_256
    const __m256i halves = _mm256_packus_epi32((__m256i)result, (__m256i)result);
    const __m128i whole = _mm256_castsi256_si128(_mm256_permute4x64_epi64(halves, 8));
    return load_as<vh>(&whole);
#else
    return __builtin_convertvector(result, vh);
#endif
#endif
}

static inline vf load(const float* p) { return load_as<vf>(p); }
static inline vf load(const bf16* p) { return widen(load_as<vh>(p)); }
static inline void store(float* p, vf x) { store_as(p, x); }
static inline void store(bf16* p, vf x) { store_as(p, narrow(x)); }

static inline float widen(float x) { return x; }
static inline float widen(bf16 x) {
    const uint32_t bits = (uint32_t)x << 16;
    float f;
    memcpy(&f, &bits, 4);
    return f;
}
static inline void put(float* p, float x) { *p = x; }
static inline void put(bf16* p, float x) { *p = narrow(all(x))[0]; }

// Loads the first count < W numbers; the other lanes get `rest`.
template <class T>
static inline vf load_part(const T* p, i64 count, float rest = 0) {
    float part[W];
    for (int i = 0; i < W; i++) part[i] = i < count ? widen(p[i]) : rest;
    return load(part);
}
template <class T>
static inline void store_part(T* p, vf x, i64 count) {
    T part[W];
    store(part, x);
    memcpy(p, part, count * sizeof(T));
}

// --- functions of vectors ---------------------------------------------------------------------------------------------

// The larger of a and b; b if one of them is NaN.
static inline vf larger(vf a, vf b) {
#if IN_512
    return (vf)_mm512_max_ps((__m512)a, (__m512)b);
#elif IN_256
    return (vf)_mm256_max_ps((__m256)a, (__m256)b);
#else
    return a > b ? a : b;
#endif
}

// a b + c, rounded once where the CPU has such an instruction. Use it for sums of two products: a compiler could round
// either. For other sums the operators are faster, because the compiler chooses the registers.
static inline vf fused(vf a, vf b, vf c) {
#if IN_512
    return (vf)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif IN_256
    return (vf)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#elif IN_NEON
    return (vf)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b);
#else
    return a * b + c;
#endif
}

static inline vf magnitude(vf x) { return (vf)((vi)x & 0x7fffffff); }

static inline vf square_root(vf x) {
#if IN_512
    return (vf)_mm512_sqrt_ps((__m512)x);
#elif IN_256
    return (vf)_mm256_sqrt_ps((__m256)x);
#elif IN_NEON
    return (vf)vsqrtq_f32((float32x4_t)x);
#else
    for (int i = 0; i < W; i++) x[i] = __builtin_sqrtf(x[i]);
    return x;
#endif
}

// Rounds to the nearest integer, ties to even; for |x| < 2^22.
static inline vf nearest(vf x) {
#if IN_512
    return (vf)_mm512_roundscale_ps((__m512)x, 8);
#elif IN_256
    return (vf)_mm256_round_ps((__m256)x, 8);
#elif IN_NEON
    return (vf)vrndnq_f32((float32x4_t)x);
#else
    return (x + 12582912.0f) - 12582912.0f;
#endif
}

// The sum of a vector: adds the second half to the first until one number is left.
static inline float sum(vf x) {
#if IN_512
    return _mm512_reduce_add_ps((__m512)x);
#elif IN_256
    const __m128 a = _mm_add_ps(_mm256_castps256_ps128((__m256)x), _mm256_extractf128_ps((__m256)x, 1));
    const __m128 b = _mm_add_ps(a, _mm_movehl_ps(a, a));
    return _mm_cvtss_f32(_mm_add_ss(b, _mm_movehdup_ps(b)));
#else
    for (int half = W / 2; half; half /= 2)
        for (int i = 0; i < half; i++) x[i] += x[i + half];
    return x[0];
#endif
}

static inline float largest(vf x) {
#if IN_512
    return _mm512_reduce_max_ps((__m512)x);
#else
    float top = x[0];
    for (int i = 1; i < W; i++) top = x[i] > top ? x[i] : top;
    return top;
#endif
}

// exp with a relative error of 2e-7: 2^n times a polynomial on [-ln 2 / 2, ln 2 / 2] (Cephes' expf). Below 2^-126 it is
// 0 (with AVX-512, below 2^-149). NaN stays NaN. Valid for x <= 88.
static inline vf exponential(vf x) {
    const vf lowest = all(IN_512 ? -200.0f : -87.0f), given = x;
    x = larger(lowest, x);
    const vf n = nearest(x * 1.44269504f);
    vf r = x - n * 0.693359375f;
    r = r + n * 2.12194440e-4f;
    vf p = all(1.9875691500e-4f);
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * (r * r) + (r + 1.0f);
#if IN_512
    (void)given;
    return (vf)_mm512_scalef_ps((__m512)p, (__m512)n);
#else
    p = p * (vf)((__builtin_convertvector(n, vi) + 127) << 23);
    return given < lowest ? vf{} : p;
#endif
}

// --- tensors ----------------------------------------------------------------------------------------------------------

// The strides of a tensor [batch, head, time, d].
struct Strides {
    i64 batch, head, time;  // in elements; the last axis is contiguous
};

// The start of head h of text b in tensor number i.
#define AT(x, i) (x + b * s[i].batch + h * s[i].head)
