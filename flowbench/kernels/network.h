/* What the kernels of a transformer share. */

#include "exp.h"

#define MR 12 /* rows of a tile, at most */
#define EACH _Pragma("GCC unroll 1") for (int i = 0; i < LANES; i++) /* one loop: one vector */

typedef float vec __attribute__((vector_size(4 * LANES)));
typedef float vec_at __attribute__((vector_size(4 * LANES), aligned(4)));

/* Over the lanes, in halves: loops of a known length become vectors, one of any length does not. */
#define REDUCE(both)                                                        \
    float half[8], quarter[4], pair[2];                                     \
    for (int i = 0; i < 8; i++) half[i] = both(lanes[i], lanes[i + 8]);     \
    for (int i = 0; i < 4; i++) quarter[i] = both(half[i], half[i + 4]);    \
    for (int i = 0; i < 2; i++) pair[i] = both(quarter[i], quarter[i + 2]); \
    return both(pair[0], pair[1]);
#define SUM(a, b) ((a) + (b))
#define HIGHER(a, b) ((a) > (b) ? (a) : (b))

static inline float total(const float *lanes) { REDUCE(SUM) }
static inline float highest(const float *lanes) { REDUCE(HIGHER) }

typedef struct {
    float mean, scale; /* scale: one over the standard deviation */
} Moments;

static Moments moments(const float *x, int n, float eps) {
    float sum[LANES] = {0}, square[LANES] = {0};
    for (int j = 0; j < n; j += LANES) EACH sum[i] += x[j + i];
    const float mean = total(sum) / n;
    for (int j = 0; j < n; j += LANES) EACH square[i] += (x[j + i] - mean) * (x[j + i] - mean);
    return (Moments){mean, 1 / sqrtf(total(square) / n + eps)};
}

typedef struct {
    float value, slope;
} Point;

static inline Point gelu(float x) { /* erf by Abramowitz and Stegun 7.1.26, within 1.5e-7 */
    const float bell = exp_below(-0.5f * x * x), u = 1 / (1 + 0.23164189f * fabsf(x));
    const float tail = 0.5f * bell * u *
                       (0.254829592f +
                        u * (-0.284496736f +
                             u * (1.421413741f + u * (-1.453152027f + u * 1.061405429f))));
    const float below = x < 0 ? tail : 1 - tail;
    return (Point){x * below, below + x * bell * 0.39894228f};
}

static inline Point gelu_tanh(float x) {
    const float square = x * x;
    const float below = 1 / (1 + exp_(-1.5957691f * x * (1 + 0.044715f * square)));
    const float inner = 1.5957691f * (1 + 0.134145f * square);
    return (Point){x * below, below + x * below * (1 - below) * inner};
}

/* One tile of out = a w, or of that added to `bias` (where there is one) and to out (if `add`):
   `rows` by `vecs` vectors, both known when this is compiled. a's element of row r and column k
   lies at r * a_row + k * a_col, so that a may be transposed. */
static inline __attribute__((always_inline)) void tile(const int rows, const int vecs, int inputs,
                                                       const float *a, long a_row, long a_col,
                                                       const float *w, long w_row,
                                                       const float *bias, int add, float *out,
                                                       long out_row) {
    vec acc[MR][2];
#pragma GCC unroll 12
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 2
        for (int c = 0; c < vecs; c++) {
            acc[r][c] = bias ? *(const vec_at *)(bias + c * LANES) : (vec){0};
            if (add) acc[r][c] += *(const vec_at *)(out + r * out_row + c * LANES);
        }
    for (int k = 0; k < inputs; k++) {
        vec b[2];
#pragma GCC unroll 2
        for (int c = 0; c < vecs; c++) b[c] = *(const vec_at *)(w + k * w_row + c * LANES);
#pragma GCC unroll 12
        for (int r = 0; r < rows; r++)
#pragma GCC unroll 2
            for (int c = 0; c < vecs; c++) acc[r][c] += a[r * a_row + k * a_col] * b[c];
    }
#pragma GCC unroll 12
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 2
        for (int c = 0; c < vecs; c++) *(vec_at *)(out + r * out_row + c * LANES) = acc[r][c];
}

/* `call(n)` for a number of rows that is known only now. */
#define FOR_ROWS(rows, call)                                                         \
    switch (rows) {                                                                  \
        case 1: call(1); break;                                                      \
        case 2: call(2); break;                                                      \
        case 3: call(3); break;                                                      \
        case 4: call(4); break;                                                      \
        case 5: call(5); break;                                                      \
        case 6: call(6); break;                                                      \
        case 7: call(7); break;                                                      \
        case 8: call(8); break;                                                      \
        case 9: call(9); break;                                                      \
        case 10: call(10); break;                                                    \
        case 11: call(11); break;                                                    \
        case 12: call(12); break;                                                    \
    }
