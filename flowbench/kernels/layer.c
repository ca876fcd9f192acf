/* What a transformer layer computes between its linear maps, forward and backward, for training.

   Each function is one pass over memory, where torch takes several: these operations are bound by
   memory traffic, not by arithmetic. Activations are float32 or, if `bf16`,
   bfloat16; the residual stream, parameters' gradients and all sums are float32. Widths are
   multiples of LANES. Each thread writes its own sums over rows; the caller adds them in
   order, so the same number of threads gives the same bits. */

#include "fetch.h"
#include "network.h"

#define PART(n, i, parts) ((n) * (i) / (parts)) /* where the i-th of so many parts begins */

/* n activations as float32: where they are, or widened into `room`. */
static const float *widened(const void *from, long at, int n, int bf16, float *room) {
    if (!bf16) return (const float *)from + at;
    const uint16_t *bits = (const uint16_t *)from + at;
    for (int j = 0; j < n; j++) {
        const uint32_t wide = (uint32_t)bits[j] << 16;
        memcpy(room + j, &wide, 4);
    }
    return room;
}

/* Where activations that leave can be computed; `round_to` brings them to their place then. */
static float *target(void *to, long at, int bf16, float *room) {
    return bf16 ? room : (float *)to + at;
}

static void round_to(void *to, long at, int n, const float *row) { /* to nearest, ties to even */
    uint16_t *out = (uint16_t *)to + at;
    for (int j = 0; j < n; j++) {
        uint32_t bits;
        memcpy(&bits, row + j, 4);
        const uint32_t near = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
        out[j] = row[j] != row[j] ? 0x7fc0 : near;
    }
}

/* ---- GELU ---- */

/* out = GELU(x), and x becomes GELU'(x): all that the backward pass needs. [rows][width] */
void gelu_forward(void *x, long rows, int width, int bf16, int tanh, int threads, void *out) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (long r = 0; r < rows; r++) {
        float in_room[width], out_room[width], slope_room[width];
        const float *in = widened(x, r * width, width, bf16, in_room);
        float *value = target(out, r * width, bf16, out_room);
        float *slope = target(x, r * width, bf16, slope_room);
        if (tanh)
            for (int j = 0; j < width; j++) {
                const Point p = gelu_tanh(in[j]);
                value[j] = p.value;
                slope[j] = p.slope;
            }
        else
            for (int j = 0; j < width; j++) {
                const Point p = gelu(in[j]);
                value[j] = p.value;
                slope[j] = p.slope;
            }
        if (bf16) round_to(out, r * width, width, value), round_to(x, r * width, width, slope);
    }
}

/* gradient *= slope, [rows][width]; sums [threads][width]: its sums over the rows, by thread. */
void gelu_backward(void *gradient, const void *slope, long rows, int width, int bf16, int threads,
                   float *sums) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int i = 0; i < threads; i++) {
        float g_room[width], s_room[width], *sum = sums + (long)i * width;
        memset(sum, 0, width * sizeof(float));
        for (long r = PART(rows, i, threads); r < PART(rows, i + 1, threads); r++) {
            const float *s = widened(slope, r * width, width, bf16, s_room);
            float *g = (float *)widened(gradient, r * width, width, bf16, g_room);
            for (int j = 0; j < width; j++) g[j] *= s[j];
            for (int j = 0; j < width; j++) sum[j] += g[j];
            if (bf16) round_to(gradient, r * width, width, g);
        }
    }
}

/* ---- LayerNorm and the residual stream ---- */

/* out = LayerNorm(x), or of x + branch, where there is one, which `stream` becomes. [rows][width];
   each row's moments are kept. */
