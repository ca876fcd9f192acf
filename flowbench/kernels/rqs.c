/* The rational-quadratic spline of rqs.py and its gradient, fused: float32, one pass over memory.

   Everything is computed for FEATURES features at a time, in arrays that stay in the first cache and
   that the compiler turns into vectors. Raw parameters come as planes, [3K - 1][n]: K widths, K
   heights, K - 1 bends. The backward pass recomputes the forward pass's values, which costs less than
   writing them to memory and reading them back. Names are those of rqs.py. */

#include "exp.h"
#include "fetch.h"

#define FEATURES 64
#define EACH for (int i = 0; i < FEATURES; i++)

#define AHEAD(plane, write) FETCH((plane) + FEATURES, sizeof(lanes), write) /* planes lie far apart */

typedef float lanes[FEATURES];

typedef struct {
    int bins;
    float bound, min_width, min_slope, max_log_bend;
} Spline;

/* What `Pick` selects: of the lanes' pieces, of the neighbours at the left (l) and right (r). */
typedef struct {
    lanes k, p, p_l, p_r, q, q_l, q_r, p_sum, q_sum, r_l, r_r;
} Piece;

static void softmax(const float *raw, long stride, int bins, lanes *p) {
    lanes top, sum;
    EACH top[i] = raw[i];
    for (int j = 0; j < bins; j++) {
        AHEAD(raw + j * stride, 0);
        EACH top[i] = raw[j * stride + i] > top[i] ? raw[j * stride + i] : top[i];
    }
    EACH sum[i] = 0;
    for (int j = 0; j < bins; j++)
        EACH {
            p[j][i] = exp_below(raw[j * stride + i] - top[i]);
            sum[i] += p[j][i];
        }
    EACH sum[i] = 1 / sum[i];
    for (int j = 0; j < bins; j++) EACH p[j][i] *= sum[i];
}

/* Find each lane's piece along x (axis 0) or z (axis 1), at in [0, 1]. */
static void find(const Spline *s, const float *raw, long stride, const lanes at, int axis,
                 lanes *p, lanes *q, Piece *f) {
    const int K = s->bins;
    const float scale = 1 - K * s->min_width;
    const float *bends = raw + 2 * K * stride;
    softmax(raw, stride, K, p);
    softmax(raw + K * stride, stride, K, q);
    const int second = K > 1;
    EACH {
        f->k[i] = 0;
        f->p_sum[i] = f->q_sum[i] = 0;
        f->p[i] = f->p_l[i] = p[0][i];
        f->q[i] = f->q_l[i] = q[0][i];
        f->p_r[i] = p[second][i];
        f->q_r[i] = q[second][i];
        f->r_l[i] = f->r_r[i] = second ? bends[i] : 0;
    }
    lanes p_sum = {0}, q_sum = {0};
    for (int j = 1; j < K; j++) {
        const int next = j + 1 < K ? j + 1 : j;
        const float *left = bends + (j - 1) * stride;
        const float *right = bends + (j < K - 1 ? j : K - 2) * stride;
        const float floors = j * s->min_width;
        AHEAD(left, 0);
        EACH {
            p_sum[i] += p[j - 1][i];
            q_sum[i] += q[j - 1][i];
            float along = axis ? q_sum[i] + s->min_slope * (p_sum[i] - q_sum[i]) : p_sum[i];
            int past = at[i] >= along * scale + floors;
            f->k[i] = past ? j : f->k[i];
            f->p_sum[i] = past ? p_sum[i] : f->p_sum[i];
            f->q_sum[i] = past ? q_sum[i] : f->q_sum[i];
            f->p_l[i] = past ? p[j - 1][i] : f->p_l[i];
            f->p[i] = past ? p[j][i] : f->p[i];
            f->p_r[i] = past ? p[next][i] : f->p_r[i];
            f->q_l[i] = past ? q[j - 1][i] : f->q_l[i];
            f->q[i] = past ? q[j][i] : f->q[i];
            f->q_r[i] = past ? q[next][i] : f->q_r[i];
            f->r_l[i] = past ? left[i] : f->r_l[i];
            f->r_r[i] = past ? right[i] : f->r_r[i];
        }
    }
}

