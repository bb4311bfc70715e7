// Products of small tiles whose sums stay in registers. Operands are 32-bit units of one float32 or two bf16 numbers;
// pairs of bf16 units are multiplied and added up by vdpbf16ps where the CPU has it.
#pragma once

#include "vector.h"

constexpr int VECTORS = W == 8 ? 2 : 4;  // per row of a register tile: 4 x 4 of 32 registers, or 4 x 2 of 16
template <class T>
constexpr int PER = 4 / sizeof(T);

// acc + a b, or the sum of two such products of bf16 pairs.
template <class T>
inline vf multiply_add(vf acc, int32_t a, vi b) {
    if (PER<T> == 1) {
        float x;
        memcpy(&x, &a, 4);
        return all(x) * (vf)b + acc;
    }
#if IN_512_BF16
    const __m512i both = _mm512_set1_epi32(a);
    return (vf)_mm512_dpbf16_ps((__m512)acc, load_as<__m512bh>(&both), load_as<__m512bh>(&b));
#else
    const vf low = widen(load_as<bf16>(&a)) * (vf)(b << 16) + acc;
    return widen((bf16)((uint32_t)a >> 16)) * (vf)(b & (int32_t)0xffff0000) + low;
#endif
}

template <int R, int V>
struct Tile {
    vf sum[R][V];
};

// Sums of a (R rows, unit k of row r at a[r * row + k * step]) times b [k][V vectors], which are `panel` units apart.
template <class T, int R, int V>
inline Tile<R, V> product(const int32_t* a, i64 row, i64 step, const int32_t* b, i64 panel, i64 stride, i64 depth) {
    Tile<R, V> t;
#pragma GCC unroll 16
    for (int r = 0; r < R; r++)
#pragma GCC unroll 4
        for (int c = 0; c < V; c++) t.sum[r][c] = vf{};
    for (i64 k = 0; k < depth; k++) {
        vi w[V];
#pragma GCC unroll 4
        for (int c = 0; c < V; c++) w[c] = load_as<vi>(b + k * stride + c * panel);
#pragma GCC unroll 16
        for (int r = 0; r < R; r++) {
            const int32_t x = a[r * row + k * step];
#pragma GCC unroll 4
            for (int c = 0; c < V; c++) t.sum[r][c] = multiply_add<T>(t.sum[r][c], x, w[c]);
        }
    }
    return t;
}

// Adds the tile to c [R][V vectors], whose rows are `row` numbers apart.
template <int R, int V>
inline void add_to(float* c, i64 row, const Tile<R, V>& t) {
#pragma GCC unroll 16
    for (int r = 0; r < R; r++)
#pragma GCC unroll 4
        for (int v = 0; v < V; v++) store(c + r * row + v * W, load(c + r * row + v * W) + t.sum[r][v]);
}

// Turns rows [n][columns] of numbers into units of PER rows.
template <class T>
inline void to_units(const T* rows, i64 n, i64 columns, int32_t* out) {
    if (PER<T> == 1) {
        memcpy(out, rows, n * columns * 4);
        return;
    }
    for (i64 t = 0; t < n; t += 2)
        for (i64 d = 0; d < columns; d += W) {
            const vu a = widen_bits(load_as<vh>(rows + t * columns + d));
            const vu b = widen_bits(load_as<vh>(rows + (t + 1) * columns + d));
            store_as(out + t / 2 * columns + d, a | (b << 16));
        }
}

template <class X>
inline X* take(char*& memory, i64 count) {
    char* start = memory;
    memory += (count * (i64)sizeof(X) + 63) / 64 * 64;
    return (X*)start;
}
