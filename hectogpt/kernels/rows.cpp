// Norm with rotation of queries and keys, GELU, and the row-wise AdamW of tables.

#pragma GCC optimize("O3")  // unrolls the loops over a head; attention is faster without this; clang ignores it

#include <algorithm>
#include <vector>

#include "parallel.h"
#include "vector.h"

namespace {

// --- queries and keys: norm and rotation ------------------------------------------------------------------------------

// y = rotation of x / rms(x), for rows of D values. pairs: how many pairs (i, i + pairs) are rotated; a multiple of W.
template <class T, int D>
inline float normed(const T* x, float eps, vf v[D / W]) {
    vf squares = vf{};
    for (int i = 0; i < D / W; i++) {
        v[i] = load(x + W * i);
        squares = fused(v[i], v[i], squares);
    }
    const float r = 1 / std::sqrt(sum(squares) / D + eps);
    for (int i = 0; i < D / W; i++) v[i] = v[i] * r;
    return r;
}

template <class T, int D>
void norm_rotate_row(const T* x, const T* grad, T* out, const float* cosines, const float* sines, i64 pairs,
                     float eps) {
    vf v[D / W];
    const int half = (int)pairs / W;
    const float r = normed<T, D>(x, eps, v);
    if (!grad) {
        for (int i = 0; i < half; i++) {
            const vf c = load(cosines + W * i), s = load(sines + W * i), a = v[i], b = v[i + half];
            v[i] = fused(a, c, -(b * s));
            v[i + half] = fused(a, s, b * c);
        }
        for (int i = 0; i < D / W; i++) store(out + W * i, v[i]);
        return;
    }
    // backward: rotate the gradient back, then out = r (g - v mean(g v))
    vf g[D / W], products = vf{};
    for (int i = 0; i < D / W; i++) g[i] = load(grad + W * i);
    for (int i = 0; i < half; i++) {
        const vf c = load(cosines + W * i), s = load(sines + W * i), a = g[i], b = g[i + half];
        g[i] = fused(a, c, b * s);
        g[i + half] = fused(b, c, -(a * s));
    }
    for (int i = 0; i < D / W; i++) products = fused(g[i], v[i], products);
    const vf minus_mean = all(-sum(products) / D);
    for (int i = 0; i < D / W; i++) store(out + W * i, r * fused(v[i], minus_mean, g[i]));
}

template <class T>
void norm_rotate_all(const T* x, const T* grad, T* out, const float* cosines, const float* sines, const Strides* s,
                     i64 batch, i64 heads, i64 n, i64 d, i64 pairs, float eps, int threads) {
    auto one = d == 64 ? norm_rotate_row<T, 64> : norm_rotate_row<T, 128>;
    in_ranges(batch * n, 64, threads, [&](i64 first, i64 last) {
        for (i64 i = first; i < last; i++) {
            const i64 b = i / n, t = i % n;
            for (i64 h = 0; h < heads; h++)
                one(AT(x, 0) + t * s[0].time, grad ? AT(grad, 2) + t * s[2].time : nullptr, AT(out, 1) + t * s[1].time,
                    cosines + t * pairs, sines + t * pairs, pairs, eps);
        }
    });
}

// --- GELU in its tanh form --------------------------------------------------------------------------------------------

// x / (1 + exp(-2 u)) with u = sqrt(2 / pi) (x + 0.044715 x^3); given a gradient, the derivative times the gradient.
inline vf gelu_of(vf v, const vf* grad) {
    const vf square = v * v;
    const vf e = exponential(-larger(all(-80.0f), -(v * (square * -0.0713548163f + -1.5957691216f))));  // exp(min(80, .))
    const vf s = 1.0f / (e + 1.0f), y = v * s;
    if (!grad) return y;
    const vf slope = square * 0.2140644489f - -1.5957691216f;  // 2 du/dx
    return ((y * (1.0f - s)) * slope + s) * *grad;
}

template <class T>
void gelu_all(const T* x, const T* grad, T* out, i64 n, int threads) {
    in_ranges(n, 4096, threads, [&](i64 first, i64 last) {
        i64 i = first;
        for (; i + W <= last; i += W) {
            const vf g = grad ? load(grad + i) : vf{};
            store(out + i, gelu_of(load(x + i), grad ? &g : nullptr));
        }
        if (i == last) return;
        const vf g = grad ? load_part(grad + i, last - i) : vf{};
        store_part(out + i, gelu_of(load_part(x + i, last - i), grad ? &g : nullptr), last - i);
    });
}

}  // namespace

