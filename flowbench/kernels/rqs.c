/* Rational-quadratic splines and their gradients, fused: float32, one pass over memory. The published
   spline of rqs.py and, where `stable`, that of srqs.py; names are those of the two.

   Everything is computed for FEATURES features at a time, in arrays that stay in the first cache and
   that the compiler turns into vectors. Raw parameters (K widths, K heights, K - 1 slopes) come with
   the features innermost in memory, or the parameters, which are turned a block at a time. The
   backward pass recomputes the forward pass's values, which costs less than writing them to memory
   and reading them back. */

#include "exp.h"
#include "fetch.h"

#define FEATURES 64
#define EACH for (int i = 0; i < FEATURES; i++)

#define SPECIAL static inline __attribute__((always_inline)) /* compiled for each kind of spline */
#define AHEAD(plane, write) FETCH((plane) + FEATURES, sizeof(lanes), write) /* planes lie far apart */

typedef float lanes[FEATURES];

typedef struct {
    int bins, stable;
    float bound, min_side, min_slope, max_log_bend;
} Spline;

/* What `pick` selects: of the lanes' pieces and, if stable, of the neighbours at the left (l) and
   right (r). */
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
SPECIAL void find(const Spline *s, const int stable, const float *raw, long stride, const lanes at,
                  int axis, lanes *p, lanes *q, Piece *f) {
    const int K = s->bins;
    const float scale = 1 - K * s->min_side, mix = stable ? s->min_slope : 0;
    const float *slopes = raw + 2 * K * stride;
    softmax(raw, stride, K, p);
    softmax(raw + K * stride, stride, K, q);
    const int second = K > 1;
    EACH {
        f->k[i] = 0;
        f->p_sum[i] = f->q_sum[i] = 0;
        f->p[i] = p[0][i];
        f->q[i] = q[0][i];
        f->r_l[i] = f->r_r[i] = second ? slopes[i] : 0;
        if (stable) {
            f->p_l[i] = p[0][i];
            f->q_l[i] = q[0][i];
            f->p_r[i] = p[second][i];
            f->q_r[i] = q[second][i];
        }
    }
    lanes p_sum = {0}, q_sum = {0};
    for (int j = 1; j < K; j++) {
        const int next = j + 1 < K ? j + 1 : j;
        const float *left = slopes + (j - 1) * stride;
        const float *right = slopes + (j < K - 1 ? j : K - 2) * stride;
        const float floors = j * s->min_side;
        AHEAD(left, 0);
        EACH {
            p_sum[i] += p[j - 1][i];
            q_sum[i] += q[j - 1][i];
            float along = axis ? q_sum[i] + mix * (p_sum[i] - q_sum[i]) : p_sum[i];
            int past = at[i] >= along * scale + floors;
            f->k[i] = past ? j : f->k[i];
            f->p_sum[i] = past ? p_sum[i] : f->p_sum[i];
            f->q_sum[i] = past ? q_sum[i] : f->q_sum[i];
            f->p[i] = past ? p[j][i] : f->p[i];
            f->q[i] = past ? q[j][i] : f->q[i];
            f->r_l[i] = past ? left[i] : f->r_l[i];
            f->r_r[i] = past ? right[i] : f->r_r[i];
            if (stable) {
                f->p_l[i] = past ? p[j - 1][i] : f->p_l[i];
                f->p_r[i] = past ? p[next][i] : f->p_r[i];
                f->q_l[i] = past ? q[j - 1][i] : f->q_l[i];
                f->q_r[i] = past ? q[next][i] : f->q_r[i];
            }
        }
    }
}

/* The published slope at a knot, min_slope + softplus(r + c) with c such that r = 0 gives exactly 1.
   With e^-c = 1 / sigma - 1 it is 1 + log(1 + sigma (e^r - 1)); its gradient goes to g. */
