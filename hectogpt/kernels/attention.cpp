// Causal attention in bf16 or float32, forward and backward. Each head of a text is computed by one thread, in a fixed
// order, so results do not depend on the number of threads. The matrix of scores is never stored (2205.14135).

#include "parallel.h"
#include "tiles.h"

namespace {

// Tiles of 64 queries by 64 keys. Operands are units (tiles.h) in two layouts:
//   lanes:  [n / W][d / PER][W], W rows side by side, units along d   (for products that sum over d)
//   units:  [n / PER][d], PER rows interleaved                        (for products that sum over rows)
// n is the number of tokens rounded up to a multiple of 64, with zeros in the additional rows. d is the head's size
// rounded up to the kernel's size, D, with zeros in the additional dimensions.

constexpr i64 B = 64;
constexpr int ROWS = 4;  // rows of a register tile

// Copies d numbers of each row, and pads them with zeros.
template <class T, int D>
void to_rows(const T* x, i64 stride, i64 n, i64 padded, i64 d, T* out) {
    if (d < D) memset((void*)out, 0, n * D * sizeof(T));
    for (i64 t = 0; t < n; t++) memcpy(out + t * D, x + t * stride, d * sizeof(T));
    memset((void*)(out + n * D), 0, (padded - n) * D * sizeof(T));
}

template <class T, int D>
void to_lanes(const T* rows, i64 padded, int32_t* out) {
    const int32_t* x = (const int32_t*)rows;
    const i64 units = D / PER<T>;
    for (i64 t = 0; t < padded; t += W)
        for (i64 p = 0; p < units; p++)
            for (i64 l = 0; l < W; l++) out[t * units + p * W + l] = x[(t + l) * units + p];
}

// Writes the first d of D float32 numbers.
template <class T, int D>
void write_row(const float* x, i64 d, T* out) {
    for (i64 i = 0; i < d; i += W) d - i >= W ? store(out + i, load(x + i)) : store_part(out + i, load(x + i), d - i);
}

struct Sizes {
    i64 n, d;
    float scale;
};

template <class T, int D>
void forward_head(const T* q, const T* k, const T* v, T* out, float* lse, const i64* first, i64 sq, i64 sk, i64 sv,
                  i64 so, Sizes size, char* memory) {
    constexpr i64 P = PER<T>;
    constexpr int V = D / W < VECTORS ? D / W : VECTORS;
    const i64 n = size.n, padded = (n + B - 1) / B * B;
    T* rows = take<T>(memory, padded * D);
    int32_t* k_lanes = take<int32_t>(memory, padded * D / P);
    int32_t* v_units = take<int32_t>(memory, padded * D / P);
    float* scores = take<float>(memory, 16 * padded);
    T* p = take<T>(memory, 16 * padded);
    float* sums = take<float>(memory, ROWS * D);
    to_rows<T, D>(k, sk, n, padded, size.d, rows);
    to_lanes<T, D>(rows, padded, k_lanes);
    to_rows<T, D>(v, sv, n, padded, size.d, rows);
    to_units<T>(rows, padded, D, v_units);
    to_rows<T, D>(q, sq, n, padded, size.d, rows);
    for (i64 q0 = 0; q0 < n; q0 += 16) {
        const i64 keys = (q0 + 16 + B - 1) / B * B, low = first ? first[q0] / B * B : 0;
        for (i64 k0 = low; k0 < keys; k0 += VECTORS * W)
            for (i64 r0 = 0; r0 < 16; r0 += ROWS) {
                const auto t = product<T, ROWS, VECTORS>((const int32_t*)(rows + (q0 + r0) * D), D / P, 1,
                                                   k_lanes + k0 * (D / P), W * (D / P), W, D / P);
                for (int r = 0; r < ROWS; r++)
                    for (int c = 0; c < VECTORS; c++)
                        store(scores + (r0 + r) * padded + k0 + c * W, t.sum[r][c] * size.scale);
            }
        float inverse[16];
        for (i64 r = 0; r < 16; r++) {
            float* s = scores + r * padded;
            const i64 query = q0 + r, seen = query + 1;  // keys low .. query
            const i64 end = (seen + W - 1) / W * W;
            for (i64 j = seen; j < end; j++) s[j] = -INFINITY;
            if (first && query < n)
                for (i64 j = low; j < first[query]; j++) s[j] = -INFINITY;
            vf top_each = load(s + end - W);
            for (i64 j = low; j < end - W; j += W) top_each = larger(top_each, load(s + j));
            const float top = largest(top_each);
            vf total_each = vf{};
            for (i64 j = low; j < end; j += W) {
                const vf e = exponential(load(s + j) - top);
                total_each = total_each + e;
                store(p + r * padded + j, e);
            }
            memset((void*)(p + r * padded + end), 0, (keys - end) * sizeof(T));
            const float total = sum(total_each);
            inverse[r] = 1 / total;
            if (query < n) lse[query] = top + std::log(total);
        }
        for (i64 r0 = 0; r0 < 16; r0 += ROWS) {
            for (int d = 0; d < D; d += V * W) {
                const auto t = product<T, ROWS, V>((const int32_t*)(p + r0 * padded + low), padded / P, 1,
                                             v_units + low / P * D + d, W, D, (keys - low) / P);
                for (int r = 0; r < ROWS; r++)
                    for (int c = 0; c < V; c++) store(sums + r * D + d + c * W, t.sum[r][c] * inverse[r0 + r]);
            }
            for (int r = 0; r < ROWS && q0 + r0 + r < n; r++)
                write_row<T, D>(sums + r * D, size.d, out + (q0 + r0 + r) * so);
        }
    }
}

template <class T, int D>
void backward_head(const T* q, const T* k, const T* v, const T* out, const T* grad, const float* lse, const i64* first,
                   T* dq, T* dk, T* dv, const i64* s, Sizes size, char* memory) {
    constexpr i64 P = PER<T>;
    constexpr int V = D / W < VECTORS ? D / W : VECTORS;
    const i64 n = size.n, padded = (n + B - 1) / B * B;
    const float scale = size.scale;
    T* q_rows = take<T>(memory, padded * D);
    T* g_rows = take<T>(memory, padded * D);
    T* rows = take<T>(memory, padded * D);
    int32_t* k_lanes = take<int32_t>(memory, padded * D / P);
    int32_t* v_lanes = take<int32_t>(memory, padded * D / P);
    int32_t* k_units = take<int32_t>(memory, padded * D / P);
    int32_t* q_units = take<int32_t>(memory, padded * D / P);
    int32_t* g_units = take<int32_t>(memory, padded * D / P);
    float* dk_sums = take<float>(memory, padded * D);
    float* dv_sums = take<float>(memory, padded * D);
    float* dq_sums = take<float>(memory, B * D);
    T* p = take<T>(memory, B * B);
    T* ds = take<T>(memory, B * B);
    int32_t* p_units = take<int32_t>(memory, B * B / P);
    int32_t* ds_units = take<int32_t>(memory, B * B / P);
    to_rows<T, D>(k, s[1], n, padded, size.d, rows);
    to_lanes<T, D>(rows, padded, k_lanes);
    to_units<T>(rows, padded, D, k_units);
    to_rows<T, D>(v, s[2], n, padded, size.d, rows);
    to_lanes<T, D>(rows, padded, v_lanes);
    to_rows<T, D>(q, s[0], n, padded, size.d, q_rows);
    to_units<T>(q_rows, padded, D, q_units);
    to_rows<T, D>(grad, s[4], n, padded, size.d, g_rows);
    to_units<T>(g_rows, padded, D, g_units);
    memset(dk_sums, 0, padded * D * 4);
    memset(dv_sums, 0, padded * D * 4);
    int32_t lane[W];
    for (int i = 0; i < W; i++) lane[i] = i;
    for (i64 q0 = 0; q0 < padded; q0 += B) {
        float delta[B], shift[B];
        for (i64 r = 0; r < B; r++) {
            delta[r] = 0;
            shift[r] = INFINITY;  // a padding row: its p is 0
            if (q0 + r >= n) continue;
            vf total = vf{};
            const T *g = g_rows + (q0 + r) * D, *o = out + (q0 + r) * s[3];
            i64 d = 0;
            for (; d + W <= size.d; d += W) total = load(g + d) * load(o + d) + total;
            if (d < size.d) total = load(g + d) * load_part(o + d, size.d - d) + total;
            delta[r] = sum(total);
            shift[r] = lse[q0 + r];
        }
        memset(dq_sums, 0, B * D * 4);
        for (i64 k0 = first ? first[q0] / B * B : 0; k0 <= q0; k0 += B) {
            for (i64 r0 = 0; r0 < B; r0 += ROWS)
                for (i64 c0 = 0; c0 < B; c0 += VECTORS * W) {
                    const i64 at = (k0 + c0) * (D / P);
                    auto t = product<T, ROWS, VECTORS>((const int32_t*)(q_rows + (q0 + r0) * D), D / P, 1, k_lanes + at,
                                                 W * (D / P), W, D / P);
                    for (int r = 0; r < ROWS; r++)
                        for (int c = 0; c < VECTORS; c++) {
                            vf e = exponential(t.sum[r][c] * scale - shift[r0 + r]);
                            if (k0 == q0)
                                e = load_as<vi>(lane) + (int32_t)(c0 + c * W) <= all((int32_t)(r0 + r)) ? e : vf{};
                            if (first && q0 + r0 + r < n) {
                                const vi key = load_as<vi>(lane) + (int32_t)(k0 + c0 + c * W);
                                e = key >= all((int32_t)first[q0 + r0 + r]) ? e : vf{};
                            }
                            t.sum[r][c] = e;
                            store(p + (r0 + r) * B + c0 + c * W, e);
                        }
                    const auto g = product<T, ROWS, VECTORS>((const int32_t*)(g_rows + (q0 + r0) * D), D / P, 1, v_lanes + at,
                                                       W * (D / P), W, D / P);
                    for (int r = 0; r < ROWS; r++)
                        for (int c = 0; c < VECTORS; c++) {
                            const vf scaled = t.sum[r][c] * scale;
                            store(ds + (r0 + r) * B + c0 + c * W, scaled * (g.sum[r][c] - delta[r0 + r]));
                        }
                }
            to_units<T>(p, B, B, p_units);
            to_units<T>(ds, B, B, ds_units);
            for (i64 r0 = 0; r0 < B; r0 += ROWS)
                for (int d = 0; d < D; d += V * W) {
                    const i64 keys = k0 / P * D + d;
                    add_to(dq_sums + r0 * D + d, D,
                           product<T, ROWS, V>((const int32_t*)(ds + r0 * B), B / P, 1, k_units + keys, W, D, B / P));
                    const i64 queries = q0 / P * D + d, to = (k0 + r0) * D + d;
                    add_to(dv_sums + to, D, product<T, ROWS, V>(p_units + r0, 1, B, g_units + queries, W, D, B / P));
                    add_to(dk_sums + to, D, product<T, ROWS, V>(ds_units + r0, 1, B, q_units + queries, W, D, B / P));
                }
        }
        for (i64 r = 0; r < B && q0 + r < n; r++) write_row<T, D>(dq_sums + r * D, size.d, dq + (q0 + r) * s[5]);
    }
    for (i64 t = 0; t < n; t++) {
        write_row<T, D>(dk_sums + t * D, size.d, dk + t * s[6]);
        write_row<T, D>(dv_sums + t * D, size.d, dv + t * s[7]);
    }
}

i64 workspace(i64 n, i64 d) {
    const i64 padded = (n + B - 1) / B * B;
    return 64 * 40 + padded * d * 4 * 10 + 16 * padded * 8 + B * d * 4 + B * B * 16;
}

template <class T>
struct Call {
    const T *q, *k, *v, *grad;
    T *out, *dq, *dk, *dv;
    float* lse;
    const i64* first;
    const Strides* s;
    i64 heads;
    Sizes size;