/* A piece on the unit square: corner, sides, chord's slope s, slopes at the ends over s; and what
   they were made of. */
typedef struct {
    float x0, y0, w, h, s, a0, a1;
    float w_l, s_l, w_r, s_r;
    int first, last;
} Side;

static inline Side side(const Spline *s, const Piece *f, int i) {
    const float m = s->min_width, mix = s->min_slope, scale = 1 - s->bins * m;
    Side o;
    o.first = f->k[i] == 0;
    o.last = f->k[i] == s->bins - 1;
    o.x0 = f->k[i] * m + scale * f->p_sum[i];
    o.y0 = f->k[i] * m + scale * (f->q_sum[i] + mix * (f->p_sum[i] - f->q_sum[i]));
    o.w = o.last ? 1 - o.x0 : m + scale * f->p[i];
    o.h = o.last ? 1 - o.y0 : m + scale * (f->q[i] + mix * (f->p[i] - f->q[i]));
    o.s = o.h / o.w;
    o.w_l = m + scale * f->p_l[i];
    o.w_r = m + scale * f->p_r[i];
    o.s_l = (m + scale * (f->q_l[i] + mix * (f->p_l[i] - f->q_l[i]))) / o.w_l;
    o.s_r = (m + scale * (f->q_r[i] + mix * (f->p_r[i] - f->q_r[i]))) / o.w_r;
    float c_l = f->r_l[i] / (1 + fabsf(f->r_l[i]) / s->max_log_bend);
    float c_r = f->r_r[i] / (1 + fabsf(f->r_r[i]) / s->max_log_bend);
    float a0 = 2 * o.s_l / (o.s_l + o.s) * exp_(c_l), a1 = 2 * o.s_r / (o.s_r + o.s) * exp_(c_r);
    o.a0 = o.first ? 1 / o.s : a0;
    o.a1 = o.last ? 1 / o.s : a1;
    return o;
}

static inline float clamp(float x, float low, float high) {
    return x < low ? low : x > high ? high : x;
}

static void block_forward(const Spline *s, const float *x, const float *raw, long stride,
                          int inverse, float *out, float *slope) {
    lanes p[MAX_BINS], q[MAX_BINS], at;
    Piece f;
    const float B = s->bound, two = 2 * B;
    EACH at[i] = (clamp(x[i], -B, B) + B) / two;
    find(s, raw, stride, at, inverse, p, q, &f);
    EACH {
        Side o = side(s, &f, i);
        float x0 = two * o.x0 - B, y0 = two * o.y0 - B, w = two * o.w, h = two * o.h;
        float v = clamp(x[i], -B, B), xi, eta, result;
        if (inverse) {
            float rho = clamp((v - y0) / h, 0, 1);
            float c = rho * (o.a0 + o.a1 - 2), b = o.a0 - c;
            float root = b * b + 4 * rho * (1 - o.a0 + c);
            root = sqrtf(root < 1e-30f ? 1e-30f : root);
            xi = clamp(2 * rho / (b + root), 0, 1);
            eta = 1 - xi;
            result = v + ((x0 - y0) + (w * xi - h * rho));
        } else {
            xi = clamp((v - x0) / w, 0, 1);
            eta = 1 - xi;
            float steep = v + ((y0 - x0) + (o.s - 1) * (v - x0)), flat = o.s * v + (y0 - o.s * x0);
            float bend = xi * eta * ((o.a0 - 1) * eta - (o.a1 - 1) * xi);
            result = (o.s > 1 ? steep : flat) + h * (bend / (1 + (o.a0 + o.a1 - 2) * xi * eta));
        }
        float den = 1 + (o.a0 + o.a1 - 2) * xi * eta;
        float ll = eta * eta, mm = 2 * xi * eta, rr = xi * xi;
        float ratio = (o.a0 * ll + mm + o.a1 * rr) / (ll + mm + rr);
        float steepness = o.s * ratio / (den * den);
        int within = x[i] >= -B && x[i] <= B;
        out[i] = within ? result : x[i];
        slope[i] = within ? steepness : 1;
    }
}

