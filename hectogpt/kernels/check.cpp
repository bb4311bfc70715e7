// Checks every kernel against float64 on small inputs. hectogpt runs this in a separate process before it uses a
// library, to detect a missing CPU instruction or a wrong optimisation. With -DMAIN it is a program.

#include <cstdio>
#include <vector>

#include "vector.h"

extern "C" {
int head_softmax(int, void*, void*, i64, i64, const float*, float, const i64*, const float*, float, float*, float*, int);
int head_pack(int, const float*, i64, i64, void*, int);
int head_rows(int, const float*, const float*, void*, const float*, const i64*, i64, i64, i64, void*, float*, float*,
              float*, int);
int head_columns(int, const float*, const float*, void*, i64, i64, i64, float*, int);
int causal_attention(int, const void*, const void*, const void*, void*, const void*, void*, void*, void*, float*,
                     const i64*, const i64*, i64, i64, i64, i64, float, int);
int norm_rotate(int, const void*, const void*, void*, const float*, const float*, const i64*, i64, i64, i64, i64, i64,
                float, int);
int gelu(int, const void*, const void*, void*, i64, int);
int row_adam(float*, const float*, const i64*, i64, float*, float*, float*, i64, i64, const float*, int);
int linear(int, const float*, i64, i64, i64, const void*, const float*, float*, int);
int linear_int8(const float*, i64, i64, i64, const uint8_t*, const float*, const int32_t*, const float*, float*, int);
int attend(const float*, const float*, const float*, const int64_t*, float*, i64, i64, i64, i64, i64, i64, float, int);
}

