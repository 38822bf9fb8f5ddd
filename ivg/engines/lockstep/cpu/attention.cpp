// Attention of one new token per row over shared and own columns; `attention.py` says what it takes.
//
// Eight numbers at a time, in float32 whatever they are kept in. Every sum is taken in an order that depends on
// nothing but the numbers' own places, so that a row's results are the same whichever rows stand beside it.

#include <cmath>
#include <cstdint>
#include <cstring>

#include <omp.h>

namespace {

#define INLINE inline __attribute__((always_inline))

constexpr int LANES = 8;
typedef float Vector __attribute__((vector_size(4 * LANES)));
typedef int32_t Ints __attribute__((vector_size(4 * LANES)));
typedef uint32_t Bits __attribute__((vector_size(4 * LANES)));
typedef uint16_t Halves __attribute__((vector_size(2 * LANES)));

struct Float32 {
    using Element = float;
    static INLINE Vector load(const float *from) {
        Vector x;
        std::memcpy(&x, from, sizeof x);
        return x;
    }
    static INLINE void store(float *to, Vector x) { std::memcpy(to, &x, sizeof x); }
};

struct BFloat16 {
    using Element = uint16_t;
    static INLINE Vector load(const uint16_t *from) {
        Halves halves;
        std::memcpy(&halves, from, sizeof halves);
        return reinterpret_cast<Vector>(__builtin_convertvector(halves, Bits) << 16);
    }
    static INLINE void store(uint16_t *to, Vector x) {  // to the nearest, ties to even; NaN stays NaN
        Bits bits = reinterpret_cast<Bits>(x);
        Bits rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
        Halves halves = __builtin_convertvector(x == x ? rounded : Bits{} + 0x7fc0, Halves);
        std::memcpy(to, &halves, sizeof halves);
    }
};

INLINE Vector all(float x) { return Vector{} + x; }

// e^x for x <= 0, and 0 below -87: x = n ln 2 + r with |r| <= ln(2) / 2, and e^r by Cephes' polynomial.
INLINE Vector exponential(Vector x) {
    const Vector rounder = all(12582912.0f);  // 1.5 * 2^23: adding it rounds off the fraction
    Vector n = (x < -87.0f ? all(0) : x) * 1.44269504f + rounder - rounder;
    Vector r = x - n * 0.693359375f + n * 2.12194440e-4f;
    Vector p = all(1.9875691500e-4f);
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    Vector power = reinterpret_cast<Vector>((__builtin_convertvector(n, Ints) + 127) << 23);
    return x < -87.0f ? all(0) : p * power;
}

INLINE float highest(Vector x) {
    float top = x[0];
    for (int i = 1; i < LANES; i++) top = x[i] > top ? x[i] : top;
    return top;
}

INLINE float sum(Vector x) {
    float total = 0;
    for (int i = 0; i < LANES; i++) total += x[i];
    return total;
}

// The lanes of `a`, then those of `b`, picked by number.
#ifdef __clang__
#define SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define SHUFFLE(a, b, ...) __builtin_shuffle(a, b, Ints{__VA_ARGS__})
#endif

// The sums of neighbouring lanes; each shuffle is one instruction of x86.
INLINE Vector neighbours(Vector a, Vector b) {
    return SHUFFLE(a, b, 0, 2, 8, 10, 4, 6, 12, 14) + SHUFFLE(a, b, 1, 3, 9, 11, 5, 7, 13, 15);
}

// Lane i: the sum of the lanes of v[i].
INLINE Vector sums_of_lanes(const Vector *v) {
    Vector a = neighbours(neighbours(v[0], v[1]), neighbours(v[2], v[3]));
    Vector b = neighbours(neighbours(v[4], v[5]), neighbours(v[6], v[7]));
    return SHUFFLE(a, b, 0, 1, 2, 3, 8, 9, 10, 11) + SHUFFLE(a, b, 4, 5, 6, 7, 12, 13, 14, 15);
}

// The loops wait for memory. While a column of keys is read, the same one of values is asked for, and while values
// are read, the keys of the next head.
template <class Element>
INLINE void fetch(const Element *from, long num) {
    for (long i = 0; i < num; i += 64 / sizeof(Element)) __builtin_prefetch(from + i, 0, 2);
}

// scores[q * stride + c] = keys[c] . queries[q], eight sums at a time: Q queries by 8 / Q columns.
template <class Type, int Q>
INLINE void score_some(const typename Type::Element *keys, const typename Type::Element *next, long columns, int size,
                       const float *queries, float *scores, long stride) {
    constexpr int C = LANES / Q;
    for (long c = 0; c < columns; c += C) {
        const int num = columns - c < C ? columns - c : C;
        if (next) fetch(next + c * size, num * size);
        const typename Type::Element *key[C];  // past the end, the last one again
        for (int j = 0; j < C; j++) key[j] = keys + (c + (j < num ? j : num - 1)) * size;
        Vector sums[LANES] = {};
        for (int i = 0; i < size; i += LANES) {
            Vector query[Q];
            for (int q = 0; q < Q; q++) query[q] = Float32::load(queries + q * size + i);
            for (int j = 0; j < C; j++) {
                Vector k = Type::load(key[j] + i);
                for (int q = 0; q < Q; q++) sums[q * C + j] += k * query[q];
            }
        }
        float found[LANES];
        Float32::store(found, sums_of_lanes(sums));
        for (int q = 0; q < Q; q++) {
            if (num == C)  // a size that the compiler knows
                std::memcpy(scores + q * stride + c, found + q * C, sizeof(float) * C);
            else
                std::memcpy(scores + q * stride + c, found + q * C, sizeof(float) * num);
        }
    }
}

template <class Type>
INLINE void score(const typename Type::Element *keys, const typename Type::Element *next, long columns, int size,
                  const float *queries, int num_queries, float *scores, long stride) {
    int q = 0;
    for (; q + 4 <= num_queries; q += 4, next = nullptr)
        score_some<Type, 4>(keys, next, columns, size, queries + q * size, scores + q * stride, stride);
    for (; q + 2 <= num_queries; q += 2, next = nullptr)
        score_some<Type, 2>(keys, next, columns, size, queries + q * size, scores + q * stride, stride);
    for (; q < num_queries; q++, next = nullptr)
        score_some<Type, 1>(keys, next, columns, size, queries + q * size, scores + q * stride, stride);
}

// Replace scores by e^(score - highest), padded with zeros to whole vectors; returns their sum.
INLINE float exponentials(float *scores, long columns, const uint8_t *mask) {
    const long padded = (columns + LANES - 1) / LANES * LANES;
    if (mask)
        for (long c = 0; c < columns; c++) scores[c] = mask[c] ? scores[c] : -INFINITY;
    for (long c = columns; c < padded; c++) scores[c] = -INFINITY;
    Vector tops = Float32::load(scores), sums = {};
    for (long c = LANES; c < padded; c += LANES) {
        Vector x = Float32::load(scores + c);
        tops = x > tops ? x : tops;
    }
    const float top = highest(tops);
    for (long c = 0; c < padded; c += LANES) {
        Vector x = exponential(Float32::load(scores + c) - top);
        sums += x;
        Float32::store(scores + c, x);
    }
    return sum(sums);
}

template <class Type, int Q, int B>
INLINE void mix_part(const typename Type::Element *values, long columns, int size, const float *weights, long stride,
                     float *mixed) {
    Vector sums[Q][B];
    for (int q = 0; q < Q; q++)
        for (int b = 0; b < B; b++) sums[q][b] = Float32::load(mixed + q * size + b * LANES);
    for (long c = 0; c < columns; c++)
        for (int b = 0; b < B; b++) {
            Vector v = Type::load(values + c * size + b * LANES);
            for (int q = 0; q < Q; q++) sums[q][b] += v * weights[q * stride + c];
        }
    for (int q = 0; q < Q; q++)
        for (int b = 0; b < B; b++) Float32::store(mixed + q * size + b * LANES, sums[q][b]);
}

// mixed[q] += sum of weights[q * stride + c] values[c], eight sums at a time: Q queries by 8 / Q vectors.
template <class Type, int Q>
INLINE void mix_some(const typename Type::Element *values, long columns, int size, const float *weights, long stride,
                     float *mixed) {
    constexpr int B = LANES / Q;
    int i = 0;
    for (; i + B * LANES <= size; i += B * LANES)
        mix_part<Type, Q, B>(values + i, columns, size, weights, stride, mixed + i);
    for (; i < size; i += LANES) mix_part<Type, Q, 1>(values + i, columns, size, weights, stride, mixed + i);
}

template <class Type>
INLINE void mix(const typename Type::Element *values, const typename Type::Element *next, long columns, int size,
                const float *weights, long stride, int num_queries, float *mixed) {
    constexpr long TILE = 16;  // columns that stay in the first cache while all queries meet them
    for (long c = 0; c < columns; c += TILE, values += TILE * size, next += TILE * size, weights += TILE) {
        const long num = columns - c < TILE ? columns - c : TILE;
        fetch(next, num * size);
        int q = 0;
        for (; q + 4 <= num_queries; q += 4)
            mix_some<Type, 4>(values, num, size, weights + q * stride, stride, mixed + q * size);
        for (; q + 2 <= num_queries; q += 2)
            mix_some<Type, 2>(values, num, size, weights + q * stride, stride, mixed + q * size);
        for (; q < num_queries; q++)
            mix_some<Type, 1>(values, num, size, weights + q * stride, stride, mixed + q * size);
    }
}

// As `attention.Arguments`; strides and sizes count elements.
struct Arguments {
    const void *query, *prefix_keys, *prefix_values, *own_keys, *own_values;
    const uint8_t *mask;
    void *output;
    float *scratch;
    const int32_t *rows, *row_starts, *prefixes, *prefix_starts, *common;
    int64_t query_row, query_head, prefix_row, prefix_head, own_row, own_head;
    int64_t prefix_columns, own_columns, scratch_size;
    int32_t num_groups, num_heads, queries_per_head, size;
    float scaling;
};

// One head for the rows of one group, whose prefixes have their first `common` columns in common.
template <class Type>
INLINE void attend_one(const Arguments &a, int group, int head, float *scratch) {
    using Element = typename Type::Element;
    const int size = a.size, per_row = a.queries_per_head;
    const int first = a.prefix_starts[group], last = a.prefix_starts[group + 1];
    const int32_t *starts = a.row_starts, *rows = a.rows + starts[first];
    const int num_rows = starts[last] - starts[first], num_queries = num_rows * per_row;
    const long columns = a.prefix_columns + a.own_columns, stride = (columns + LANES - 1) / LANES * LANES;
    const long common = a.common[group], rest = a.prefix_columns - common;
    float *queries = scratch, *mixed = queries + num_queries * size, *sums = mixed + num_queries * size;
    float *scores = sums + num_queries;
    const auto prefix = [&](const void *states, int p) {
        return static_cast<const Element *>(states) + a.prefixes[p] * a.prefix_row + head * a.prefix_head;
    };
    const auto own = [&](const void *states, int r) {
        return static_cast<const Element *>(states) + rows[r] * a.own_row + head * a.own_head;
    };

    for (int q = 0; q < num_queries; q++) {
        auto from = static_cast<const Element *>(a.query) + rows[q / per_row] * a.query_row +
                    (head * per_row + q % per_row) * a.query_head;
        for (int i = 0; i < size; i += LANES) {
            Float32::store(queries + q * size + i, Type::load(from + i) * a.scaling);
            Float32::store(mixed + q * size + i, Vector{});
        }
    }
    score<Type>(prefix(a.prefix_keys, first), prefix(a.prefix_values, first), common, size, queries, num_queries, scores,
                stride);
    for (int p = first; p < last; p++) {
        const int q = (starts[p] - starts[first]) * per_row, num = (starts[p + 1] - starts[p]) * per_row;
        score<Type>(prefix(a.prefix_keys, p) + common * size, prefix(a.prefix_values, p) + common * size, rest, size,
                    queries + q * size, num, scores + q * stride + common, stride);
    }
    for (int r = 0; r < num_rows; r++) {
        const int q = r * per_row;
        score<Type>(own(a.own_keys, r), own(a.own_values, r), a.own_columns, size, queries + q * size, per_row,
                    scores + q * stride + a.prefix_columns, stride);
        const uint8_t *mask = a.mask ? a.mask + rows[r] * columns : nullptr;
        for (int i = q; i < q + per_row; i++) sums[i] = exponentials(scores + i * stride, columns, mask);
    }
    const long next_prefix = head + 1 < a.num_heads ? a.prefix_head : 0;
    const long next_own = head + 1 < a.num_heads ? a.own_head : 0;
    mix<Type>(prefix(a.prefix_values, first), prefix(a.prefix_keys, first) + next_prefix, common, size, scores, stride,
              num_queries, mixed);
    for (int p = first; p < last; p++) {
        const int q = (starts[p] - starts[first]) * per_row, num = (starts[p + 1] - starts[p]) * per_row;
        mix<Type>(prefix(a.prefix_values, p) + common * size, prefix(a.prefix_keys, p) + next_prefix + common * size, rest,
                  size, scores + q * stride + common, stride, num, mixed + q * size);
    }
    for (int r = 0; r < num_rows; r++)
        mix<Type>(own(a.own_values, r), own(a.own_keys, r) + next_own, a.own_columns, size,
                  scores + r * per_row * stride + a.prefix_columns, stride, per_row, mixed + r * per_row * size);
    for (int q = 0; q < num_queries; q++) {
        auto to = static_cast<Element *>(a.output) +
                  ((rows[q / per_row] * a.num_heads + head) * per_row + q % per_row) * long(size);
        for (int i = 0; i < size; i += LANES) Type::store(to + i, Float32::load(mixed + q * size + i) / sums[q]);
    }
}

template <class Type>
void attend(const Arguments &a, int num_threads) {
#pragma omp parallel for schedule(static) num_threads(num_threads)
    for (int i = 0; i < a.num_groups * a.num_heads; i++)
        attend_one<Type>(a, i / a.num_heads, i % a.num_heads, a.scratch + omp_get_thread_num() * a.scratch_size);
}

}  // namespace

extern "C" void ivg_attend_float32(const Arguments *a, int num_threads) { attend<Float32>(*a, num_threads); }
extern "C" void ivg_attend_bfloat16(const Arguments *a, int num_threads) { attend<BFloat16>(*a, num_threads); }