static inline float knot_slope(float r, float sigma, float *g) {
    const int up = r > 0;
    float e = exp_below(up ? -r : r), more = (up ? 1 - sigma : sigma) * (e - 1);
    *g = sigma * (up ? 1 : e) / (1 + more);
    return 1 + (up ? r : 0) + log1p_between(more);
}

/* A piece on the unit square: corner, sides, chord's slope s, slopes at the ends over s; and what
   they were made of: of the neighbours if stable, else the gradients of the knots' slopes. */
typedef struct {
    float x0, y0, w, h, s, a0, a1;
    float w_l, s_l, w_r, s_r, g_l, g_r;
    int first, last;
} Side;

SPECIAL Side side(const Spline *s, const int stable, float sigma, const Piece *f, int i) {
    const float m = s->min_side, mix = stable ? s->min_slope : 0, scale = 1 - s->bins * m;
    float a0, a1;
    Side o;
    o.first = f->k[i] == 0;
    o.last = f->k[i] == s->bins - 1;
    o.x0 = f->k[i] * m + scale * f->p_sum[i];
    o.y0 = f->k[i] * m + scale * (f->q_sum[i] + mix * (f->p_sum[i] - f->q_sum[i]));
    o.w = o.last ? 1 - o.x0 : m + scale * f->p[i];
    o.h = o.last ? 1 - o.y0 : m + scale * (f->q[i] + mix * (f->p[i] - f->q[i]));
    o.s = o.h / o.w;
    if (stable) {
        o.w_l = m + scale * f->p_l[i];
        o.w_r = m + scale * f->p_r[i];
        o.s_l = (m + scale * (f->q_l[i] + mix * (f->p_l[i] - f->q_l[i]))) / o.w_l;
        o.s_r = (m + scale * (f->q_r[i] + mix * (f->p_r[i] - f->q_r[i]))) / o.w_r;
        float c_l = f->r_l[i] / (1 + fabsf(f->r_l[i]) / s->max_log_bend);
        float c_r = f->r_r[i] / (1 + fabsf(f->r_r[i]) / s->max_log_bend);
        a0 = 2 * o.s_l / (o.s_l + o.s) * exp_(c_l);
        a1 = 2 * o.s_r / (o.s_r + o.s) * exp_(c_r);
    } else {
        a0 = knot_slope(f->r_l[i], sigma, &o.g_l) / o.s;
        a1 = knot_slope(f->r_r[i], sigma, &o.g_r) / o.s;
    }
    o.a0 = o.first ? 1 / o.s : a0;
    o.a1 = o.last ? 1 / o.s : a1;
    return o;
}

static inline float clamp(float x, float low, float high) {
    return x < low ? low : x > high ? high : x;
}