void norm_forward(const float *x, const void *branch, const float *weight, const float *bias,
                  float eps, long rows, int width, int bf16, int threads, float *stream,
                  Moments *kept, void *out) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (long r = 0; r < rows; r++) {
        float room[width];
        const float *in = x + r * width;
        if (branch) {
            const float *more = widened(branch, r * width, width, bf16, room);
            float *both = stream + r * width;
            for (int j = 0; j < width; j++) both[j] = in[j] + more[j];
            in = both;
        }
        const Moments m = kept[r] = moments(in, width, eps);
        float *y = target(out, r * width, bf16, room);
        for (int j = 0; j < width; j++) y[j] = (in[j] - m.mean) * m.scale * weight[j] + bias[j];
        if (bf16) round_to(out, r * width, width, y);
    }
}

/* g_x = g_stream + the gradient through the norm of x; `rounded` the same in bfloat16, if bf16.
   sums [threads][3][width]: the gradients of weight and bias, and g_x over the rows. */
void norm_backward(const void *g_out, const float *x, const Moments *kept, const float *weight,
                   const float *g_stream, long rows, int width, int bf16, int threads, float *g_x,
                   void *rounded, float *sums) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int t = 0; t < threads; t++) {
        float room[width], unit[width], *g_weight = sums + 3L * t * width;
        float *g_bias = g_weight + width, *sum = g_bias + width;
        memset(g_weight, 0, 3 * width * sizeof(float));
        for (long r = PART(rows, t, threads); r < PART(rows, t + 1, threads); r++) {
            const float *in = x + r * width, *g = widened(g_out, r * width, width, bf16, room);
            const float *before = g_stream + r * width;
            float *after = g_x + r * width;
            const Moments m = kept[r];
            float lanes[LANES] = {0}, turned[LANES] = {0};
            for (int j = 0; j < width; j += LANES)
                EACH {
                    unit[j + i] = (in[j + i] - m.mean) * m.scale;
                    lanes[i] += g[j + i] * weight[j + i];
                    turned[i] += g[j + i] * weight[j + i] * unit[j + i];
                }
            const float mean = total(lanes) / width, along = total(turned) / width;
            for (int j = 0; j < width; j++) {
                g_weight[j] += g[j] * unit[j];
                g_bias[j] += g[j];
                after[j] = before[j] + m.scale * (g[j] * weight[j] - mean - unit[j] * along);
                sum[j] += after[j];
            }
            if (bf16) round_to(rounded, r * width, width, after);
        }
    }
}

/* ---- causal attention ---- */

typedef struct {
    int batch, tokens, heads, size, bf16;
} Shape;

/* out [rows][columns] = a w; columns are a multiple of LANES. */
static void product(int rows, int columns, int inputs, const float *a, long a_row, long a_col,
                    const float *w, long w_row, float *out, long out_row) {
#define WIDE(n) tile(n, 2, inputs, a, a_row, a_col, w + c, w_row, 0, 0, out + c, out_row)
#define SLIM(n) tile(n, 1, inputs, a, a_row, a_col, w + c, w_row, 0, 0, out + c, out_row)
    int c = 0;
    for (; c + 2 * LANES <= columns; c += 2 * LANES) FOR_ROWS(rows, WIDE)
    if (c < columns) FOR_ROWS(rows, SLIM)
}

static inline int filled_up(int n) { return (n + LANES - 1) / LANES * LANES; }
static inline int least(int a, int b) { return a < b ? a : b; }

/* One head's part of [tokens][stride] activations, times a factor, to [tokens][size], filled up
   with zeros; that of the next sequence is fetched meanwhile. */
static void gather(const Shape *s, const void *from, long at, long stride, float factor,
                   float *to) {
    const int bytes = s->bf16 ? 2 : 4;
    for (int t = 0; t < s->tokens; t++) {
        float *row = to + t * s->size;
        const float *in = widened(from, at + t * stride, s->size, s->bf16, row);
        const char *next = (const char *)from + (at + (t + s->tokens) * stride) * bytes;
        FETCH(next, s->size * bytes, 0);
        for (int j = 0; j < s->size; j++) row[j] = in[j] * factor;
    }
    const int filling = filled_up(s->tokens) - s->tokens;
    memset(to + s->tokens * s->size, 0, filling * s->size * sizeof(float));
}

