// The softmax of the vocabulary head. Values are bf16 or float32 in memory and float32 in registers.

#include "parallel.h"
#include "vector.h"

namespace {

// Turns products into logits: first the cap, then the bias. With a cap, sets slope to 1 - tanh^2.
template <bool CAPPED>
inline vf logit(vf z, vf bias, float cap, vf& slope) {
    if (!CAPPED) return z + bias;
    const vf twice = -larger(all(-40.0f), -(z * (2 / cap)));  // at most 40
    const vf tanh = 1.0f - 2.0f / (exponential(twice) + 1.0f);
    slope = 1.0f - tanh * tanh;
    return tanh * cap + bias;
}

// Float32 terms of a row are summed in blocks of this size; the blocks' sums are added in float64.
template <class T>
constexpr i64 BLOCK = sizeof(T) == 2 ? INT64_MAX / 2 : 1024;

template <class T, bool CAPPED>
void softmax_row(T* z, T* side, i64 vocab, const float* bias, float bias_top, i64 target, const float* wide, float cap,
                 float* loss, float* scale) {
    float rounded = widen(z[target]), exact = wide ? *wide : rounded, slope = 1;
    const i64 whole = vocab / W * W, rest = vocab - whole;
    vf last = load_part(z + whole, rest);  // to be padded with logits of probability 0
    float last_bias[W];
    for (i64 j = 0; j < W; j++) last_bias[j] = j >= rest ? (last[j] = -INFINITY) : bias ? bias[whole + j] : 0.0f;
    const auto biased = [&](const T* at, const float* b) { return b && !CAPPED ? load(at) + load(b) : load(at); };
    vf top_each = CAPPED ? last : last + load(last_bias), top_other = top_each;
    i64 j = 0;
    for (; j + 2 * W <= whole; j += 2 * W) {
        top_each = larger(top_each, biased(z + j, bias ? bias + j : nullptr));
        top_other = larger(top_other, biased(z + j + W, bias ? bias + j + W : nullptr));
    }
    if (j < whole) top_each = larger(top_each, biased(z + j, bias ? bias + j : nullptr));
    float top = largest(larger(top_each, top_other));
    if (CAPPED) {
        if (std::tanh(top / cap) > -60 / cap) top = std::max(top, 0.0f);  // 0 also does, unless exp(z) vanishes
        top = cap * std::tanh(top / cap) + bias_top;  // not the maximum, but at least as large
        const float tanh = std::tanh(exact / cap);
        slope = 1 - tanh * tanh;
        exact = cap * tanh;
        rounded = cap * std::tanh(rounded / cap);
    }
    const vf minus_top = all(-top);
    const auto turn = [&](vf x, vf b, T* at, T* beside, vf& total, i64 count) {
        vf slopes;
        const vf e = exponential(logit<CAPPED>(x, b, cap, slopes) + minus_top);
        total = total + e;
        const vf out = CAPPED ? e * slopes : e;
        count == W ? store(at, out) : store_part(at, out, count);
        if (CAPPED && beside) count == W ? store(beside, e) : store_part(beside, e, count);
    };
    const auto at = [&](i64 i, vf& total) {
        turn(load(z + i), bias ? load(bias + i) : vf{}, z + i, side ? side + i : nullptr, total, W);
    };
    vf sum0 = vf{}, sum1 = vf{};
    double total = 0;
    for (j = 0; j + 2 * W <= whole;) {
        const i64 end = std::min(whole, j + BLOCK<T>);
        for (; j + 2 * W <= end; j += 2 * W) {
            at(j, sum0);
            at(j + W, sum1);
        }
        if (sizeof(T) == 2) break;
        total += sum(sum0 + sum1);
        sum0 = sum1 = vf{};
    }
    if (j < whole) at(j, sum0);
    turn(last, load(last_bias), z + whole, side ? side + whole : nullptr, sum1, rest);
    const double shift = (double)(bias ? bias[target] : 0.0f) - top, mine = std::exp(exact + shift);
    total = total + (double)sum(sum0 + sum1) + (wide ? mine - std::exp(rounded + shift) : 0.0);
    *loss = (float)(std::log(total) - exact - shift);
    *scale = (float)(1 / total);
    put(z + target, (float)(mine - total) * slope);
    if (CAPPED && side) put(side + target, (float)(mine - total));
}

template <class T>
void softmax_rows(T* z, T* side, i64 rows, i64 vocab, const float* bias, float bias_top, const i64* targets,
                  const float* exact, float cap, float* losses, float* scale, int threads) {
    auto one = cap > 0 ? softmax_row<T, true> : softmax_row<T, false>;
    in_parallel(rows, threads, [&](i64 row) {
        one(z + row * vocab, side ? side + row * vocab : nullptr, vocab, bias, bias_top, targets[row],
            exact ? exact + row : nullptr, cap, losses + row, scale + row);
    });
}

}  // namespace

// Replaces each row of logits z [rows, vocab], bf16 or float32, by exp(z + bias - top), and subtracts the row's sum at
// the target, so that z times `scale` is softmax - onehot, the gradient. exact: the targets' logits before rounding;
// null for float32. cap: 0 means none. With a cap, the gradient has a factor 1 - tanh^2; `side`, unless null, gets the
// gradient without this factor, as the bias needs it.
extern "C" int head_softmax(int is_bf16, void* z, void* side, i64 rows, i64 vocab, const float* bias, float bias_top,
                            const i64* targets, const float* exact, float cap, float* losses, float* scale,
                            int threads) {
    is_bf16 ? softmax_rows((bf16*)z, (bf16*)side, rows, vocab, bias, bias_top, targets, exact, cap, losses, scale, threads)
            : softmax_rows((float*)z, (float*)side, rows, vocab, bias, bias_top, targets, exact, cap, losses, scale, threads);
    return 0;
}
