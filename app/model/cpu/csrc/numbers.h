/* Numbers as the kernels compute with them: vectors of float32, and elements as the model and its cache hold them,
 * float32, or bfloat16 with -DBFLOAT16. */

#ifndef NUMBERS_H
#define NUMBERS_H

#include <math.h>
#include <stdint.h>
#if defined(__FMA__)
#include <immintrin.h>
#endif

#ifdef __AVX512F__
#define LANES 16
#else
#define LANES 8 /* compilers split this if registers are narrower */
#endif

typedef float vector __attribute__((vector_size(4 * LANES)));

#ifdef BFLOAT16
typedef uint16_t element; /* the upper half of a float32 */
typedef uint16_t elements __attribute__((vector_size(2 * LANES)));
typedef uint32_t bits __attribute__((vector_size(4 * LANES)));

static inline vector widen(elements x) { return (vector)(__builtin_convertvector(x, bits) << 16); }

static inline float widen_one(element x) {
    return ((union { uint32_t bits; float value; }){(uint32_t)x << 16}).value;
}

/* To the nearest, ties to even; NaN stays NaN. */
static inline element narrow(float x) {
    const uint32_t bits = ((union { float value; uint32_t bits; }){x}).bits;
    return x != x ? 0x7fc0 : (element)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}
#else
typedef float element;
typedef vector elements;
static inline vector widen(elements x) { return x; }
static inline float widen_one(element x) { return x; }
static inline element narrow(float x) { return x; }
#endif

/* Compilers fuse a product and a sum in one place and not in another, which would change the last bit. */
#if defined(__AVX512F__)
static inline vector fused(vector a, vector b, vector sums) {
    return (vector)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)sums);
}
#elif defined(__FMA__)
static inline vector fused(vector a, vector b, vector sums) {
    return (vector)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)sums);
}
#else
static inline vector fused(vector a, vector b, vector sums) { return sums + a * b; }
#endif

/* A unit is what one step of a sum of products multiplies: a number, or two if the CPU has bfloat16. */
#if defined(BFLOAT16) && defined(__AVX512BF16__)
#define PER_UNIT 2
typedef vector units;
static inline units load_units(const element *values) {
    units x;
    __builtin_memcpy(&x, values, sizeof x);
    return x;
}
static inline float unit_of(const element *values) {
    float x;
    __builtin_memcpy(&x, values, sizeof x);
    return x;
}
static inline vector multiply_add(vector a, vector b, vector sums) {
    return (vector)_mm512_dpbf16_ps((__m512)sums, (__m512bh)a, (__m512bh)b);
}
#else
#define PER_UNIT 1
static inline vector load_units(const element *values) {
    elements x;
    __builtin_memcpy(&x, values, sizeof x);
    return widen(x);
}
static inline float unit_of(const element *values) { return widen_one(*values); }
static inline vector multiply_add(vector a, vector b, vector sums) { return fused(a, b, sums); }
#endif

/* e^x for x <= 0 within 2 units in the last place (the polynomial of Cephes' expf, Moshier 1989); NaN stays NaN. */
static inline float exp_of(float x) {
    const float n = rintf((x > -87.0f ? x : -87.0f) * 1.44269504f);
    const float r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
    float p = 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    const union { int32_t bits; float value; } power_of_two = {((int32_t)n + 127) << 23};
    return x < -87.0f ? 0.0f : p * power_of_two.value;
}

/* Of blocks of 1, 2, 4 or 8 lanes: every second one of a and of b in turn, beginning with the first or the second. */
#if LANES == 16
#define LOWER1(a, b) __builtin_shufflevector(a, b, 0, 16, 2, 18, 4, 20, 6, 22, 8, 24, 10, 26, 12, 28, 14, 30)
#define UPPER1(a, b) __builtin_shufflevector(a, b, 1, 17, 3, 19, 5, 21, 7, 23, 9, 25, 11, 27, 13, 29, 15, 31)
#define LOWER2(a, b) __builtin_shufflevector(a, b, 0, 1, 16, 17, 4, 5, 20, 21, 8, 9, 24, 25, 12, 13, 28, 29)
#define UPPER2(a, b) __builtin_shufflevector(a, b, 2, 3, 18, 19, 6, 7, 22, 23, 10, 11, 26, 27, 14, 15, 30, 31)
#define LOWER4(a, b) __builtin_shufflevector(a, b, 0, 1, 2, 3, 16, 17, 18, 19, 8, 9, 10, 11, 24, 25, 26, 27)
#define UPPER4(a, b) __builtin_shufflevector(a, b, 4, 5, 6, 7, 20, 21, 22, 23, 12, 13, 14, 15, 28, 29, 30, 31)
#define LOWER8(a, b) __builtin_shufflevector(a, b, 0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23)
#define UPPER8(a, b) __builtin_shufflevector(a, b, 8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31)
#else
#define LOWER1(a, b) __builtin_shufflevector(a, b, 0, 8, 2, 10, 4, 12, 6, 14)
#define UPPER1(a, b) __builtin_shufflevector(a, b, 1, 9, 3, 11, 5, 13, 7, 15)
#define LOWER2(a, b) __builtin_shufflevector(a, b, 0, 1, 8, 9, 4, 5, 12, 13)
#define UPPER2(a, b) __builtin_shufflevector(a, b, 2, 3, 10, 11, 6, 7, 14, 15)
#define LOWER4(a, b) __builtin_shufflevector(a, b, 0, 1, 2, 3, 8, 9, 10, 11)
#define UPPER4(a, b) __builtin_shufflevector(a, b, 4, 5, 6, 7, 12, 13, 14, 15)
#endif

static inline int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

#endif