/* And back; added to `sum` too, where there is one. */
static void scatter(const Shape *s, const float *from, void *to, long at, long stride,
                    float *sum) {
    for (int t = 0; t < s->tokens; t++) {
        const float *row = from + t * s->size;
        const int bytes = s->bf16 ? 2 : 4;
        const char *next = (const char *)to + (at + (t + s->tokens) * stride) * bytes;
        FETCH(next, s->size * bytes, 1);
        if (sum)
            for (int j = 0; j < s->size; j++) sum[j] += row[j];
        if (s->bf16)
            round_to(to, at + t * stride, s->size, row);
        else
            memcpy((float *)to + at + t * stride, row, s->size * sizeof(float));
    }
}

/* [tokens][size] to [size][tokens], both filled up: squares of LANES, each by as many rounds of a
   perfect shuffle as the lanes' number has bits. */
static void transpose(const Shape *s, const float *from, float *to) {
    const int wide = filled_up(s->tokens);
    for (int t = 0; t < wide; t += LANES)
        for (int j = 0; j < s->size; j += LANES) {
            float rooms[2][LANES * LANES], *square = rooms[0], *next = rooms[1];
            for (int r = 0; r < LANES; r++)
                EACH square[r * LANES + i] = from[(t + r) * s->size + j + i];
            for (int n = 1; n < LANES; n *= 2) {
                for (int r = 0; r < LANES / 2; r++)
                    EACH {
                        next[2 * (r * LANES + i)] = square[r * LANES + i];
                        next[2 * (r * LANES + i) + 1] = square[(r + LANES / 2) * LANES + i];
                    }
                float *last = square;
                square = next;
                next = last;
            }
            for (int r = 0; r < LANES; r++)
                EACH to[(j + r) * wide + t + i] = square[r * LANES + i];
        }
}

/* The first `seen` of a row of scores to probabilities, the rest of `columns` to zeros. */
static void softmax(float *row, int seen, int columns) {
    float top[LANES], sum[LANES] = {0};
    EACH top[i] = -INFINITY;
    for (int t = 0; t < columns; t += LANES)
        EACH {
            row[t + i] = t + i < seen ? row[t + i] : -INFINITY;
            top[i] = row[t + i] > top[i] ? row[t + i] : top[i];
        }
    const float high = highest(top);
    for (int t = 0; t < columns; t += LANES)
        EACH {
            row[t + i] = t + i < seen ? exp_below(row[t + i] - high) : 0;
            sum[i] += row[t + i];
        }
    const float scale = 1 / total(sum);
    for (int t = 0; t < columns; t++) row[t] *= scale;
}

/* Probabilities of the rows from `first`, of as many columns as any of them sees. */
static void attend(const Shape *s, int first, int rows, const float *q, const float *k_t,
                   float *p) {
    const int wide = filled_up(s->tokens), columns = filled_up(first + rows);
    product(rows, columns, s->size, q + first * s->size, s->size, 1, k_t, wide, p + first * wide,
            wide);
    for (int r = first; r < first + rows; r++) softmax(p + r * wide, r + 1, columns);
}

/* Floats that a thread needs. */
int attention_room(const Shape *s) {
    const int wide = filled_up(s->tokens);
    return 8 * wide * s->size + 2 * s->tokens * wide;
}

