// Cross entropy over a vocabulary with its gradients, a chunk of rows at a time. `head_rows` computes z = x W^T in
// tiles, e = exp(z - shift), the sums of e, and e W, which is the gradient of x up to a factor per row. `head_columns`
// adds e^T x to the gradient of W. The shift is the target's logit; the largest one is needed only if a sum overflows.

#pragma GCC optimize("O3")  // with this, the assignment's step takes 0.94 times as long

#include <vector>

#include "parallel.h"
#include "tiles.h"

namespace {

constexpr i64 BLOCK = 32;               // rows that a thread computes at a time
constexpr i64 PANEL = 256;              // columns (tokens of the vocabulary) at a time
constexpr int R = 4;                    // rows of a tile of logits
constexpr i64 WIDE = VECTORS * W;       // columns of a tile of logits
constexpr i64 TAIL = 4;                 // up to this many dimensions beyond a multiple of W get no vector of their own
constexpr i64 GROUP = 2 * W;            // columns of a tile of the weight's gradient
constexpr int DIMS = W == 8 ? 6 : 12;   // maximum number of dimensions of such a tile

// packed: W as lanes [columns / W][units][W], then as rows [columns / PER][across]. columns: vocab in full PANELs.
template <class T>
struct Head {
    const float *x, *weight, *bias;  // [rows, d], [vocab, d], [columns]; bias is minus infinity beyond vocab
    const i64* targets;
    i64 rows, vocab, d;
    int32_t* packed;
    T* e;  // [columns / GROUP][padded / PER][GROUP] units
    float *losses, *scale, *dx;

