// Causal attention over cached keys and values, in float32. The result of a row does not depend on the other rows, to
// the last bit.

#include "parallel.h"
#include "vector.h"

namespace {

constexpr int ROWS = W == 8 ? 4 : 6;     // queries at a time
constexpr int VECTORS = W == 8 ? 2 : 4;  // vectors of a register tile
constexpr i64 TILE = VECTORS * W;

struct Attention {
    const float* q;         // [batch, heads, time, d]
    const float* keys;      // [batch, heads, capacity, d]
    const float* values;    // [batch, heads, capacity, d]
    const int64_t* starts;  // [batch]: the slot at which a row's text starts
    float* out;             // [batch, time, heads, d]
    i64 heads, time, d, capacity;
    i64 first;              // slot of the first query; keys and values exist up to slot first + time - 1
    float scale;
};

// Softmax of `count` scores, in place, followed by zeros up to a multiple of W.
void softmax(float* scores, i64 count) {
    const i64 end = (count + W - 1) / W * W;
    for (i64 i = count; i < end; i++) scores[i] = -INFINITY;
    vf most = all(-INFINITY), total = vf{};
    for (i64 i = 0; i < end; i += W) most = larger(most, load(scores + i));
    const float top = largest(most);
    for (i64 i = 0; i < end; i += W) {
        vf e = exponential(load(scores + i) - top);
        total = total + e;
        store(scores + i, e);
    }
    const float divisor = sum(total);
    for (i64 i = 0; i < end; i += W) store(scores + i, load(scores + i) / divisor);
}

// total [R][V]: the sums, over k < depth, of a (R rows, element k at a[r * row + k]) times b, of which read(k, v)
// returns vector v.
template <int R, int V, class Read>
inline void products(const float* a, i64 row, i64 depth, Read read, vf total[R][V]) {
#pragma GCC unroll 8
    for (int r = 0; r < R; r++)
#pragma GCC unroll 4
        for (int v = 0; v < V; v++) total[r][v] = vf{};
    for (i64 k = 0; k < depth; k++) {
        vf b[V];
#pragma GCC unroll 4
        for (int v = 0; v < V; v++) b[v] = read(k, v);
#pragma GCC unroll 8
        for (int r = 0; r < R; r++) {
            const float x = a[r * row + k];
#pragma GCC unroll 4
            for (int v = 0; v < V; v++) total[r][v] = all(x) * b[v] + total[r][v];
        }
    }
}

// out[r] = sum over the count keys of weights[r][key] values[key], for R queries.
template <int R>
void weigh(const Attention& t, const float* weights, i64 stride, i64 count, const float* values, float* out) {
    i64 d = 0;
    for (; d + TILE <= t.d; d += TILE) {
        vf total[R][VECTORS];
        products<R, VECTORS>(weights, stride, count, [&](i64 key, int v) { return load(values + key * t.d + d + v * W); },
                             total);
        for (int r = 0; r < R; r++)
            for (int v = 0; v < VECTORS; v++) store(out + r * t.heads * t.d + d + v * W, total[r][v]);
    }
    for (; d < t.d; d += W) {
        vf total[R][1];
        const i64 left = std::min<i64>(W, t.d - d);
        const auto read = [&](i64 key, int) {
            const float* at = values + key * t.d + d;
            return left == W ? load(at) : load_part(at, left);
        };
        products<R, 1>(weights, stride, count, read, total);
        for (int r = 0; r < R; r++) store_part(out + r * t.heads * t.d + d, total[r][0], left);
    }
}

// One query of one head.
void attend_one(const Attention& t, const float* q, const float* keys, const float* values, i64 count, float* scores,
                float* out) {
    const i64 whole = t.d / W * W;
    for (i64 key = 0; key < count; key++) {
        vf total = vf{};
        const float* k = keys + key * t.d;
        for (i64 d = 0; d < whole; d += W) total = load(q + d) * load(k + d) + total;
        if (whole < t.d) total = load_part(q + whole, t.d - whole) * load_part(k + whole, t.d - whole) + total;
        scores[key] = sum(total) * t.scale;
    }
    softmax(scores, count);
    weigh<1>(t, scores, count, count, values, out);
}

// R consecutive queries of one head; the first of them sees `count` keys. lanes: the keys as [tile, d, TILE].
// scores: memory for R rows of `stride` elements.
template <int R>
void attend_rows(const Attention& t, const float* q, const float* lanes, const float* values, i64 count, float* scores,
                 i64 stride, float* out) {
    const i64 most = count + R - 1;
    for (i64 tile = 0; tile * TILE < most; tile++) {
        const float* part = lanes + tile * t.d * TILE;
        vf total[R][VECTORS];
        products<R, VECTORS>(q, t.d, t.d, [&](i64 d, int v) { return load(part + d * TILE + v * W); }, total);
        for (int r = 0; r < R; r++)
            for (int v = 0; v < VECTORS; v++)
                store(scores + r * stride + tile * TILE + v * W, total[r][v] * t.scale);
    }
    for (i64 r = 0; r < R; r++) {
        softmax(scores + r * stride, count + r);
        std::fill(scores + r * stride + count + r, scores + r * stride + most, 0.0f);
    }
    weigh<R>(t, scores, stride, most, values, out);
}

i64 workspace(const Attention& t, i64 count) {
    const i64 tiles = (count + TILE - 1) / TILE * TILE;
    return 4 * (ROWS * (tiles + TILE) + (t.time == 1 ? 0 : tiles * t.d));
}

bool attend_head(const Attention& t, i64 row, i64 head) {
    const i64 at = row * t.heads + head, start = t.starts[row], step = t.heads * t.d;  // step: between rows of out
    const float* q = t.q + at * t.time * t.d;
    const float* keys = t.keys + (at * t.capacity + start) * t.d;
    const float* values = t.values + (at * t.capacity + start) * t.d;
    float* out = t.out + (row * t.time * t.heads + head) * t.d;
    const i64 padding = std::clamp<i64>(start - t.first, 0, t.time), count = t.first + t.time - start;
    for (i64 i = 0; i < padding; i++) std::fill(out + i * step, out + i * step + t.d, 0.0f);
    if (count <= 0) return true;
    float* scores = (float*)scratch(workspace(t, count));
    if (!scores) return false;
    if (t.time == 1 && !padding) {
        attend_one(t, q, keys, values, count, scores, out);
        return true;
    }
    const i64 stride = (count + TILE - 1) / TILE * TILE + TILE;
    float* lanes = scores + ROWS * stride;
    memset(lanes, 0, (count + TILE - 1) / TILE * TILE * t.d * 4);
    for (i64 key = 0; key < count; key++)
        for (i64 d = 0; d < t.d; d++) lanes[(key / TILE * t.d + d) * TILE + key % TILE] = keys[key * t.d + d];
    i64 i = padding;
    for (; t.time - i >= ROWS; i += ROWS)
        attend_rows<ROWS>(t, q + i * t.d, lanes, values, t.first + i + 1 - start, scores, stride, out + i * step);
    for (; i < t.time; i++)
        attend_rows<1>(t, q + i * t.d, lanes, values, t.first + i + 1 - start, scores, stride, out + i * step);
    return true;
}

}  // namespace

// Returns 0, or 2 if there is not enough memory.
extern "C" int attend(const float* q, const float* keys, const float* values, const int64_t* starts, float* out,
                      i64 batch, i64 heads, i64 time, i64 d, i64 capacity, i64 first, float scale, int threads) {
    const Attention t{q, keys, values, starts, out, heads, time, d, capacity, first, scale};
    const bool much = batch * heads * time * (first + time) * d > 200000;
    int fault = 0;
    in_parallel(batch * heads, much ? threads : 1, [&](i64 task) {
        if (!attend_head(t, task / heads, task % heads)) __atomic_store_n(&fault, 2, __ATOMIC_RELAXED);
    });
    return fault;
}