namespace {

typedef std::vector<double> Numbers;

uint64_t state = 1;
double draw() {  // approximately normal
    double total = -6;
    for (int i = 0; i < 12; i++) {
        state = state * 6364136223846793005u + 1442695040888963407u;
        total += (double)(state >> 40) / (1 << 24);
    }
    return total;
}

template <class T>
std::vector<T> drawn(size_t count, double scale = 1) {
    std::vector<T> x(count);
    for (T& number : x) put(&number, (float)(draw() * scale));
    return x;
}

template <class T>
Numbers wide(const std::vector<T>& x) {
    Numbers out;
    for (T number : x) out.push_back(widen(number));
    return out;
}

// The norm of the difference, divided by the norm of `exact`.
double apart(const Numbers& found, const Numbers& exact) {
    double off = 0, size = 0;
    for (size_t i = 0; i < exact.size(); i++) {
        off += (found[i] - exact[i]) * (found[i] - exact[i]);
        size += exact[i] * exact[i];
    }
    return std::sqrt(off / size);
}

double check_exp() {
    double worst = 0;
    for (double x = -86; x < 87; x += 0.00731) {
        const double exact = std::exp((double)(float)x);
        worst = std::max(worst, std::abs(exponential(all((float)x))[W - 1] / exact - 1));
    }
    return worst;
}

template <class T>
double check_softmax(float cap) {
    const i64 rows = 3, vocab = 1003;
    auto z = drawn<T>(rows * vocab, 3);
    const auto bias = drawn<float>(vocab);
    Numbers exact, found, logits = wide(z);
    std::vector<float> losses(rows), scale(rows), raw(rows);
    std::vector<T> side(rows * vocab);
    const i64 targets[3] = {0, 500, 1002};
    for (i64 r = 0; r < rows; r++) raw[r] = (float)logits[r * vocab + targets[r]];
    const float top = *std::max_element(bias.begin(), bias.end());
    head_softmax(sizeof(T) == 2, z.data(), cap ? side.data() : nullptr, rows, vocab, bias.data(), top, targets, raw.data(),
                 cap, losses.data(), scale.data(), 1);
    for (i64 r = 0; r < rows; r++) {
        double total = 0;
        const auto logit = [&](i64 j) {
            const double x = logits[r * vocab + j];
            return (cap ? cap * std::tanh(x / cap) : x) + bias[j];
        };
        for (i64 j = 0; j < vocab; j++) total += std::exp(logit(j));
        exact.push_back(std::log(total) - logit(targets[r]));
        found.push_back(losses[r]);
        for (i64 j = 0; j < vocab; j++) {
            const double tanh = cap ? std::tanh(logits[r * vocab + j] / cap) : 0;
            exact.push_back((std::exp(logit(j)) / total - (j == targets[r])) * (1 - tanh * tanh));
            found.push_back(widen(z[r * vocab + j]) * (double)scale[r]);
        }
    }
    return apart(found, exact);
}

// last: the bias of many targets. If it is very negative, the first sums of exponentials overflow.
template <class T>
double check_cross_entropy(i64 d, float last) {
    const i64 rows = 35, vocab = 300, columns = 512;
    const auto x = wide(drawn<T>(rows * d)), w = wide(drawn<T>(vocab * d, 0.3));
    const std::vector<float> xs(x.begin(), x.end()), ws(w.begin(), w.end());
    std::vector<float> bias(columns, -INFINITY), losses(rows), scale(rows), dx(rows * d), dw(d * columns);
    std::vector<T> packed(columns * (2 * d + 16)), e(columns * (rows + 32));
    std::vector<i64> targets(rows);
    for (i64 v = 0; v < vocab; v++) bias[v] = v == 299 ? last : (float)draw();
    for (i64 r = 0; r < rows; r++) targets[r] = r % 3 ? r * 7 : 299;
    head_pack(sizeof(T) == 2, ws.data(), vocab, d, packed.data(), 1);
    head_rows(sizeof(T) == 2, xs.data(), ws.data(), packed.data(), bias.data(), targets.data(), rows, vocab, d, e.data(),
              losses.data(), scale.data(), dx.data(), 1);
    head_columns(sizeof(T) == 2, xs.data(), scale.data(), e.data(), rows, vocab, d, dw.data(), 1);
    Numbers exact, z(vocab), dw_exact(d * columns), dx_exact(rows * d);
    for (i64 r = 0; r < rows; r++) {
        double total = 0;
        for (i64 v = 0; v < vocab; v++) {
            z[v] = bias[v];
            for (i64 i = 0; i < d; i++) z[v] += x[r * d + i] * w[v * d + i];
            total += std::exp(z[v]);
        }
        exact.push_back(std::log(total) - z[targets[r]]);
        for (i64 v = 0; v < vocab; v++) {
            const double slope = std::exp(z[v]) / total - (v == targets[r]);
            for (i64 i = 0; i < d; i++) dx_exact[r * d + i] += slope * w[v * d + i] / scale[r];
            for (i64 i = 0; i < d; i++) dw_exact[i * columns + v] += slope * x[r * d + i];
        }
    }
    return std::max({apart(wide(losses), exact), apart(wide(dx), dx_exact), apart(wide(dw), dw_exact)});
}

template <class T>
double check_attention(i64 d, i64 document = 0) {  // document: tokens of each document; 0: there is only one
    const i64 n = document ? 150 : 70;
    std::vector<i64> first(n);
    for (i64 t = 0; document && t < n; t++) first[t] = t / document * document;
    const double scale = 0.2;
    const auto q = drawn<T>(n * d), k = drawn<T>(n * d), v = drawn<T>(n * d), g = drawn<T>(n * d);
    std::vector<T> out(n * d), dq(n * d), dk(n * d), dv(n * d);
    std::vector<float> lse(n);
    i64 strides[24];
    for (int i = 0; i < 24; i++) strides[i] = i % 3 == 2 ? d : n * d;
    causal_attention(sizeof(T) == 2, q.data(), k.data(), v.data(), out.data(), nullptr, nullptr, nullptr, nullptr,
                     lse.data(), document ? first.data() : nullptr, strides, 1, 1, n, d, (float)scale, 1);
    causal_attention(sizeof(T) == 2, q.data(), k.data(), v.data(), out.data(), g.data(), dq.data(), dk.data(), dv.data(),
                     lse.data(), document ? first.data() : nullptr, strides, 1, 1, n, d, (float)scale, 1);
    const Numbers Q = wide(q), K = wide(k), V = wide(v), G = wide(g);
    Numbers exact[4] = {Numbers(n * d), Numbers(n * d), Numbers(n * d), Numbers(n * d)};
    for (i64 t = 0; t < n; t++) {
        Numbers p(t + 1), dp(t + 1);
        double total = 0, delta = 0;
        for (i64 j = first[t]; j <= t; j++) {
            for (i64 i = 0; i < d; i++) p[j] += Q[t * d + i] * K[j * d + i] * scale;
            total += p[j] = std::exp(p[j]);
        }
        for (i64 j = first[t]; j <= t; j++) {
            p[j] /= total;
            for (i64 i = 0; i < d; i++) {
                exact[0][t * d + i] += p[j] * V[j * d + i];
                exact[3][j * d + i] += p[j] * G[t * d + i];
                dp[j] += G[t * d + i] * V[j * d + i];
            }
            delta += p[j] * dp[j];
        }
        for (i64 j = first[t]; j <= t; j++)
            for (i64 i = 0; i < d; i++) {
                const double ds = p[j] * (dp[j] - delta) * scale;
                exact[1][t * d + i] += ds * K[j * d + i];
                exact[2][j * d + i] += ds * Q[t * d + i];
            }
    }
    const std::vector<T>* found[4] = {&out, &dq, &dk, &dv};
    double worst = 0;
    for (int i = 0; i < 4; i++) worst = std::max(worst, apart(wide(*found[i]), exact[i]));
    return worst;
}

template <class T>
double check_norm() {
    const i64 n = 5, d = 64, pairs = 16;
    const auto x = drawn<T>(n * d), g = drawn<T>(n * d);
    const auto angles = drawn<float>(n * pairs);
    std::vector<float> cosines, sines;
    for (float a : angles) cosines.push_back(std::cos(a)), sines.push_back(std::sin(a));
    std::vector<T> out(n * d), dx(n * d);
    i64 strides[9];
    for (int i = 0; i < 9; i++) strides[i] = i % 3 == 2 ? d : n * d;
    const T* grads[2] = {nullptr, g.data()};
    for (int back = 0; back < 2; back++)
        norm_rotate(sizeof(T) == 2, x.data(), grads[back], (back ? dx : out).data(), cosines.data(), sines.data(),
                    strides, 1, 1, n, d, pairs, 1e-6f, 1);
    Numbers exact = wide(x), X = exact, exact_dx = wide(g);
    for (i64 t = 0; t < n; t++) {
        double squares = 0, products = 0, *y = &exact[t * d], *dy = &exact_dx[t * d];
        for (i64 i = 0; i < d; i++) squares += y[i] * y[i];
        const double r = 1 / std::sqrt(squares / d + 1e-6);
        for (i64 i = 0; i < d; i++) X[t * d + i] = y[i] *= r;
        for (i64 i = 0; i < pairs; i++) {
            const double c = cosines[t * pairs + i], s = sines[t * pairs + i], a = y[i], da = dy[i];
            y[i] = a * c - y[i + pairs] * s;
            y[i + pairs] = a * s + y[i + pairs] * c;
            dy[i] = da * c + dy[i + pairs] * s;
            dy[i + pairs] = dy[i + pairs] * c - da * s;
        }
        for (i64 i = 0; i < d; i++) products += dy[i] * X[t * d + i];
        for (i64 i = 0; i < d; i++) dy[i] = r * (dy[i] - X[t * d + i] * products / d);
    }
    return std::max(apart(wide(out), exact), apart(wide(dx), exact_dx));
}

template <class T>
double check_gelu() {
    auto x = drawn<T>(1003, 3);
    put(&x[7], -200.0f);  // its exponential overflows
    const auto g = drawn<T>(x.size());
    std::vector<T> out(x.size()), dx(x.size());
    gelu(sizeof(T) == 2, x.data(), nullptr, out.data(), (i64)x.size(), 1);
    gelu(sizeof(T) == 2, x.data(), g.data(), dx.data(), (i64)x.size(), 1);
    Numbers exact, exact_dx;
    for (size_t i = 0; i < x.size(); i++) {
        const double v = widen(x[i]), a = 1.5957691216057308, s = 1 / (1 + std::exp(-a * (v + 0.044715 * v * v * v)));
        exact.push_back(v * s);
        exact_dx.push_back(widen(g[i]) * s * (1 + v * (1 - s) * a * (1 + 3 * 0.044715 * v * v)));
    }
    return std::max(apart(wide(out), exact), apart(wide(dx), exact_dx));
}

// Four rows that have a gradient: only now, never, only in earlier steps, and both in earlier steps and now.
double check_row_adam() {
    const i64 rows = 4, d = 48;
    auto w = drawn<float>(rows * d), g = drawn<float>(rows * d), m = drawn<float>(rows * d), v = drawn<float>(rows * d);
    for (float& number : v) number *= number;
    for (i64 i = d; i < 3 * d; i++) g[i] = 0;
    std::vector<float> updates = {0, 0, 2, 5};
    const float o[10] = {0.8f, 0.95f, 0.4f, 0.1f, 1e-6f, 1, 0, 0.01f, 0.3f, 0.5f};  // the fields of RowAdam
    Numbers exact = wide(w);
    for (i64 i = 0; i < rows * d; i++) {
        const double before = updates[i / d], after = before + (i / d % 3 == 0);
        const double a = o[0] * m[i] + (1 - o[0]) * g[i], b = o[1] * v[i] + (1 - o[1]) * g[i] * g[i];
        const double lr = after ? std::max(o[8] * std::pow(after, -(double)o[9]), (double)o[7]) : 0;
        exact[i] -= lr / o[2] * a / (std::sqrt(b / o[3]) + o[4]);
    }
    const i64 ids[] = {0, 3};
    auto few = g;  // only the rows that have a gradient
    few.erase(few.begin() + d, few.begin() + 3 * d);
    auto again = w, means = m, squares = v, counts = updates;
    row_adam(w.data(), g.data(), nullptr, 0, m.data(), v.data(), updates.data(), rows, d, o, 1);
    row_adam(again.data(), few.data(), ids, 2, means.data(), squares.data(), counts.data(), rows, d, o, 1);
    if (w != again || m != means || v != squares || updates != counts) return 1;
    return apart(wide(w), exact);
}

template <class T>
double check_linear(i64 rows) {
    const i64 k = 70, n = 67;
    const auto x = drawn<float>(rows * k), bias = drawn<float>(n);
    const auto w = drawn<T>(n * k);
    std::vector<float> y(rows * n);
    linear(sizeof(T) == 2, x.data(), rows, k, n, w.data(), bias.data(), y.data(), 1);
    Numbers exact(rows * n);
    for (i64 r = 0; r < rows; r++)
        for (i64 c = 0; c < n; c++) {
            exact[r * n + c] = bias[c];
            for (i64 i = 0; i < k; i++) exact[r * n + c] += (double)x[r * k + i] * widen(w[c * k + i]);
        }
    return apart(wide(y), exact);
}

double check_int8(i64 rows) {
    const i64 k = 96, n = 64;
    auto x = drawn<float>(rows * k, 30);
    for (i64 r = 0; r < rows; r++) {
        for (i64 i = 0; i < k; i++) x[r * k + i] = std::max(-127.0f, std::min(127.0f, std::nearbyint(x[r * k + i])));
        x[r * k] = 127;
    }
    std::vector<uint8_t> panel(n * k);
    std::vector<int32_t> sums(n);
    std::vector<float> scale(n, 0.5f), y(rows * n);
    Numbers exact(rows * n);
    for (i64 c = 0; c < n; c++)
        for (i64 i = 0; i < k; i++) {
            const int w = std::max(-127, std::min(127, (int)(draw() * 80)));
            panel[i / 4 * 4 * n + c * 4 + i % 4] = (uint8_t)w;
            sums[c] += w;
            for (i64 r = 0; r < rows; r++) exact[r * n + c] += 0.5 * w * x[r * k + i];
        }
    linear_int8(x.data(), rows, k, n, panel.data(), scale.data(), sums.data(), nullptr, y.data(), 1);
    return apart(wide(y), exact);
}

double check_attend(i64 time) {
    const i64 d = 40, slots = 30, capacity = 33;
    const auto q = drawn<float>(time * d), k = drawn<float>(capacity * d), v = drawn<float>(capacity * d);
    const int64_t start = 2;
    std::vector<float> out(time * d);
    attend(q.data(), k.data(), v.data(), &start, out.data(), 1, 1, time, d, capacity, slots - time, 0.2f, 1);
    Numbers exact(time * d);
    for (i64 t = 0; t < time; t++) {
        double total = 0;
        for (i64 j = start; j <= slots - time + t; j++) {
            double score = 0;
            for (i64 i = 0; i < d; i++) score += (double)q[t * d + i] * k[j * d + i] * 0.2f;
            total += score = std::exp(score);
            for (i64 i = 0; i < d; i++) exact[t * d + i] += score * v[j * d + i];
        }
        for (i64 i = 0; i < d; i++) exact[t * d + i] /= total;
    }
    return apart(wide(out), exact);
}

struct Check {
    const char* name;
    double error, allowed;
};

std::vector<Check> run() {
    const double narrow = 0.006;
    return {
        {"exp", check_exp(), 3e-7},
        {"softmax float32", check_softmax<float>(0), 1e-6},
        {"softmax float32, cap", check_softmax<float>(15), 1e-6},
        {"softmax bf16", check_softmax<bf16>(0), narrow},
        {"softmax bf16, cap", check_softmax<bf16>(15), narrow},
        {"cross entropy float32, 72", check_cross_entropy<float>(72, 0), 1e-6},
        {"cross entropy bf16, 33, overflow", check_cross_entropy<bf16>(33, -150), narrow},
        {"attention float32, 64", check_attention<float>(64), 1e-6},
        {"attention float32, 11", check_attention<float>(11), 1e-6},
        {"attention float32, 128", check_attention<float>(128), 1e-6},
        {"attention bf16, 64", check_attention<bf16>(64), narrow},
        {"attention bf16, 24", check_attention<bf16>(24), narrow},
        {"attention float32 in documents", check_attention<float>(64, 37), 1e-6},
        {"attention bf16 in documents", check_attention<bf16>(64, 37), narrow},
        {"norm and rotation float32", check_norm<float>(), 1e-6},
        {"norm and rotation bf16", check_norm<bf16>(), narrow},
        {"GELU float32", check_gelu<float>(), 1e-6},
        {"GELU bf16", check_gelu<bf16>(), narrow},
        {"row-wise AdamW", check_row_adam(), 1e-6},
        {"linear float32", check_linear<float>(7), 1e-6},
        {"linear bf16", check_linear<bf16>(7), 1e-6},
        {"linear int8", check_int8(13), 1e-6},
        {"attention over a cache, 1", check_attend(1), 1e-6},
        {"attention over a cache, 9", check_attend(9), 1e-6},
    };
}

}  // namespace

// Prints each error if `print` is not 0; returns how many exceed their limits.
extern "C" int check(int print) {
    int wrong = 0;
    for (const Check& c : run()) {
        if (print) printf("%s: %.2g of %.2g\n", c.name, c.error, c.allowed);
        wrong += !(c.error <= c.allowed);
    }
    if (print) fflush(stdout);
    return wrong;
}

#ifdef MAIN
int main() { return check(1); }
#endif