static void block_backward(const Spline *s, const float *x, const float *raw, long stride,
                           const float *g_z, const float *g_l, float *g_x, float *g_raw) {
    lanes p[MAX_BINS], q[MAX_BINS], at;
    lanes gp, gp_l, gp_r, gp_sum, gq, gq_l, gq_r, gq_sum, gr_l, gr_r;
    Piece f;
    const int K = s->bins;
    const float B = s->bound, two = 2 * B, mix = s->min_slope, scale = 1 - K * s->min_width;
    EACH at[i] = (clamp(x[i], -B, B) + B) / two;
    find(s, raw, stride, at, 0, p, q, &f);
    EACH {
        Side o = side(s, &f, i);
        int within = x[i] >= -B && x[i] <= B;
        float gz = within ? g_z[i] * two : 0, gl = within ? g_l[i] : 0; /* of the unit square's z */
        float xi = clamp((at[i] - o.x0) / o.w, 0, 1), eta = 1 - xi, both = xi * eta;
        float bend = o.a0 + o.a1 - 2, den = 1 / (1 + bend * both);
        float ratio = o.a0 * eta * eta + 2 * both + o.a1 * xi * xi;
        float value = (xi * xi + o.a0 * both) * den; /* (z - y0) / h */
        float g_xi = gz * o.h * ratio * den * den +
                     2 * gl * (((o.a1 - 1) * xi - (o.a0 - 1) * eta) / ratio -
                               bend * (eta - xi) * den);
        float g_a0 = gz * o.h * both * (1 - value) * den + gl * (eta * eta / ratio - 2 * both * den);
        float g_a1 = -gz * o.h * both * value * den + gl * (xi * xi / ratio - 2 * both * den);
        float g_x0 = -g_xi / o.w, g_y0 = gz;
        float sum_l = 1 / (o.s_l + o.s), sum_r = 1 / (o.s_r + o.s);
        float g_s = -g_a0 * o.a0 * (o.first ? 1 / o.s : sum_l) -
                    g_a1 * o.a1 * (o.last ? 1 / o.s : sum_r);
        float g_w = (-g_xi * xi - gl - g_s * o.s) / o.w;
        float g_h = gz * value + gl / o.h + g_s / o.w;
        g_x[i] = within ? g_xi / (o.w * two) : g_z[i];
        g_x0 -= o.last ? g_w : 0;
        g_y0 -= o.last ? g_h : 0;
        g_w = o.last ? 0 : g_w;
        g_h = o.last ? 0 : g_h;
        float c_l = 1 + fabsf(f.r_l[i]) / s->max_log_bend;
        float c_r = 1 + fabsf(f.r_r[i]) / s->max_log_bend;
        float t_l = o.first ? 0 : g_a0 * o.a0, t_r = o.last ? 0 : g_a1 * o.a1;
        gr_l[i] = t_l / (c_l * c_l);
        gr_r[i] = t_r / (c_r * c_r);
        /* of the neighbours' heights; of their widths it is -s times that */
        float gs_l = t_l * o.s * sum_l / (o.s_l * o.w_l);
        float gs_r = t_r * o.s * sum_r / (o.s_r * o.w_r);
        gp[i] = scale * (g_w + mix * g_h);
        gq[i] = scale * (1 - mix) * g_h;
        gp_l[i] = scale * (mix - o.s_l) * gs_l;
        gq_l[i] = scale * (1 - mix) * gs_l;
        gp_r[i] = scale * (mix - o.s_r) * gs_r;
        gq_r[i] = scale * (1 - mix) * gs_r;
        gp_sum[i] = scale * (g_x0 + mix * g_y0);
        gq_sum[i] = scale * (1 - mix) * g_y0;
    }
    lanes dot_p, dot_q;
    EACH {
        dot_p[i] = gp_sum[i] * f.p_sum[i] + gp[i] * f.p[i];
        dot_q[i] = gq_sum[i] * f.q_sum[i] + gq[i] * f.q[i];
        dot_p[i] += gp_l[i] * f.p_l[i] + gp_r[i] * f.p_r[i];
        dot_q[i] += gq_l[i] * f.q_l[i] + gq_r[i] * f.q_r[i];
    }
    for (int j = 0; j < K; j++) {
        float *g_width = g_raw + j * stride, *g_height = g_raw + (K + j) * stride;
        float *g_bend = g_raw + (2 * K + j) * stride;
        const float here = j;
        AHEAD(g_width, 1);
        AHEAD(g_height, 1);
        EACH {
            float k = f.k[i], a = 0, b = 0;
            a = here < k ? gp_sum[i] : a;
            b = here < k ? gq_sum[i] : b;
            a += here == k ? gp[i] : 0;
            b += here == k ? gq[i] : 0;
            a += here == k - 1 ? gp_l[i] : 0;
            b += here == k - 1 ? gq_l[i] : 0;
            a += here == k + 1 ? gp_r[i] : 0;
            b += here == k + 1 ? gq_r[i] : 0;
            g_width[i] = p[j][i] * (a - dot_p[i]);
            g_height[i] = q[j][i] * (b - dot_q[i]);
        }
        if (j < K - 1) {
            AHEAD(g_bend, 1);
            EACH {
                float g = here == f.k[i] - 1 ? gr_l[i] : 0;
                g_bend[i] = here == f.k[i] ? gr_r[i] : g;
            }
        }
    }
}

