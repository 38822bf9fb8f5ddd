// Draws and log-ratios over whole vocabularies; `logits.py` says what they take.

#include "vectors.hpp"

namespace {

// Up to eight numbers, the missing ones minus infinity.
template <class Type>
INLINE Vector load_some(const typename Type::Element *from, long num) {
    if (num >= LANES) return Type::load(from);
    typename Type::Element padded[LANES];
    for (int i = 0; i < LANES; i++) padded[i] = i < num ? from[i] : Type::LOWEST;
    return Type::load(padded);
}

template <class Type>
INLINE float highest_of(const typename Type::Element *row, long num) {
    Vector tops = all(-INFINITY);
    for (long i = 0; i < num; i += LANES) {
        Vector x = load_some<Type>(row + i, num - i);
        tops = x > tops ? x : tops;
    }
    return highest(tops);
}

template <class Type>
INLINE float log_of_sum(const typename Type::Element *row, long num) {
    const float top = highest_of<Type>(row, num);
    Vector sums = {};
    for (long i = 0; i < num; i += LANES) sums += exponential(load_some<Type>(row + i, num - i) - top);
    return top + std::log(sum(sums));
}

// A row's softmax lies on [0, 1) token by token; find the token on which `uniform` falls.
INLINE int64_t draw_one(const float *row, long num, double uniform, float scale) {
    constexpr long BLOCKS = 256;
    const float top = highest_of<Float32>(row, num);
    const auto weights = [&](long i) { return exponential((load_some<Float32>(row + i, num - i) - top) * scale); };
    const long length = (num / BLOCKS / LANES + 1) * LANES;
    double sums[BLOCKS], total = 0;
    for (long b = 0; b * length < num; b++) {
        Vector s = {};
        for (long i = b * length; i < (b + 1) * length && i < num; i += LANES) s += weights(i);
        total += sums[b] = sum(s);
    }
    const double target = uniform * total;
    double before = 0, start = 0;
    long block = -1;  // where the target falls; should rounding leave it beyond the sum, the last one possible
    for (long b = 0; b * length < num && !(block >= 0 && start + sums[block] > target); before += sums[b++])
        if (sums[b] > 0) block = b, start = before;
    int64_t drawn = num - 1;  // where the row is not a number
    for (long i = block * length; block >= 0 && i < (block + 1) * length && i < num; i += LANES) {
        Vector w = weights(i);
        for (int j = 0; j < LANES && i + j < num; j++) {
            start += w[j];
            if (w[j] > 0) drawn = i + j;
            if (start > target) return drawn;
        }
    }
    return drawn;
}

template <class Type>
void log_ratios(const typename Type::Element *tuned, const typename Type::Element *untuned, float *ratios, int64_t rows,
                int64_t num, int64_t tuned_row, int64_t untuned_row, float certain, int num_threads) {
#pragma omp parallel for schedule(static) num_threads(num_threads)
    for (int64_t r = 0; r < rows; r++) {
        const auto *t = tuned + r * tuned_row, *u = untuned + r * untuned_row;
        const Vector t_sum = all(log_of_sum<Type>(t, num)), u_sum = all(log_of_sum<Type>(u, num));
        for (int64_t i = 0; i < num; i += LANES) {
            Vector x = (load_some<Type>(t + i, num - i) - t_sum) - (load_some<Type>(u + i, num - i) - u_sum);
            x = x == x ? x : all(0);
            x = x > certain ? all(certain) : x < -certain ? all(-certain) : x;
            if (i + LANES <= num)
                Float32::store(ratios + r * num + i, x);
            else
                for (int64_t j = i; j < num; j++) ratios[r * num + j] = x[j - i];
        }
    }
}

}  // namespace

extern "C" void ivg_draw_float32(const float *logits, const double *uniforms, int64_t *ids, int64_t rows, int64_t num,
                                 int64_t stride, float scale, int num_threads) {
#pragma omp parallel for schedule(static) num_threads(num_threads)
    for (int64_t r = 0; r < rows; r++) ids[r] = draw_one(logits + r * stride, num, uniforms[r], scale);
}
extern "C" void ivg_log_ratios_float32(const float *tuned, const float *untuned, float *ratios, int64_t rows, int64_t num,
                                       int64_t tuned_row, int64_t untuned_row, float certain, int num_threads) {
    log_ratios<Float32>(tuned, untuned, ratios, rows, num, tuned_row, untuned_row, certain, num_threads);
}
extern "C" void ivg_log_ratios_bfloat16(const uint16_t *tuned, const uint16_t *untuned, float *ratios, int64_t rows,
                                        int64_t num, int64_t tuned_row, int64_t untuned_row, float certain,
                                        int num_threads) {
    log_ratios<BFloat16>(tuned, untuned, ratios, rows, num, tuned_row, untuned_row, certain, num_threads);
}