    template <int D>
    void head(i64 unit, char* memory) const {
        const i64 b = unit / heads, h = unit % heads;
        float* row_lse = lse + unit * size.n;
        const i64* row_first = first ? first + b * size.n : nullptr;
        if (!grad)
            return forward_head<T, D>(AT(q, 0), AT(k, 1), AT(v, 2), AT(out, 3), row_lse, row_first, s[0].time, s[1].time,
                                      s[2].time, s[3].time, size, memory);
        i64 times[8];
        for (int i = 0; i < 8; i++) times[i] = s[i].time;
        backward_head<T, D>(AT(q, 0), AT(k, 1), AT(v, 2), AT(out, 3), AT(grad, 4), row_lse, row_first, AT(dq, 5),
                            AT(dk, 6), AT(dv, 7), times, size, memory);
    }
};

template <class T>
int attend_all(const Call<T>& call, i64 batch, int threads) {
    const i64 d = call.size.d, D = d <= 16 ? 16 : d <= 32 ? 32 : d <= 64 ? 64 : 128;
    if (d > 128) return 1;
    int fault = 0;
    in_parallel(batch * call.heads, threads, [&](i64 unit) {
        char* memory = scratch(workspace(call.size.n, D));
        if (!memory) {
            __atomic_store_n(&fault, 2, __ATOMIC_RELAXED);
            return;
        }
        if (D == 16) call.template head<16>(unit, memory);
        if (D == 32) call.template head<32>(unit, memory);
        if (D == 64) call.template head<64>(unit, memory);
        if (D == 128) call.template head<128>(unit, memory);
    });
    return fault;
}

}  // namespace

// softmax(scale q k^T) v under the causal mask and, with `grad`, the gradients dq, dk, dv. lse is [batch, head, time],
// other tensors [batch, head, time, d] with d at most 128; strides has their strides (batch, head, time) in the order
// q, k, v, out, grad, dq, dk, dv. first [batch, time] or null: the first key that each query sees, which must not
// decrease along a text. Returns 0, or 1 if this d is not supported, or 2 if there is not enough memory.
extern "C" int causal_attention(int is_bf16, const void* q, const void* k, const void* v, void* out, const void* grad,
                                void* dq, void* dk, void* dv, float* lse, const i64* first, const i64* strides,
                                i64 batch, i64 heads, i64 n, i64 d, float scale, int threads) {
    const auto call = [&](auto zero) {
        typedef decltype(zero) T;
        return attend_all<T>({(const T*)q, (const T*)k, (const T*)v, (const T*)grad, (T*)out, (T*)dq, (T*)dk, (T*)dv,
                              lse, first, (const Strides*)strides, heads, {n, d, scale}},
                             batch, threads);
    };
    return is_bf16 ? call(bf16()) : call(0.0f);
}
