// Eight numbers at a time, in float32 whatever they are kept in.
//
// Every sum is taken in an order that depends on nothing but the numbers' own places, so that a row's results are the
// same whichever rows stand beside it.

#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

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
    static constexpr float LOWEST = -INFINITY;
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
    static constexpr uint16_t LOWEST = 0xff80;  // minus infinity
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