    static constexpr i64 P = PER<T>;
    i64 columns() const { return (vocab + PANEL - 1) / PANEL * PANEL; }
    i64 padded() const { return (rows + BLOCK - 1) / BLOCK * BLOCK; }
    i64 units() const { return (d + P - 1) / P; }
    i64 tail() const { return d > W && d % W <= TAIL ? d % W : 0; }
    i64 across() const { return (d - tail() + W - 1) / W * W; }
    int32_t* flat() const { return packed + columns() * units(); }
};

// Writes `count` numbers as T, then zeros up to `to`.
template <class T>
void convert(const float* x, i64 count, i64 to, T* out) {
    i64 i = 0;
    for (; i + W <= count; i += W) store(out + i, load(x + i));
    for (; i < to; i++) put(out + i, i < count ? x[i] : 0.0f);
}

template <class T>
void pack(const Head<T>& t, int threads) {
    constexpr i64 P = PER<T>;
    const i64 units = t.units(), across = t.across(), wide = std::max(units * P, across);
    in_ranges(t.columns(), PANEL, threads, [&](i64 first, i64 last) {
        std::vector<T> rows(W * wide);
        for (i64 v = first; v < last; v += W) {
            for (i64 l = 0; l < W; l++) convert(t.weight + (v + l) * t.d, v + l < t.vocab ? t.d : 0, wide, &rows[l * wide]);
            for (i64 l = 0; l < W; l++)
                for (i64 u = 0; u < units; u++)
                    memcpy(t.packed + v * units + u * W + l, &rows[l * wide + u * P], 4);
            T* flat = (T*)(t.flat() + v / P * across);
            for (i64 l = 0; l < W; l++)
                for (i64 i = 0; i < across; i++) flat[l / P * across * P + i * P + l % P] = rows[l * wide + i];
        }
    });
}

// Logits z [R][WIDE] of R rows. Not inlined, because it needs all registers.
template <class T>
__attribute__((noinline)) void tile_of_logits(const int32_t* x, const int32_t* lanes, i64 units, const float* bias,
                                              float* z) {
    const auto t = product<T, R, VECTORS>(x, units, 1, lanes, W * units, W, units);
#pragma GCC unroll 4
    for (int r = 0; r < R; r++)
#pragma GCC unroll 4
        for (int c = 0; c < VECTORS; c++) store(z + r * WIDE + c * W, t.sum[r][c] + load(bias + c * W));
}

template <class T>
inline void store_units(int32_t* to, const vf* rows) {
    if constexpr (PER<T> == 1)
        store((float*)to, rows[0]);
    else
        store_as(to, widen_bits(narrow(rows[0])) | (widen_bits(narrow(rows[1])) << 16));
}

template <class T, int V>
__attribute__((noinline)) void add_products(const T* e, const int32_t* flat, i64 across, float* dx) {
    constexpr int R = V > 2 ? 4 : 8;
    for (i64 r = 0; r < BLOCK; r += R)
        add_to(dx + r * across, across,
               product<T, R, V>((const int32_t*)(e + r * PANEL), PANEL / PER<T>, 1, flat, W, across, PANEL / PER<T>));
}

template <class T>
void block_of_rows(const Head<T>& t, i64 first, char* memory) {
    constexpr i64 P = PER<T>;
    const i64 units = t.units(), across = t.across(), tail = t.tail(), rows = std::min(BLOCK, t.rows - first);
    T* x = take<T>(memory, BLOCK * units * P);
    T* e = take<T>(memory, BLOCK * PANEL);
    float* dx = take<float>(memory, BLOCK * across);
    vf sums[BLOCK], tails[BLOCK][TAIL];
    double others[BLOCK];
    float own[BLOCK], shift[BLOCK];  // own: the target's logit
    i64 target[BLOCK];
    for (i64 r = 0; r < BLOCK; r++) {
        const bool real = r < rows;
        convert(t.x + (first + r) * t.d, real ? t.d : 0, units * P, x + r * units * P);
        target[r] = real ? t.targets[first + r] : -1;
        vf total = vf{};
        const float *a = t.x + (first + r) * t.d, *b = t.weight + target[r] * t.d;
        for (i64 i = 0; real && i < t.d; i += W)
            total = t.d - i >= W ? load(a + i) * load(b + i) + total
                                 : load_part(a + i, t.d - i) * load_part(b + i, t.d - i) + total;
        own[r] = real ? sum(total) + t.bias[target[r]] : 0;
        shift[r] = real ? own[r] : INFINITY;
    }
    float z[R * WIDE], last[TAIL][WIDE];  // last: the last dimensions of W
    // Calls use(row, column) for every tile z of logits of a panel; the target's logit is set to minus infinity.
    const auto logits = [&](i64 at, auto use) {
        for (i64 c0 = 0; c0 < PANEL; c0 += WIDE) {
            const int32_t* lanes = t.packed + (at + c0) * units;
            for (i64 i = t.d - tail; i < t.d; i++)
                for (i64 c = 0; c < WIDE; c++)
                    last[i % W][c] = widen(((const T*)lanes)[((c / W * units + i / P) * W + c % W) * P + i % P]);
            for (i64 r0 = 0; r0 < BLOCK; r0 += R) {
                for (i64 c = 0; c < WIDE; c += GROUP)  // otherwise the stores would wait for memory
                    for (i64 k = 0; k < R * GROUP / P; k += 16)
                        __builtin_prefetch((int32_t*)t.e + ((at + c0 + c) * t.padded() + (first + r0) * GROUP) / P + k, 1);
                tile_of_logits<T>((const int32_t*)x + r0 * units, lanes, units, t.bias + at + c0, z);
                for (i64 r = 0; r < R; r++)
                    if (const i64 mine = target[r0 + r] - at - c0; (uint64_t)mine < WIDE) z[r * WIDE + mine] = -INFINITY;
                use(r0, c0);
            }
        }
    };
    const auto pass = [&] {
        memset(dx, 0, BLOCK * across * 4);
        memset(others, 0, sizeof others);
        memset(sums, 0, sizeof sums);
        memset(tails, 0, sizeof tails);
        for (i64 at = 0; at < t.columns(); at += PANEL) {
            logits(at, [&](i64 r0, i64 c0) {
                for (i64 r = r0; r < r0 + R; r += P) {
                    int32_t* to = (int32_t*)t.e + ((at + c0) * t.padded() + (first + r) * GROUP) / P;
                    vf out[VECTORS][P];
#pragma GCC unroll 4
                    for (int c = 0; c < VECTORS; c++) {
                        for (int k = 0; k < P; k++) {
                            const vf below = shift[r + k] - load(z + (r - r0 + k) * WIDE + c * W);
                            out[c][k] = exponential(-(IN_512 ? below : larger(all(-88.0f), below)));
                            store(e + (r + k) * PANEL + c0 + c * W, out[c][k]);
                        }
                        store_units<T>(to + c / 2 * t.padded() * GROUP / P + c % 2 * W, out[c]);
                    }
                    for (int k = 0; k < P; k++)
                        for (int c = 0; c < VECTORS; c++) sums[r + k] = sums[r + k] + out[c][k];
                    for (i64 i = 0; i < tail; i++)
                        for (int k = 0; k < P; k++)
                            for (int c = 0; c < VECTORS; c++)
                                tails[r + k][i] = fused(out[c][k], load(last[i] + c * W), tails[r + k][i]);
                }
            });
            const int32_t* flat = t.flat() + at / P * across;
            i64 i = 0;
            for (; i + WIDE <= across; i += WIDE) add_products<T, VECTORS>(e, flat + i, across, dx + i);
            for (; i + 2 * W <= across; i += 2 * W) add_products<T, 2>(e, flat + i, across, dx + i);
            for (; i < across; i += W) add_products<T, 1>(e, flat + i, across, dx + i);
            if (at / PANEL % 4 == 3 || at + PANEL == t.columns())
                for (i64 r = 0; r < BLOCK; r++) others[r] += sum(sums[r]), sums[r] = vf{};
        }
    };
    pass();
    if (!std::all_of(others, others + rows, [](double x) { return x <= 1e38; })) {  // exp(loss) overflowed: shift by the largest logits
        std::fill(sums, sums + BLOCK, all(-INFINITY));
        for (i64 at = 0; at < t.columns(); at += PANEL)
            logits(at, [&](i64 r0, i64) {
                for (i64 r = 0; r < R; r++)
                    for (int c = 0; c < VECTORS; c++) sums[r0 + r] = larger(load(z + r * WIDE + c * W), sums[r0 + r]);
            });
        for (i64 r = 0; r < rows; r++) shift[r] = std::max(own[r], largest(sums[r]));
        pass();
    }
    for (i64 r = 0; r < rows; r++) {
        const i64 row = first + r, v = target[r];
        const double mine = std::exp((double)own[r] - shift[r]), total = mine + others[r];
        t.losses[row] = (float)(std::log(total) - ((double)own[r] - shift[r]));
        t.scale[row] = (float)(1 / total);
        T* at = t.e + (v / GROUP * t.padded() * GROUP + row / P * GROUP * P + v % GROUP * P + row % P);
        put(at, (float)-others[r]);
        const float rounded = widen(*at), *w = t.weight + v * t.d;
        for (i64 i = 0; i < t.d; i++)
            t.dx[row * t.d + i] = (i < across ? dx[r * across + i] : sum(tails[r][i - across])) + rounded * w[i];
    }
}

// A tile of `count` dimensions: dw [count][GROUP] += x^T e.
template <class T, int R = DIMS>
void add_columns(i64 count, const int32_t* x, const int32_t* e, i64 depth, float* dw, i64 columns) {
    if constexpr (R > 1)
        if (count < R) return add_columns<T, R - 1>(count, x, e, depth, dw, columns);
    add_to(dw, columns, product<T, R, 2>(x, 1, R, e, W, GROUP, depth));
}

template <class T>
void all_columns(const Head<T>& t, const float* factor, float* dw, char* memory, int threads) {
    constexpr i64 P = PER<T>;
    const i64 depth = t.padded() / P, tiles = (t.d + DIMS - 1) / DIMS, size = (t.d + tiles - 1) / tiles;
    T* x = (T*)memory;  // [tiles][depth][size] units
    in_parallel(tiles, threads, [&](i64 tile) {
        const i64 from = tile * size, count = std::min(size, t.d - from);
        for (i64 row = 0; row < t.padded(); row++)
            for (i64 i = from; i < from + count; i++)
                put(x + (from * depth + row / P * count + i - from) * P + row % P,
                    row < t.rows ? t.x[row * t.d + i] * factor[row] : 0.0f);
    });
    in_ranges(t.columns(), PANEL, threads, [&](i64 first, i64 last) {
        for (i64 v = first; v < last; v += GROUP)
            for (i64 from = 0; from < t.d; from += size)
                add_columns<T>(std::min(size, t.d - from), (const int32_t*)x + from * depth,
                               (const int32_t*)t.e + v * depth, depth, dw + from * t.columns() + v, t.columns());
    });
}

template <class T>
int all_rows(const Head<T>& t, int threads) {
    int fault = 0;
    in_parallel(t.padded() / BLOCK, threads, [&](i64 block) {
        char* memory = scratch(BLOCK * (t.d + 4 + PANEL + t.across()) * 4 + 256);
        memory ? block_of_rows(t, block * BLOCK, memory) : __atomic_store_n(&fault, 2, __ATOMIC_RELAXED);
    });
    return fault;
}

}  // namespace

