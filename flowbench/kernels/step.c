/* One further token through a block's transformer, for many sequences; sampling does this T times.

   The torch path of vit.py takes a dozen small operations per layer, each over the whole batch and
   through memory. Here a few rows at a time go through all layers while they are in the cache.
   The weights come packed (step.py): every linear map as panels of PANEL outputs, [outputs / PANEL][inputs]
   [PANEL], then its biases; outputs are filled up with zeros. A LayerNorm's weight and bias are part
   of the map after it. float32 throughout; widths are multiples of LANES. */

#include "network.h"

typedef struct {
    int features, width, heads, tokens, layers, hidden, outputs, tanh;
    float eps; /* of every LayerNorm */
} Network;

static inline int panels(int outputs) { return (outputs + PANEL - 1) / PANEL * PANEL; }

/* out = a wᵀ + bias, or that added to out; returns the weights after these. */
static const float *linear(const float *w, int inputs, int outputs, int rows, const float *a,
                           int lda, float *out, int ldo, int add) {
    const int wide = panels(outputs);
    const float *bias = w + (long)inputs * wide;
    const int parts = (rows + MR - 1) / MR; /* of rows, all about as high */
    for (int n = 0; n < wide; n += PANEL)
        for (int p = 0; p < parts; p++) {
            const int from = rows * p / parts, to = rows * (p + 1) / parts;
#define THROUGH(rows)                                                                        \
    tile(rows, PANEL / LANES, inputs, a + from * lda, lda, 1, w + (long)n * inputs, PANEL, bias + n, \
         add, out + from * ldo + n, ldo)
            FOR_ROWS(to - from, THROUGH)
        }
    return bias + wide;
}

static void normalize(const float *x, int n, float eps, float *out) {
    const Moments m = moments(x, n, eps);
    for (int j = 0; j < n; j++) out[j] = (x[j] - m.mean) * m.scale;
}

/* Softmax of q kᵀ over the first `seen` tokens, times v: one head of one sequence. */
static inline __attribute__((always_inline)) void attend(const float *q, const float *k,
                                                         const float *v, int seen, const int size,
                                                         float scale, float *scores, float *out) {
    float high = -INFINITY, sum = 0;
    for (int t = 0; t < seen; t++) {
        float dot[LANES] = {0};
        for (int j = 0; j < size; j += LANES) EACH dot[i] += q[j + i] * k[t * size + j + i];
        scores[t] = total(dot) * scale;
        high = scores[t] > high ? scores[t] : high;
    }
    for (int t = 0; t < seen; t++) scores[t] = exp_below(scores[t] - high);
    for (int t = 0; t < seen; t++) sum += scores[t];
    for (int j = 0; j < size; j += LANES) {
        vec mean = {0};
        for (int t = 0; t < seen; t++) mean += scores[t] * *(const vec_at *)(v + t * size + j);
        *(vec_at *)(out + j) = mean / sum;
    }
}

/* Rows `start` to before `end` of a batch; see `step`. */
static void some_steps(const Network *net, const float *weights, const float *x, long x_stride,
                       const float *embedding, long embedding_stride, float *const *cache,
                       long batch, int t, long start, long end, float *out, float *scratch) {
    const int C = net->width, H = net->heads, T = net->tokens, size = C / H;
    const int most = net->hidden > 3 * C ? net->hidden : 3 * C, wide = panels(net->outputs);
    const int high = most > wide ? most : wide;
    float *stream = scratch, *normed = stream + TILE * C, *inner = normed + TILE * C;
    float *scores = inner + TILE * high;
    const long tiles = (end - start + TILE - 1) / TILE, whole = end - start;
    for (long tile = 0; tile < tiles; tile++) {
        const long first = start + whole * tile / tiles;
        const int rows = start + whole * (tile + 1) / tiles - first;
        for (int r = 0; r < rows; r++)
            memcpy(stream + r * C, embedding + (first + r) * embedding_stride, C * sizeof(float));
        const float *w = linear(weights, net->features, C, rows, x + first * x_stride, x_stride,
                                stream, C, 1);
        for (int layer = 0; layer < net->layers; layer++) {
            for (int r = 0; r < rows; r++) normalize(stream + r * C, C, net->eps, normed + r * C);
            w = linear(w, C, 3 * C, rows, normed, C, inner, high, 0);
            for (int r = 0; r < rows; r++)
                for (int h = 0; h < H; h++) {
                    float *k = cache[layer] + ((first + r) * H + h) * T * size;
                    float *v = k + batch * H * T * size;
                    const float *q = inner + r * high + h * size;
                    memcpy(k + t * size, q + C, size * sizeof(float));
                    memcpy(v + t * size, q + 2 * C, size * sizeof(float));
                    const float scale = 1 / sqrtf(size);
                    float *mean = normed + r * C + h * size;
                    if (size == 64) /* as usual: known when this is compiled */
                        attend(q, k, v, t + 1, 64, scale, scores, mean);
                    else
                        attend(q, k, v, t + 1, size, scale, scores, mean);
                }
            w = linear(w, C, C, rows, normed, C, stream, C, 1);
            for (int r = 0; r < rows; r++) normalize(stream + r * C, C, net->eps, normed + r * C);
            w = linear(w, C, net->hidden, rows, normed, C, inner, high, 0);
            for (int r = 0; r < rows; r++) {
                float *row = inner + r * high;
                if (net->tanh)
                    for (int j = 0; j < net->hidden; j++) row[j] = gelu_tanh(row[j]).value;
                else
                    for (int j = 0; j < net->hidden; j++) row[j] = gelu(row[j]).value;
            }
            w = linear(w, net->hidden, C, rows, inner, high, stream, C, 1);
        }
        linear(w, C, net->outputs, rows, stream, C, inner, high, 0);
        for (int r = 0; r < rows; r++)
            memcpy(out + (first + r) * net->outputs, inner + r * high,
                   net->outputs * sizeof(float));
    }
}

/* A batch takes token t, by so many threads.

   x [batch] rows of features, x_stride apart; embedding likewise of width; cache a pointer for each
   layer to [2][batch][heads][tokens][width / heads]; out [batch][outputs]; scratch [threads][room]. */
void step(const Network *net, const float *weights, const float *x, long x_stride,
          const float *embedding, long embedding_stride, float *const *cache, long batch, int t,
          int threads, float *out, float *scratch, long room) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int i = 0; i < threads; i++)
        some_steps(net, weights, x, x_stride, embedding, embedding_stride, cache, batch, t,
                   batch * i / threads, batch * (i + 1) / threads, out, scratch + i * room);
}