/* All n features, by so many threads. The ragged end goes through copies of full width. */
void rqs_forward(const Spline *s, long n, int threads, int inverse, const float *x,
                 const float *raw, float *out, float *slope) {
    const int P = 3 * s->bins - 1;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (long at = 0; at < n; at += FEATURES) {
        if (at + FEATURES <= n) {
            block_forward(s, x + at, raw + at, n, inverse, out + at, slope + at);
            continue;
        }
        float end_x[FEATURES] = {0}, end_out[FEATURES], end_slope[FEATURES];
        float end_raw[3 * MAX_BINS][FEATURES] = {{0}};
        const long left = (n - at) * sizeof(float);
        memcpy(end_x, x + at, left);
        for (int j = 0; j < P; j++) memcpy(end_raw[j], raw + j * n + at, left);
        block_forward(s, end_x, end_raw[0], FEATURES, inverse, end_out, end_slope);
        memcpy(out + at, end_out, left);
        memcpy(slope + at, end_slope, left);
    }
}

void rqs_backward(const Spline *s, long n, int threads, const float *x, const float *raw,
                  const float *g_z, const float *g_l, float *g_x, float *g_raw) {
    const int P = 3 * s->bins - 1;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (long at = 0; at < n; at += FEATURES) {
        if (at + FEATURES <= n) {
            block_backward(s, x + at, raw + at, n, g_z + at, g_l + at, g_x + at, g_raw + at);
            continue;
        }
        float end_x[FEATURES] = {0}, end_z[FEATURES] = {0}, end_l[FEATURES] = {0}, end_g[FEATURES];
        float end_raw[3 * MAX_BINS][FEATURES] = {{0}}, end_g_raw[3 * MAX_BINS][FEATURES];
        const long left = (n - at) * sizeof(float);
        memcpy(end_x, x + at, left);
        memcpy(end_z, g_z + at, left);
        memcpy(end_l, g_l + at, left);
        for (int j = 0; j < P; j++) memcpy(end_raw[j], raw + j * n + at, left);
        block_backward(s, end_x, end_raw[0], FEATURES, end_z, end_l, end_g, end_g_raw[0]);
        memcpy(g_x + at, end_g, left);
        for (int j = 0; j < P; j++) memcpy(g_raw + j * n + at, end_g_raw[j], left);
    }
}