// packed: memory for columns x (2 d + 16) numbers, enough for both forms of W; see Head.
extern "C" int head_pack(int is_bf16, const float* weight, i64 vocab, i64 d, void* packed, int threads) {
    is_bf16 ? pack(Head<bf16>{0, weight, 0, 0, 0, vocab, d, (int32_t*)packed}, threads)
            : pack(Head<float>{0, weight, 0, 0, 0, vocab, d, (int32_t*)packed}, threads);
    return 0;
}

// losses: one per target. dx times scale is the gradient of x, and e times scale is the gradient of the logits.
extern "C" int head_rows(int is_bf16, const float* x, const float* weight, void* packed, const float* bias,
                         const i64* targets, i64 rows, i64 vocab, i64 d, void* e, float* losses, float* scale, float* dx,
                         int threads) {
    int32_t* w = (int32_t*)packed;
    return is_bf16 ? all_rows<bf16>({x, weight, bias, targets, rows, vocab, d, w, (bf16*)e, losses, scale, dx}, threads)
                   : all_rows<float>({x, weight, bias, targets, rows, vocab, d, w, (float*)e, losses, scale, dx}, threads);
}

// dw [d][columns] += (x factor)^T e.
extern "C" int head_columns(int is_bf16, const float* x, const float* factor, void* e, i64 rows, i64 vocab, i64 d,
                            float* dw, int threads) {
    char* memory = scratch((rows + BLOCK) * (d + 1) * 4);
    if (!memory) return 2;
    is_bf16 ? all_columns(Head<bf16>{x, 0, 0, 0, rows, vocab, d, 0, (bf16*)e}, factor, dw, memory, threads)
            : all_columns(Head<float>{x, 0, 0, 0, rows, vocab, d, 0, (float*)e}, factor, dw, memory, threads);
    return 0;
}