// x, out and grad (null in the forward pass) are [batch, head, time, d], with strides; cosines, sines: [time, pairs].
extern "C" int norm_rotate(int is_bf16, const void* x, const void* grad, void* out, const float* cosines,
                           const float* sines, const i64* strides, i64 batch, i64 heads, i64 n, i64 d, i64 pairs,
                           float eps, int threads) {
    const Strides* s = (const Strides*)strides;
    const auto call = [&](auto zero) {
        typedef decltype(zero) T;
        norm_rotate_all((const T*)x, (const T*)grad, (T*)out, cosines, sines, s, batch, heads, n, d, pairs, eps, threads);
    };
    is_bf16 ? call(bf16()) : call(0.0f);
    return 0;
}

extern "C" int gelu(int is_bf16, const void* x, const void* grad, void* out, i64 n, int threads) {
    is_bf16 ? gelu_all((const bf16*)x, (const bf16*)grad, (bf16*)out, n, threads)
            : gelu_all((const float*)x, (const float*)grad, (float*)out, n, threads);
    return 0;
}

// --- the row-wise AdamW of tables -------------------------------------------------------------------------------------

struct RowAdam {  // in the order in which optim/adamw.py passes them
    float beta1, beta2, correction1, correction2, eps, keep, threshold, lr, highest_lr, power;
};

// One step over a float32 table, in one pass; d is a multiple of 16. correction: 1 - beta^step. keep: 1 - lr times
// weight decay. If threshold and weight decay are 0, a row that never had a gradient is neither changed nor read. With
// ids (ascending), grads has only the `count` rows with these indices; the gradients of all others are zero.
extern "C" int row_adam(float* weights, const float* grads, const i64* ids, i64 count, float* averages, float* squares,
                        float* updates, i64 rows, i64 d, const RowAdam* settings, int threads) {
    const RowAdam& o = *settings;
    const float root = 1 / std::sqrt(o.correction2), rest1 = 1 - o.beta1, rest2 = 1 - o.beta2;
    const std::vector<float> none(d);
    in_ranges(rows, 64, threads, [&](i64 first, i64 last) {
        i64 next = ids ? std::lower_bound(ids, ids + count, first) - ids : first;
        for (i64 row = first; row < last; row++) {
            const bool has = !ids || (next < count && ids[next] == row);
            const float* g = has ? grads + next++ * d : none.data();
            vf most = vf{};
            for (i64 j = 0; j < d; j += W) most = larger(most, magnitude(load(g + j)));
            if (largest(most) > o.threshold) updates[row] += 1;
            if (updates[row] == 0 && o.threshold == 0 && o.keep == 1) continue;
            const float own = o.highest_lr * std::pow(std::max(updates[row], 1.0f), -o.power);
            const float by = -std::max(own, o.lr) / o.correction1;
            float *w = weights + row * d, *m = averages + row * d, *v = squares + row * d;
            for (i64 j = 0; j < d; j += W) {
                const vf x = load(g + j), a = fused(all(o.beta1), load(m + j), rest1 * x);
                const vf b = fused(all(o.beta2), load(v + j), rest2 * (x * x));
                const vf below = fused(square_root(b), all(root), all(o.eps));
                store(m + j, a);
                store(v + j, b);
                store(w + j, fused(all(by), a / below, o.keep * load(w + j)));
            }
        }
    });
    return 0;
}
