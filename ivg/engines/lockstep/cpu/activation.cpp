// GELU in one pass; `activation.py` says what it takes.

#include "vectors.hpp"

namespace {

template <class Type>
INLINE Vector gelu_of(const typename Type::Element *from) {
    Vector x = Type::load(from), z = 1.59576912f * (x + 0.044715f * x * x * x);  // sqrt(8 / pi)
    Vector e = exponential(z > 0.0f ? -z : z);  // the sigmoid of z is 1 / (1 + e) or e / (1 + e)
    return x * (z > 0.0f ? all(1) : e) / (e + 1.0f);
}

template <class Type>
void gelu(const typename Type::Element *from, typename Type::Element *to, int64_t num, int num_threads) {
    const int64_t whole = num / LANES * LANES;
#pragma omp parallel for schedule(static) num_threads(num_threads) if (num > 1 << 14)
    for (int64_t i = 0; i < whole; i += LANES) Type::store(to + i, gelu_of<Type>(from + i));
    if (whole < num) {
        typename Type::Element last[LANES] = {};
        std::memcpy(last, from + whole, sizeof(last[0]) * (num - whole));
        Type::store(last, gelu_of<Type>(last));
        std::memcpy(to + whole, last, sizeof(last[0]) * (num - whole));
    }
}

}  // namespace

extern "C" void ivg_gelu_float32(const float *from, float *to, int64_t num, int num_threads) {
    gelu<Float32>(from, to, num, num_threads);
}
extern "C" void ivg_gelu_bfloat16(const uint16_t *from, uint16_t *to, int64_t num, int num_threads) {
    gelu<BFloat16>(from, to, num, num_threads);
}