/* qkv [batch][tokens][3][heads][size] -> out [batch][tokens][heads][size] */
void attention_forward(const Shape *s, const void *qkv, int threads, float *rooms, void *out) {
    const int T = s->tokens, d = s->size, C = s->heads * d, wide = filled_up(T);
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int i = 0; i < threads; i++) {
        float *q = rooms + (long)i * attention_room(s), *k = q + wide * d, *v = k + wide * d;
        float *mean = v + wide * d, *k_t = mean + wide * d, *p = k_t + wide * d;
        const long first = PART((long)s->batch, i, threads);
        const long last = PART((long)s->batch, i + 1, threads);
        for (long b = first; b < last; b++)
            for (int h = 0; h < s->heads; h++) {
                const long at = b * T * 3 * C + h * d;
                gather(s, qkv, at, 3 * C, 1 / sqrtf(d), q);
                gather(s, qkv, at + C, 3 * C, 1, k);
                gather(s, qkv, at + 2 * C, 3 * C, 1, v);
                transpose(s, k, k_t);
                for (int r = 0; r < T; r += MR) {
                    const int rows = least(MR, T - r);
                    attend(s, r, rows, q, k_t, p);
                    product(rows, d, r + rows, p + r * wide, wide, 1, v, d, mean + r * d, d);
                }
                scatter(s, mean, out, b * T * C + h * d, C, 0);
            }
    }
}

/* The gradient of qkv from that of out, with sums [threads][3][heads][size] of it over the rows. */
void attention_backward(const Shape *s, const void *qkv, const void *g_out, int threads,
                        float *rooms, void *g_qkv, float *sums) {
    const int T = s->tokens, d = s->size, C = s->heads * d, wide = filled_up(T);
    const float scale = 1 / sqrtf(d);
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int i = 0; i < threads; i++) {
        float *q = rooms + (long)i * attention_room(s), *k = q + wide * d, *v = k + wide * d;
        float *g = v + wide * d, *g_k = g + wide * d, *g_v = g_k + wide * d, *g_q = v;
        float *k_t = g_v + wide * d, *v_t = k_t + wide * d, *p = v_t + wide * d;
        float *g_p = p + T * wide;
        float *sum = sums + 3L * i * C;
        memset(sum, 0, 3 * C * sizeof(float));
        const long first = PART((long)s->batch, i, threads);
        const long last = PART((long)s->batch, i + 1, threads);
        for (long b = first; b < last; b++)
            for (int h = 0; h < s->heads; h++) {
                const long at = b * T * 3 * C + h * d;
                gather(s, qkv, at, 3 * C, scale, q);
                gather(s, qkv, at + C, 3 * C, 1, k);
                gather(s, qkv, at + 2 * C, 3 * C, 1, v);
                gather(s, g_out, b * T * C + h * d, C, 1, g);
                transpose(s, k, k_t);
                transpose(s, v, v_t); /* v itself is not needed any more: g_q comes there */
                for (int r = 0; r < T; r += MR) {
                    const int rows = least(MR, T - r), columns = filled_up(r + rows);
                    attend(s, r, rows, q, k_t, p);
                    product(rows, columns, d, g + r * d, d, 1, v_t, wide, g_p + r * wide, wide);
                    for (int n = r; n < r + rows; n++) {
                        float *p_n = p + n * wide, *g_n = g_p + n * wide, lanes[LANES] = {0};
                        for (int t = 0; t < columns; t += LANES)
                            EACH lanes[i] += p_n[t + i] * g_n[t + i];
                        const float mean = total(lanes);
                        for (int t = 0; t < columns; t++) g_n[t] = p_n[t] * (g_n[t] - mean);
                    }
                    product(rows, d, r + rows, g_p + r * wide, wide, 1, k, d, g_q + r * d, d);
                    for (int j = r * d; j < (r + rows) * d; j++) g_q[j] *= scale;
                }
                for (int t = 0; t < T; t += MR) { /* a token is seen from itself on */
                    const int rows = least(MR, T - t);
                    const long from = (long)t * wide + t;
                    product(rows, d, T - t, g_p + from, 1, wide, q + t * d, d, g_k + t * d, d);
                    product(rows, d, T - t, p + from, 1, wide, g + t * d, d, g_v + t * d, d);
                }
                scatter(s, g_q, g_qkv, at, 3 * C, sum + h * d);
                scatter(s, g_k, g_qkv, at + C, 3 * C, sum + C + h * d);
                scatter(s, g_v, g_qkv, at + 2 * C, 3 * C, sum + 2 * C + h * d);
            }
    }
}
