/* Lines: rows of pixels as a convolution reads them, after norm and SiLU. */
#pragma once
#include <immintrin.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

enum { TILE = 16 };

typedef uint16_t bf16;

static inline __mmask16 lanes(int count) {
    return count >= TILE ? 0xffff : (__mmask16)((1u << count) - 1);
}

static inline __m512 load(__mmask16 mask, const bf16 *from) {
    __m512i wide = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask, from));
    return _mm512_castsi512_ps(_mm512_slli_epi32(wide, 16));
}

static inline void store(__mmask16 mask, bf16 *to, __m512 value) {
    _mm256_mask_storeu_epi16(to, mask, (__m256i)_mm512_cvtneps_pbh(value));
}

/* x / (1 + 2^z), z = -x log2(e): 2^z = 2^floor(z) * polynomial of the fraction (error < 4e-6). */
static inline __m512 silu(__m512 x) {
    const __m512 z = _mm512_mul_ps(x, _mm512_set1_ps(-1.44269504f));
    const __m512 fraction = _mm512_reduce_ps(z, _MM_FROUND_TO_NEG_INF);
    __m512 power = _mm512_set1_ps(0.013557f);
    power = _mm512_fmadd_ps(power, fraction, _mm512_set1_ps(0.0520114f));
    power = _mm512_fmadd_ps(power, fraction, _mm512_set1_ps(0.2414412f));
    power = _mm512_fmadd_ps(power, fraction, _mm512_set1_ps(0.6929910f));
    power = _mm512_fmadd_ps(power, fraction, _mm512_set1_ps(1.0000026f));
    power = _mm512_scalef_ps(power, z);
    return _mm512_mul_ps(x, _mm512_rcp14_ps(_mm512_add_ps(power, _mm512_set1_ps(1.0f))));
}

#define LOW_PAIRS(a, b) \
    _mm512_castpd_ps(_mm512_unpacklo_pd(_mm512_castps_pd(a), _mm512_castps_pd(b)))
#define HIGH_PAIRS(a, b) \
    _mm512_castpd_ps(_mm512_unpackhi_pd(_mm512_castps_pd(a), _mm512_castps_pd(b)))
#define EVEN_LANES(a, b) _mm512_shuffle_f32x4(a, b, 0x88)
#define ODD_LANES(a, b) _mm512_shuffle_f32x4(a, b, 0xdd)

/* The sums of 16 vectors, as one vector. */
static inline __m512 sums_of(const __m512 v[16]) {
    __m512 a[8], b[4], c[2];
    for (int i = 0; i < 8; i++)
        a[i] = _mm512_add_ps(_mm512_unpacklo_ps(v[2 * i], v[2 * i + 1]),
                             _mm512_unpackhi_ps(v[2 * i], v[2 * i + 1]));
    for (int i = 0; i < 4; i++)
        b[i] = _mm512_add_ps(LOW_PAIRS(a[2 * i], a[2 * i + 1]), HIGH_PAIRS(a[2 * i], a[2 * i + 1]));
    for (int i = 0; i < 2; i++)
        c[i] = _mm512_add_ps(EVEN_LANES(b[2 * i], b[2 * i + 1]), ODD_LANES(b[2 * i], b[2 * i + 1]));
    return _mm512_add_ps(EVEN_LANES(c[0], c[1]), ODD_LANES(c[0], c[1]));
}

/* Norm over the channels and SiLU of up to 16 pixels; `step`: values between pixels of a line. */
static inline __attribute__((always_inline)) void activate_group(const bf16 *x, const float *gamma,
                                                                 bf16 *line, int count, int ch,
                                                                 size_t step) {
    __m512 squares[TILE];
    float inverse[TILE] __attribute__((aligned(64)));
    for (int i = 0; i < TILE; i++) {
        squares[i] = _mm512_setzero_ps();
        for (int c = 0; i < count && c < ch; c += TILE) {
            const __m512 v = load(lanes(ch - c), x + i * ch + c);
            squares[i] = _mm512_fmadd_ps(v, v, squares[i]);
        }
    }
    const __m512 sums = _mm512_max_ps(sums_of(squares), _mm512_set1_ps(1e-24f));
    _mm512_store_ps(inverse, _mm512_rsqrt14_ps(sums));
    for (int c = 0; c < ch; c += TILE) {
        const __mmask16 mask = lanes(ch - c);
        const __m512 weight = _mm512_maskz_loadu_ps(mask, gamma + c);
        for (int i = 0; i < count; i++) {
            const __m512 scale = _mm512_mul_ps(weight, _mm512_set1_ps(inverse[i]));
            store(mask, line + i * step + c,
                  silu(_mm512_mul_ps(load(mask, x + i * ch + c), scale)));
        }
    }
}

static void activate_row(const bf16 *x, const float *gamma, bf16 *line, int width, int ch,
                         size_t step) {
    int i = 0; /* the widths 16 and 32 as constants: the loops unroll */
    if (ch == 16)
        for (; i + TILE <= width; i += TILE)
            activate_group(x + i * 16, gamma, line + i * step, TILE, 16, step);
    if (ch == 32)
        for (; i + TILE <= width; i += TILE)
            activate_group(x + i * 32, gamma, line + i * step, TILE, 32, step);
    for (; i < width; i += TILE) {
        const int count = width - i < TILE ? width - i : TILE;
        activate_group(x + i * ch, gamma, line + i * step, count, ch, step);
    }
}

/* Pixels from one row to another, `from_step` and `to_step` values apart. */
static void copy_pixels(const bf16 *from, size_t from_step, bf16 *to, size_t to_step, int width,
                        int ch, int up) {
    if (ch == 16)
        for (int i = 0; i < width; i++) memcpy(to + i * to_step, from + (i >> up) * from_step, 32);
    else if (ch == 32)
        for (int i = 0; i < width; i++) memcpy(to + i * to_step, from + (i >> up) * from_step, 64);
    else
        for (int i = 0; i < width; i++)
            memcpy(to + i * to_step, from + (i >> up) * from_step, ch * sizeof(bf16));
}