SPECIAL void block_forward(const Spline *s, const int stable, const float *x, const float *raw,
                           long stride, int inverse, float *out, float *slope) {
    lanes p[MAX_BINS], q[MAX_BINS], at;
    Piece f;
    const float B = s->bound, two = 2 * B, sigma = 1 - exp_(s->min_slope - 1);
    EACH at[i] = (clamp(x[i], -B, B) + B) / two;
    find(s, stable, raw, stride, at, inverse, p, q, &f);
    EACH {
        Side o = side(s, stable, sigma, &f, i);
        float x0 = two * o.x0 - B, y0 = two * o.y0 - B, w = two * o.w, h = two * o.h;
        float v = clamp(x[i], -B, B), xi, eta, result;
        if (inverse) {
            float rho = clamp((v - y0) / h, 0, 1);
            float b = o.a0 * (1 - rho) + rho * (2 - o.a1);
            float above = (b - 2) * (b - 2) + 4 * (1 - rho) * (b - 1);
            float root = b > 1 ? above : b * b + 4 * rho * (1 - b);
            root = sqrtf(root < 1e-30f ? 1e-30f : root);
            xi = clamp((b < 0 ? root - b : 2 * rho) / (b < 0 ? 2 * (1 - b) : b + root), 0, 1);
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

SPECIAL void block_backward(const Spline *s, const int stable, const float *x, const float *raw,
                            long stride, const float *g_z, const float *g_l, float *g_x,
                            float *g_raw) {
    lanes p[MAX_BINS], q[MAX_BINS], at;
    lanes gp, gp_l, gp_r, gp_sum, gq, gq_l, gq_r, gq_sum, gr_l, gr_r;
    Piece f;
    const int K = s->bins;
    const float B = s->bound, two = 2 * B, sigma = 1 - exp_(s->min_slope - 1);
    const float mix = stable ? s->min_slope : 0, scale = 1 - K * s->min_side;
    EACH at[i] = (clamp(x[i], -B, B) + B) / two;
    find(s, stable, raw, stride, at, 0, p, q, &f);
    EACH {
        Side o = side(s, stable, sigma, &f, i);
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
        /* a0 and a1 have 1 / s as a factor; if stable and not at an end, 1 / (s_l + s) instead */
        float sum_l = 1 / o.s, sum_r = 1 / o.s;
        if (stable) {
            sum_l = o.first ? sum_l : 1 / (o.s_l + o.s);
            sum_r = o.last ? sum_r : 1 / (o.s_r + o.s);
        }
        float g_s = -g_a0 * o.a0 * sum_l - g_a1 * o.a1 * sum_r;
        float g_w = (-g_xi * xi - gl - g_s * o.s) / o.w;
        float g_h = gz * value + gl / o.h + g_s / o.w;
        g_x[i] = within ? g_xi / (o.w * two) : g_z[i];
        g_x0 -= o.last ? g_w : 0;
        g_y0 -= o.last ? g_h : 0;
        g_w = o.last ? 0 : g_w;
        g_h = o.last ? 0 : g_h;
        if (stable) {
            float c_l = 1 + fabsf(f.r_l[i]) / s->max_log_bend;
            float c_r = 1 + fabsf(f.r_r[i]) / s->max_log_bend;
            float t_l = o.first ? 0 : g_a0 * o.a0, t_r = o.last ? 0 : g_a1 * o.a1;
            gr_l[i] = t_l / (c_l * c_l);
            gr_r[i] = t_r / (c_r * c_r);
            /* of the neighbours' heights; of their widths it is -s times that */
            float gs_l = t_l * o.s * sum_l / (o.s_l * o.w_l);
            float gs_r = t_r * o.s * sum_r / (o.s_r * o.w_r);
            gp_l[i] = scale * (mix - o.s_l) * gs_l;
            gq_l[i] = scale * (1 - mix) * gs_l;
            gp_r[i] = scale * (mix - o.s_r) * gs_r;
            gq_r[i] = scale * (1 - mix) * gs_r;
        } else {
            gr_l[i] = o.first ? 0 : g_a0 * o.g_l / o.s;
            gr_r[i] = o.last ? 0 : g_a1 * o.g_r / o.s;
        }
        gp[i] = scale * (g_w + mix * g_h);
        gq[i] = scale * (1 - mix) * g_h;
        gp_sum[i] = scale * (g_x0 + mix * g_y0);
        gq_sum[i] = scale * (1 - mix) * g_y0;
    }
    lanes dot_p, dot_q;
    EACH {
        dot_p[i] = gp_sum[i] * f.p_sum[i] + gp[i] * f.p[i];
        dot_q[i] = gq_sum[i] * f.q_sum[i] + gq[i] * f.q[i];
        if (stable) {
            dot_p[i] += gp_l[i] * f.p_l[i] + gp_r[i] * f.p_r[i];
            dot_q[i] += gq_l[i] * f.q_l[i] + gq_r[i] * f.q_r[i];
        }
    }
    for (int j = 0; j < K; j++) {
        float *g_width = g_raw + j * stride, *g_height = g_raw + (K + j) * stride;
        float *g_slope = g_raw + (2 * K + j) * stride;
        const float here = j;
        AHEAD(g_width, 1);
        AHEAD(g_height, 1);
        EACH {
            float k = f.k[i], a = 0, b = 0;
            a = here < k ? gp_sum[i] : a;
            b = here < k ? gq_sum[i] : b;
            a += here == k ? gp[i] : 0;
            b += here == k ? gq[i] : 0;
            if (stable) {
                a += here == k - 1 ? gp_l[i] : 0;
                b += here == k - 1 ? gq_l[i] : 0;
                a += here == k + 1 ? gp_r[i] : 0;
                b += here == k + 1 ? gq_r[i] : 0;
            }
            g_width[i] = p[j][i] * (a - dot_p[i]);
            g_height[i] = q[j][i] * (b - dot_q[i]);
        }
        if (j < K - 1) {
            AHEAD(g_slope, 1);
            EACH {
                float g = here == f.k[i] - 1 ? gr_l[i] : 0;
                g_slope[i] = here == f.k[i] ? gr_r[i] : g;
            }
        }
    }
}

SPECIAL void turn(const float *from, float *to, long rows, long columns, long from_row, long to_column) {
    for (long r = 0; r < rows; r++)
        for (long c = 0; c < columns; c++) to[c * to_column + r] = from[r * from_row + c];
}

/* A full block's planes, where they lie if features are innermost; else, and at the ragged end, in a
   tile of full width. */
typedef float Tile[3 * MAX_BINS][FEATURES];

static const float *planes(const float *raw, long n, int P, int rows, long at, long count, Tile tile) {
    if (!rows && count == FEATURES) return raw + at;
    if (count < FEATURES) memset(tile, 0, P * sizeof(lanes));
    if (rows)
        turn(raw + at * P, tile[0], count, P, P, FEATURES);
    else
        for (int j = 0; j < P; j++) memcpy(tile[j], raw + j * n + at, count * sizeof(float));
    return tile[0];
}

/* All n features, by so many threads; raw [n][3K - 1] if rows, else [3K - 1][n]. */
void rqs_forward(const Spline *s, long n, int threads, int rows, int inverse, const float *x,
                 const float *raw, float *out, float *slope) {
    const int P = 3 * s->bins - 1;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (long at = 0; at < n; at += FEATURES) {
        const long count = at + FEATURES <= n ? FEATURES : n - at, bytes = count * sizeof(float);
        Tile tile;
        lanes in = {0}, o, o_slope;
        const float *own = planes(raw, n, P, rows, at, count, tile);
        const long stride = own == raw + at ? n : FEATURES;
        memcpy(in, x + at, bytes);
        if (s->stable)
            block_forward(s, 1, in, own, stride, inverse, o, o_slope);
        else
            block_forward(s, 0, in, own, stride, inverse, o, o_slope);
        memcpy(out + at, o, bytes);
        memcpy(slope + at, o_slope, bytes);
    }
}

void rqs_backward(const Spline *s, long n, int threads, int rows, const float *x, const float *raw,
                  const float *g_z, const float *g_l, float *g_x, float *g_raw) {
    const int P = 3 * s->bins - 1;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (long at = 0; at < n; at += FEATURES) {
        const long count = at + FEATURES <= n ? FEATURES : n - at, bytes = count * sizeof(float);
        Tile tile, g_tile;
        lanes in = {0}, in_z = {0}, in_l = {0}, g;
        const float *own = planes(raw, n, P, rows, at, count, tile);
        const int direct = own == raw + at;
        const long stride = direct ? n : FEATURES;
        float *g_own = direct ? g_raw + at : g_tile[0];
        memcpy(in, x + at, bytes);
        memcpy(in_z, g_z + at, bytes);
        memcpy(in_l, g_l + at, bytes);
        if (s->stable)
            block_backward(s, 1, in, own, stride, in_z, in_l, g, g_own);
        else
            block_backward(s, 0, in, own, stride, in_z, in_l, g, g_own);
        memcpy(g_x + at, g, bytes);
        if (rows)
            turn(g_own, g_raw + at * P, P, count, FEATURES, P);
        else if (!direct)
            for (int j = 0; j < P; j++) memcpy(g_raw + j * n + at, g_tile[j], bytes);
    }
}
