/* Exponential and logarithm, in forms that the compiler turns into vectors. */

#include <math.h>
#include <stdint.h>
#include <string.h>

static inline float exp_within(float x) { /* Cephes' polynomial: relative error below 2e-7 */
    float n = rintf(x * 1.44269504f);
    float r = x - n * 0.693359375f;
    r = r + n * 2.12194440e-4f;
    float y = 1.9875691500e-4f;
    y = y * r + 1.3981999507e-3f;
    y = y * r + 8.3334519073e-3f;
    y = y * r + 4.1665795894e-2f;
    y = y * r + 1.6666665459e-1f;
    y = y * r + 5.0000001201e-1f;
    y = y * r * r + r + 1.0f;
    int32_t bits = ((int32_t)n + 127) << 23;
    float scale;
    memcpy(&scale, &bits, 4);
    return y * scale;
}

static inline float exp_(float x) {
    return exp_within(x < -87.0f ? -87.0f : x > 88.0f ? 88.0f : x);
}

/* exp(x) for x <= 0: without the comparison with the upper bound. */
static inline float exp_below(float x) { return exp_within(x < -87.0f ? -87.0f : x); }

/* log(1 + x) for -0.64 < x <= 0, by its series in x / (2 + x): relative error below 2e-7. */
static inline float log1p_between(float x) {
    float u = x / (2 + x), v = u * u;
    float y = 1 / 17.0f;
    y = y * v + 1 / 15.0f;
    y = y * v + 1 / 13.0f;
    y = y * v + 1 / 11.0f;
    y = y * v + 1 / 9.0f;
    y = y * v + 1 / 7.0f;
    y = y * v + 1 / 5.0f;
    y = y * v + 1 / 3.0f;
    return 2 * u * (y * v + 1);
}
