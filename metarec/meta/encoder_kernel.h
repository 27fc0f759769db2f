/* One precision of encoder_kernel.c, which includes this file for each: `real` is its number, NAME(x) its names.

   Letters: M tokens, D width, F feed-forward width, H heads. Every row of numbers is padded with zeros to a multiple
   of PANEL. A weight matrix (in, out) lies in panels of PANEL columns: w[out / PANEL][in + 1][PANEL]; the one row more
   keeps the panels out of each other's cache sets. */

#define LANES (BYTES / (int)sizeof(real))
#define PANEL (2 * LANES)
#define PADDED(n) (((n) + PANEL - 1) / PANEL * PANEL)

#define V NAME(V)
#define AT(p) (*(V *)(p))
#define GET(p) (*(const V *)(p))

/* ---- products ---- */

/* c[R][N * LANES] = init + sum over k of a[r * rs + k * ks] * b[k * ldb + ...]; no init is zero. */
static ALWAYS void NAME(tile)(const int R, const int N, long K, const real *a, long rs, long ks, const real *b,
                              long ldb, const real *init, long ldi, real *c, long ldc) {
    V acc[6][2];
    UNROLL for (int r = 0; r < R; r++)
        UNROLL for (int v = 0; v < N; v++) acc[r][v] = init ? GET(init + r * ldi + v * LANES) : (V){0};
    for (long k = 0; k < K; k++, b += ldb, a += ks) {
        V row[2];
        UNROLL for (int v = 0; v < N; v++) row[v] = GET(b + v * LANES);
        UNROLL for (int r = 0; r < R; r++) {
            real s = a[r * rs];
            UNROLL for (int v = 0; v < N; v++) acc[r][v] += s * row[v];
        }
    }
    UNROLL for (int r = 0; r < R; r++)
        UNROLL for (int v = 0; v < N; v++) AT(c + r * ldc + v * LANES) = acc[r][v];
}

/* c[M][PANEL] = init + a b, in tiles of about equal height. */
static void NAME(panel)(long M, long K, const real *a, long rs, long ks, const real *b, long ldb, const real *init,
                        long ldi, real *c, long ldc) {
    while (M > 0) {
        long tiles = (M + 5) / 6, R = (M + tiles - 1) / tiles;
#define CASE(n) \
    case n: NAME(tile)(n, 2, K, a, rs, ks, b, ldb, init, ldi, c, ldc); break;
        switch (R) { CASE(1) CASE(2) CASE(3) CASE(4) CASE(5) CASE(6) }
#undef CASE
        a += R * rs, c += R * ldc, M -= R;
        if (init) init += R * ldi;
    }
}

/* c[M][N] = a b, with N a multiple of PANEL. */
static void NAME(product)(long M, long N, long K, const real *a, long rs, long ks, const real *b, long ldb, real *c,
                          long ldc) {
    for (long j = 0; j < N; j += PANEL) NAME(panel)(M, K, a, rs, ks, b + j, ldb, NULL, 0, c + j, ldc);
}

/* dx[R][4] += sum over o of g[r][o] w[i][o], four rows i of the matrix. */
static ALWAYS void NAME(dots)(const int R, long panels, const real *g, long ldg, const real *w, long stride, real *dx,
                              long ldx) {
    V acc[3][4] = {0};
    for (long p = 0; p < panels; p++, w += stride, g += PANEL)
        UNROLL for (int v = 0; v < 2; v++) {
            V grad[3];
            UNROLL for (int r = 0; r < R; r++) grad[r] = GET(g + r * ldg + v * LANES);
            UNROLL for (int q = 0; q < 4; q++) {
                V weight = GET(w + q * PANEL + v * LANES);
                UNROLL for (int r = 0; r < R; r++) acc[r][q] += grad[r] * weight;
            }
        }
    UNROLL for (int r = 0; r < R; r++) NAME(add_sums)(acc[r][0], acc[r][1], acc[r][2], acc[r][3], dx + r * ldx);
}

/* y = x w + bias. in and out are padded. */
static void NAME(linear)(long M, long in, long out, const real *w, const real *x, real *y) {
    const real *bias = w + out * (in + 1);
    for (long j = 0; j < out; j += PANEL)
        NAME(panel)(M, in, x, in, 1, w + j * (in + 1), PANEL, bias + j, 0, y + j, out);
}

/* Where the gradients of weights go: to[j] = from[j] + rate * gradient; none if to is NULL. */
typedef struct {
    const real *from;
    real *to;
    real rate;
    int matrix_only; /* and not the bias */
} NAME(Sink);

/* dx += g w^T; sink += x^T g. scratch holds M * in numbers. */
static void NAME(linear_back)(long M, long in, long out, const real *w, NAME(Sink) sink, const real *x, const real *g,
                              real *dx, real *scratch) {
    long stride = (in + 1) * PANEL, panels = out / PANEL;
    if (sink.to)
        for (long j = 0; j < M * in; j += LANES) AT(scratch + j) = sink.rate * GET(x + j);
    for (long i = 0, few; i < in; i += few) { /* a few rows of the matrix at a time: they stay at hand for both */
        few = in - i < BLOCK ? in - i : BLOCK;
        for (long r = i; r < i + few; r += 4)
            for (long t = 0; t < M;) {
                long tiles = (M - t + 2) / 3, R = (M - t + tiles - 1) / tiles;
#define CASE(n) \
    case n: NAME(dots)(n, panels, g + t * out, out, w + r * PANEL, stride, dx + t * in + r, in); break;
                switch (R) { CASE(1) CASE(2) CASE(3) }
#undef CASE
                t += R;
            }
        if (sink.to)
            for (long p = 0; p < panels; p++) {
                long at = p * stride + i * PANEL;
                NAME(panel)(few, M, scratch + i, 1, in, g + p * PANEL, out, sink.from + at, PANEL, sink.to + at, PANEL);
            }
    }
    if (sink.to && !sink.matrix_only)
        for (long j = 0; j < out; j += LANES) {
            V sum = {0};
            for (long t = 0; t < M; t++) sum += GET(g + t * out + j);
            long at = panels * stride + j;
            AT(sink.to + at) = GET(sink.from + at) + sink.rate * sum;
        }
}

/* ---- elementwise ---- */

static ALWAYS real NAME(sum)(V s) {
    real total = 0;
    UNROLL for (int j = 0; j < LANES; j++) total += s[j];
    return total;
}

/* x and gelu(x) = x Phi(x) in place, and its derivative Phi(x) + x phi(x); if wanted, the second, (2 - x^2) phi(x). */
static void NAME(gelu)(long n, real *x, real *derivative, real *curve) {
    for (long j = 0; j < n; j += LANES) {
        V cdf, pdf, value = GET(x + j);
        NAME(normal)(value, &cdf, &pdf);
        AT(x + j) = value * cdf;
        AT(derivative + j) = cdf + value * pdf;
        if (curve) AT(curve + j) = (2 - value * value) * pdf;
    }
}

/* Layer norm of M rows of z, which become the normalised rows; y = z w[0..] + w[D..]. */
static void NAME(norm)(long M, long D, double eps, const real *w, real *z, real *inverse, real *y) {
    long wide = PADDED(D);
    for (long t = 0; t < M; t++, z += wide, y += wide) {
        V sum = {0}, square = {0};
        for (long j = 0; j < wide; j += LANES) sum += GET(z + j);
        real mean = NAME(sum)(sum) / D;
        for (long j = 0; j < D; j++) z[j] -= mean;
        for (long j = 0; j < wide; j += LANES) square += GET(z + j) * GET(z + j);
        real scale = 1 / NAME(root)(NAME(sum)(square) / D + (real)eps);
        for (long j = 0; j < wide; j += LANES) {
            AT(z + j) = scale * GET(z + j);
            AT(y + j) = GET(z + j) * GET(w + j) + GET(w + wide + j);
        }
        inverse[t] = scale;
    }
}

/* g becomes the gradient of what was normalised; z are the normalised rows. */
static void NAME(norm_back)(long M, long D, const real *w, NAME(Sink) sink, const real *z, const real *inverse,
                            real *g) {
    long wide = PADDED(D);
    V dw[MAX_WIDE / LANES], db[MAX_WIDE / LANES];
    memset(dw, 0, wide * sizeof(real)), memset(db, 0, wide * sizeof(real));
    for (long t = 0; t < M; t++, z += wide, g += wide) {
        V first = {0}, second = {0};
        for (long j = 0; j < wide; j += LANES) {
            V grad = GET(g + j), unit = GET(z + j);
            dw[j / LANES] += grad * unit, db[j / LANES] += grad;
            grad *= GET(w + j);
            first += grad, second += grad * unit;
        }
        real a = NAME(sum)(first) / D, b = NAME(sum)(second) / D;
        for (long j = 0; j < wide; j += LANES)
            AT(g + j) = inverse[t] * (GET(g + j) * GET(w + j) - a - b * GET(z + j));
        for (long j = D; j < wide; j++) g[j] = 0;
    }
    if (sink.to)
        for (long j = 0; j < wide; j += LANES) {
            AT(sink.to + j) = GET(sink.from + j) + sink.rate * dw[j / LANES];
            AT(sink.to + wide + j) = GET(sink.from + wide + j) + sink.rate * db[j / LANES];
        }
}

/* Multiplies n numbers by 0 or 1 / (1 - p), drawn from a key and their place; the same again for the same key. */
static void NAME(dropout)(long n, double p, uint32_t key, real *x) {
    if (p <= 0) return;
    uint32_t bar = p < 1 ? (uint32_t)(p * 4294967296.0) : UINT32_MAX;
    real scale = p < 1 ? 1 / (1 - p) : 0;
    for (long j = 0; j < n; j += LANES) {
        V factor = NAME(drawn)((uint32_t)j, key, bar, scale);
        AT(x + j) = GET(x + j) * factor;
    }
}

/* ---- one user ---- */

/* Where a user's weights are, in numbers from the start of its row; see `layout`. */
static Layout NAME(layout)(const Job *job) {
    long D = PADDED(job->dim), F = PADDED(job->feedforward), T = PADDED(3 * job->dim);
    Layout o = {.D = D, .F = F, .T = T, .N = PADDED(job->length)};
    o.norm = job->positions * D;
    o.block = o.norm + 2 * D;
    o.out = T * (D + 1) + T, o.norm1 = o.out + D * (D + 1) + D;
    o.wide = o.norm1 + 2 * D, o.narrow = o.wide + F * (D + 1) + F, o.norm2 = o.narrow + D * (F + 1) + D;
    o.block_size = o.norm2 + 2 * D;
    o.row = o.block + job->layers * o.block_size;
    long L = job->length;
    o.s_unit = PADDED(L), o.s_block = o.s_unit + L * D;
    o.s_three = L * D, o.s_weights = o.s_three + L * T, o.s_heads = o.s_weights + job->heads * L * o.N;
    o.s_unit1 = o.s_heads + L * D, o.s_mid = o.s_unit1 + L * D, o.s_gelu = o.s_mid + L * D;
    o.s_slope = o.s_gelu + L * F, o.s_unit2 = o.s_slope + L * F, o.s_inverse = o.s_unit2 + L * D;
    o.s_size = o.s_inverse + PADDED(2 * L);
    o.saved = o.s_block + job->layers * o.s_size;
    o.depth = PADDED(job->dim / job->heads);
    return o;
}

/* What a user's pass needs at hand; every pointer but the last lines' is the user's own. */
typedef struct {
    const Job *job;
    Layout o;
    long user, step;
    long n, m, N;    /* tokens; rows of the last block; tokens padded */
    long *rows;      /* (m) their tokens, and after them (length) the row of each token or -1 */
    const real *w;
    NAME(Sink) sink;
    real *saved;
    real *curve; /* where the second derivatives of gelu go, laid out as `saved`, if they are wanted */
    const real *bias;
    const uint8_t *keep;
    const int64_t *at;
    real *one, *two, *three, *hidden, *scratch; /* (L, D), (L, D), (L, T), (L, F), (L, max(T, F)) */
    real *q, *k, *v, *flip, *near;              /* of one head: (L, depth) three times, (depth, N), (L, N) */
    real *back;                                 /* (L, depth) */
    real *state, *dstate, *score;               /* (S, D) twice, (compared) */
} NAME(User);

/* A user's part of the numbers of all, if there are any. */
static ALWAYS real *NAME(of)(const void *all, long user, long size) { return all ? (real *)all + user * size : NULL; }

static uint32_t NAME(key)(const NAME(User) * u, long site) {
    uint64_t seed = u->job->seed;
    long place = (u->step * u->job->users + u->user) * (3 * u->job->layers + 1) + site;
    return mixed((uint32_t)seed ^ mixed((uint32_t)(seed >> 32) ^ mixed((uint32_t)place)));
}

/* Copies rows of `from` with another stride, and pads them with zeros. */
static void NAME(gather)(long M, const long *rows, long d, long wide, const real *from, long ld, real *to) {
    for (long t = 0; t < M; t++, to += wide) {
        const real *row = from + (rows ? rows[t] : t) * ld;
        for (long j = 0; j < d; j++) to[j] = row[j];
        for (long j = d; j < wide; j++) to[j] = 0;
    }
}

/* to[depth][N] from the rows (n, d) of `from`. */
static void NAME(transpose)(long n, long d, long N, const real *from, long ld, real *to) {
    for (long j = 0; j < d; j++, to += N) {
        for (long t = 0; t < n; t++) to[t] = from[t * ld + j];
        for (long t = n; t < N; t++) to[t] = 0;
    }
}

/* A row of logits becomes attention weights; the row of a token that sees nothing is uniform. */
static void NAME(softmax)(const NAME(User) * u, long token, real *row) {
    long n = u->n, L = u->job->length, N = u->N;
    const real *bias = u->bias ? u->bias + token * L : NULL;
    real scale = 1 / NAME(root)((real)u->job->dim / u->job->heads), top = -1e9;
    for (long s = 0; s < N; s++) {
        int seen = s <= token && u->keep[s];
        row[s] = seen ? row[s] * scale + (bias ? bias[s] : 0) : -1e9;
        top = row[s] > top ? row[s] : top;
    }
    V sum = {0};
    for (long s = n; s < N; s++) row[s] = -INFINITY;
    for (long s = 0; s < N; s += LANES) {
        AT(row + s) = NAME(exp)(GET(row + s) - top);
        sum += GET(row + s);
    }
    real part = 1 / NAME(sum)(sum);
    for (long s = 0; s < N; s += LANES) AT(row + s) = part * GET(row + s);
}

static int NAME(blind)(const NAME(User) * u, long token) {
    for (long s = 0; s <= token; s++)
        if (u->keep[s]) return 0;
    return 1;
}

/* Merged heads (m, D) of the tokens asked for. */
static void NAME(attend)(const NAME(User) * u, long layer, long m, const long *rows, real *kept, real *out) {
    const Job *job = u->job;
    long D = job->dim, d = D / job->heads, T = u->o.T, N = u->N, depth = u->o.depth;
    for (long j = 0; j < m; j++)
        for (long i = D; i < u->o.D; i++) out[j * u->o.D + i] = 0;
    for (long h = 0; h < job->heads; h++) {
        const real *three = kept + u->o.s_three + h * d;
        real *weights = kept + u->o.s_weights + h * job->length * N;
        NAME(gather)(m, rows, d, depth, three, T, u->q);
        NAME(gather)(u->n, NULL, d, depth, three + 2 * D, T, u->v);
        NAME(transpose)(u->n, d, N, three + D, T, u->flip);
        NAME(product)(m, N, d, u->q, depth, 1, u->flip, N, weights, N);
        for (long t = 0; t < m; t++) NAME(softmax)(u, rows ? rows[t] : t, weights + t * N);
        const real *used = weights;
        if (job->drop[1 + layer] > 0) {
            memcpy(u->near, weights, m * N * sizeof(real));
            NAME(dropout)(m * N, job->drop[1 + layer], NAME(key)(u, 3 * layer + 1) + h, u->near);
            used = u->near;
        }
        NAME(product)(m, depth, u->n, used, N, 1, u->v, depth, u->back, depth);
        for (long t = 0; t < m; t++) memcpy(out + t * u->o.D + h * d, u->back + t * depth, d * sizeof(real));
    }
}

static void NAME(attend_back)(const NAME(User) * u, long layer, long m, const long *rows, const real *kept,
                              const real *g, real *dthree, real *dbias) {
    const Job *job = u->job;
    long D = job->dim, d = D / job->heads, T = u->o.T, N = u->N, depth = u->o.depth, n = u->n;
    double p = job->drop[1 + layer];
    real scale = 1 / NAME(root)((real)d);
    memset(dthree, 0, n * T * sizeof(real));
    for (long h = 0; h < job->heads; h++) {
        const real *three = kept + u->o.s_three + h * d;
        const real *weights = kept + u->o.s_weights + h * job->length * N;
        uint32_t key = NAME(key)(u, 3 * layer + 1) + h;
        NAME(gather)(m, NULL, d, depth, g + h * d, u->o.D, u->q);
        NAME(transpose)(n, d, N, three + 2 * D, T, u->flip);
        memcpy(u->near, weights, m * N * sizeof(real));
        NAME(dropout)(m * N, p, key, u->near);
        NAME(product)(n, depth, m, u->near, 1, N, u->q, depth, u->back, depth); /* of the values */
        for (long t = 0; t < n; t++) memcpy(dthree + t * T + 2 * D + h * d, u->back + t * depth, d * sizeof(real));
        NAME(product)(m, N, d, u->q, depth, 1, u->flip, N, u->near, N); /* of the weights */
        NAME(dropout)(m * N, p, key, u->near);
        for (long t = 0; t < m; t++) { /* of the logits */
            long token = rows ? rows[t] : t;
            real *row = u->near + t * N;
            const real *weight = weights + t * N;
            V sum = {0};
            for (long s = 0; s < N; s += LANES) sum += GET(row + s) * GET(weight + s);
            real mean = NAME(sum)(sum), open = !NAME(blind)(u, token);
            for (long s = 0; s < N; s += LANES) AT(row + s) = open * GET(weight + s) * (GET(row + s) - mean);
            if (dbias)
                for (long s = 0; s < n; s++) dbias[token * job->length + s] += row[s];
            for (long s = 0; s < N; s += LANES) AT(row + s) = scale * GET(row + s);
        }
        NAME(gather)(n, NULL, d, depth, three + D, T, u->k);
        NAME(product)(m, depth, n, u->near, N, 1, u->k, depth, u->back, depth); /* of the queries */
        for (long t = 0; t < m; t++)
            memcpy(dthree + (rows ? rows[t] : t) * T + h * d, u->back + t * depth, d * sizeof(real));
        NAME(gather)(m, rows, d, depth, three, T, u->q);
        NAME(product)(n, depth, m, u->near, 1, N, u->q, depth, u->back, depth); /* of the keys */
        for (long t = 0; t < n; t++) memcpy(dthree + t * T + D + h * d, u->back + t * depth, d * sizeof(real));
    }
}

/* y = x + dropout(y), over M rows of x. */
static void NAME(residual)(const NAME(User) * u, long layer, long site, long M, const long *rows, const real *x,
                           real *y) {
    long D = u->o.D;
    NAME(dropout)(M * D, u->job->drop[1 + layer], NAME(key)(u, 3 * layer + 1 + site), y);
    for (long t = 0; t < M; t++) {
        const real *row = x + (rows ? rows[t] : t) * D;
        for (long j = 0; j < D; j += LANES) AT(y + t * D + j) += GET(row + j);
    }
}

/* The rows of a block's output: all tokens, or in the last block those asked for. */
static long NAME(height)(const NAME(User) * u, long layer, const long **rows) {
    int few = layer + 1 == u->job->layers && u->m < u->n;
    *rows = few ? u->rows : NULL;
    return few ? u->m : u->n;
}

static void NAME(forward_user)(NAME(User) * u, real *state) {
    const Job *job = u->job;
    const int64_t *at = u->at;
    const real *x = (const real *)job->x + u->user * job->length * job->dim;
    const Layout *o = &u->o;
    long D = o->D, n = u->n, width = job->dim;
    real *unit = u->saved + o->s_unit, *next = u->saved + o->s_block;
    for (long t = 0; t < n; t++) {
        for (long j = 0; j < width; j++) unit[t * D + j] = x[t * width + j] + u->w[t * D + j];
        for (long j = width; j < D; j++) unit[t * D + j] = 0;
    }
    NAME(norm)(n, width, job->eps[0], u->w + o->norm, unit, u->saved, next);
    NAME(dropout)(n * D, job->drop[0], NAME(key)(u, 0), next);
    for (long layer = 0; layer < job->layers; layer++) {
        real *kept = next;
        const real *w = u->w + o->block + layer * o->block_size;
        const long *rows;
        long m = NAME(height)(u, layer, &rows);
        real *inverse = kept + o->s_inverse;
        NAME(linear)(n, D, o->T, w, kept, kept + o->s_three);
        NAME(attend)(u, layer, m, rows, kept, kept + o->s_heads);
        NAME(linear)(m, D, D, w + o->out, kept + o->s_heads, kept + o->s_unit1);
        NAME(residual)(u, layer, 1, m, rows, kept, kept + o->s_unit1);
        NAME(norm)(m, width, job->eps[1 + 2 * layer], w + o->norm1, kept + o->s_unit1, inverse, kept + o->s_mid);
        NAME(linear)(m, D, o->F, w + o->wide, kept + o->s_mid, kept + o->s_gelu);
        real *curve = u->curve ? u->curve + (kept - u->saved) + o->s_slope : NULL;
        NAME(gelu)(m * o->F, kept + o->s_gelu, kept + o->s_slope, curve);
        NAME(linear)(m, o->F, D, w + o->narrow, kept + o->s_gelu, kept + o->s_unit2);
        NAME(residual)(u, layer, 2, m, NULL, kept + o->s_mid, kept + o->s_unit2);
        next = layer + 1 < job->layers ? kept + o->s_size : u->one;
        NAME(norm)(m, width, job->eps[2 + 2 * layer], w + o->norm2, kept + o->s_unit2, inverse + job->length, next);
    }
    if (u->m == n) {
        for (long s = 0; s < job->asked; s++) memcpy(state + s * width, next + at[s] * D, width * sizeof(real));
        return;
    }
    for (long s = 0; s < job->asked; s++)
        memcpy(state + s * width, next + u->rows[u->m + at[s]] * D, width * sizeof(real));
}

static NAME(Sink) NAME(moved)(NAME(Sink) sink, long by) {
    if (sink.to) sink.from += by, sink.to += by;
    return sink;
}

/* One block back: g (m, D) of its output becomes that of its input (n, D), in `in`. */
static void NAME(back_block)(NAME(User) * u, long layer, real *g, real *in, real *dbias) {
    const Job *job = u->job;
    const Layout *o = &u->o;
    long D = o->D, n = u->n, width = job->dim, start = o->block + layer * o->block_size;
    real *kept = u->saved + o->s_block + layer * o->s_size, *inverse = kept + o->s_inverse;
    const real *w = u->w + start;
    const long *rows;
    long m = NAME(height)(u, layer, &rows);
    double p = job->drop[1 + layer];
#define SINK(by) NAME(moved)(u->sink, start + (by))
    NAME(norm_back)(m, width, w + o->norm2, SINK(o->norm2), kept + o->s_unit2, inverse + job->length, g);
    real *branch = g;
    if (p > 0) {
        branch = u->three;
        memcpy(branch, g, m * D * sizeof(real));
        NAME(dropout)(m * D, p, NAME(key)(u, 3 * layer + 3), branch);
    }
    memset(u->hidden, 0, m * o->F * sizeof(real));
    NAME(linear_back)(m, o->F, D, w + o->narrow, SINK(o->narrow), kept + o->s_gelu, branch, u->hidden, u->scratch);
    for (long j = 0; j < m * o->F; j += LANES) AT(u->hidden + j) *= GET(kept + o->s_slope + j);
    NAME(linear_back)(m, D, o->F, w + o->wide, SINK(o->wide), kept + o->s_mid, u->hidden, g, u->scratch);
    NAME(norm_back)(m, width, w + o->norm1, SINK(o->norm1), kept + o->s_unit1, inverse, g);
    if (p > 0) {
        memcpy(branch, g, m * D * sizeof(real));
        NAME(dropout)(m * D, p, NAME(key)(u, 3 * layer + 2), branch);
    }
    memset(u->hidden, 0, m * D * sizeof(real));
    NAME(linear_back)(m, D, D, w + o->out, SINK(o->out), kept + o->s_heads, branch, u->hidden, u->scratch);
    NAME(attend_back)(u, layer, m, rows, kept, u->hidden, u->three, dbias);
    memset(in, 0, n * D * sizeof(real));
    for (long t = 0; t < m; t++) memcpy(in + (rows ? rows[t] : t) * D, g + t * D, D * sizeof(real));
    NAME(linear_back)(n, D, o->T, w, SINK(0), kept, u->three, in, u->scratch);
#undef SINK
}

static void NAME(backward_user)(NAME(User) * u, const real *dstate, real *dx, real *dbias) {
    const Job *job = u->job;
    const int64_t *at = u->at;
    const Layout *o = &u->o;
    long D = o->D, width = job->dim, n = u->n;
    const long *rows;
    long m = NAME(height)(u, job->layers - 1, &rows);
    real *g = u->one, *other = u->two;
    memset(g, 0, m * D * sizeof(real));
    for (long s = 0; s < job->asked; s++) {
        real *row = g + (rows ? rows[m + at[s]] : at[s]) * D;
        for (long j = 0; j < width; j++) row[j] += dstate[s * width + j];
    }
    for (long layer = job->layers - 1; layer >= 0; layer--) {
        NAME(back_block)(u, layer, g, other, dbias);
        real *swap = g;
        g = other, other = swap;
    }
    NAME(dropout)(n * D, job->drop[0], NAME(key)(u, 0), g);
    NAME(norm_back)(n, width, u->w + o->norm, NAME(moved)(u->sink, o->norm), u->saved + o->s_unit, u->saved, g);
    if (u->sink.to) {
        for (long j = 0; j < n * D; j += LANES) AT(u->sink.to + j) = GET(u->sink.from + j) + u->sink.rate * GET(g + j);
        if (u->sink.to != u->sink.from)
            memcpy(u->sink.to + n * D, u->sink.from + n * D, (job->positions - n) * D * sizeof(real));
    }
    if (dx)
        for (long t = 0; t < n; t++) memcpy(dx + t * width, g + t * D, width * sizeof(real));
}

/* A user's loss, if it is one of products of states (S, D) and vectors, and its gradients by the states and, if
   wanted, by the vectors. */
static real NAME(loss_back)(const NAME(User) * u, const real *state, real *dstate, real *dvectors) {
    const Job *job = u->job;
    long D = job->dim, S = job->asked, many = job->compared, whole = D / LANES * LANES;
    const real *vector = (const real *)job->vectors + u->user * S * many * D;
    const real *weight = (const real *)job->weight + u->user * S;
    real total = 0, loss = 0, *score = u->score;
    for (long s = 0; s < S; s++) total += weight[s];
    for (long s = 0; s < S; s++, state += D, dstate += D, vector += many * D) {
        memset(dstate, 0, D * sizeof(real));
        if (weight[s] == 0) continue;
        for (long c = 0; c < many; c++) {
            const real *other = vector + c * D;
            V sum = {0};
            for (long j = 0; j < whole; j += LANES) sum += GET(state + j) * GET(other + j);
            score[c] = NAME(sum)(sum);
            for (long j = whole; j < D; j++) score[c] += state[j] * other[j];
        }
        loss += NAME(score_back)(job->objective, many, weight[s] / (total > 1 ? total : 1), score);
        for (long c = 0; c < many; c++)
            for (long j = 0; j < D; j++) dstate[j] += score[c] * vector[c * D + j];
        if (dvectors)
            for (long c = 0; c < many; c++)
                for (long j = 0; j < D; j++) dvectors[(s * many + c) * D + j] = score[c] * state[j];
    }
    return loss;
}

/* All inner steps of one user, from the shared weights to its own. */
static void NAME(descend)(NAME(User) * u) {
    for (u->step = 0; u->step < u->job->steps; u->step++) {
        NAME(forward_user)(u, u->state);
        NAME(loss_back)(u, u->state, u->dstate, NULL);
        NAME(backward_user)(u, u->dstate, NULL, NULL);
        u->w = u->sink.from = u->sink.to;
        if (u->job->second) u->sink.to += u->o.row; /* the weights of every step are kept */
    }
}

/* A user's loss, and its gradients by everything that it was computed from. */
static void NAME(learn)(NAME(User) * u) {
    const Job *job = u->job;
    real *dvectors = (real *)job->dvectors + u->user * job->asked * job->compared * job->dim;
    NAME(forward_user)(u, u->state);
    ((real *)job->losses)[u->user] = NAME(loss_back)(u, u->state, u->dstate, dvectors);
    NAME(backward_user)(u, u->dstate, NAME(of)(job->dx, u->user, job->length * job->dim),
                        NAME(of)(job->dbias, u->user, job->length * job->length));
}

#include "encoder_second.h"

/* ---- many users ---- */

static int NAME(start)(NAME(User) * u, const Job *job) {
    Layout o = NAME(layout)(job);
    long L = job->length, S = job->asked, wide = o.T > o.F ? o.T : o.F, N = o.N, depth = o.depth;
    long sizes[] = {L * o.D, L * o.D, L * o.T, L * (o.F > o.D ? o.F : o.D), L * wide, L * depth, L * depth, L * depth,
                    depth * N, L * N, L * depth, S * job->dim, S * job->dim, job->compared};
    real **places[] = {&u->one, &u->two, &u->three, &u->hidden, &u->scratch, &u->q, &u->k, &u->v, &u->flip, &u->near,
                       &u->back, &u->state, &u->dstate, &u->score};
    long total = 0;
    for (int j = 0; j < 14; j++) total += PADDED(sizes[j]) + PANEL;
    u->job = job, u->o = o, u->step = 0;
    u->rows = malloc(2 * L * sizeof(long));
    real *block = u->rows ? aligned_alloc(64, (total * sizeof(real) + 63) / 64 * 64) : NULL;
    if (!block) return 0;
    memset(block, 0, total * sizeof(real));
    for (int j = 0; j < 14; j++) *places[j] = block, block += PADDED(sizes[j]) + PANEL;
    return 1;
}

static void NAME(stop)(NAME(User) * u) { free(u->rows), free(u->one); }

/* Which tokens and rows a user needs: nothing after the last position asked for, unless a token sees nothing. */
static int NAME(pick)(NAME(User) * u) {
    const Job *job = u->job;
    const int64_t *at = u->at;
    long L = job->length, *row_of = u->rows + L;
    u->n = 0, u->m = 0;
    for (long t = 0; t < L; t++) row_of[t] = -1;
    for (long s = 0; s < job->asked; s++) {
        if (at[s] < 0 || at[s] >= L) return 0;
        row_of[at[s]] = 0;
        if (at[s] >= u->n) u->n = at[s] + 1;
    }
    if (!u->keep[0] || job->asked == 0) u->n = L;
    u->N = PADDED(u->n);
    for (long t = 0; t < u->n; t++)
        if (row_of[t] == 0) u->rows[u->m] = t, row_of[t] = u->m++;
    memmove(u->rows + u->m, row_of, L * sizeof(long));
    return 1;
}

/* Points at what belongs to a user; 0 if it asks for a position that is not there. */
static int NAME(turn_to)(NAME(User) * u, long user, long thread) {
    const Job *job = u->job;
    long L = job->length;
    u->user = user;
    u->w = (const real *)job->weights + user * job->stride;
    u->saved = (real *)job->saved + (job->what < DESCEND ? user : thread * (1 + job->second)) * u->o.saved;
    u->bias = NAME(of)(job->bias, user, L * L);
    u->keep = job->keep + user * L;
    u->at = job->at + user * job->asked;
    u->sink = (NAME(Sink)){NULL, NULL, job->rate, 0};
    if (job->what == STEP || job->what == DESCEND) {
        u->sink.from = u->w;
        u->sink.to = (real *)job->moved + (job->query ? thread * rows_of(job) : user) * u->o.row;
    } else if (job->moved) u->sink.from = u->sink.to = (real *)job->moved + thread * u->o.row;
    return NAME(pick)(u);
}

/* The users of one thread. */
static int NAME(share)(const Job *job, long thread) {
    NAME(User) u = {0}, query = {0}, tangent = {0};
    int ready = NAME(start)(&u, job) && (!job->query || NAME(start)(&query, job->query));
    int failed = ready && (!job->second || NAME(start)(&tangent, job)) ? 0 : 1;
    for (long b = thread; b < job->users && !failed; b += job->threads) {
        if (!NAME(turn_to)(&u, b, thread) || (job->query && !NAME(turn_to)(&query, b, thread))) failed = 2;
        else if (job->what == FORWARD || job->what == VALUES) NAME(forward_user)(&u, NAME(of)(job->state, b, job->asked * job->dim));
        else if (job->second) NAME(learn_second)(&u, &tangent, &query);
        else if (job->what == DESCEND) {
            NAME(descend)(&u);
            if (job->query) query.w = u.w, NAME(learn)(&query);
        } else
            NAME(backward_user)(&u, NAME(of)(job->dstate, b, job->asked * job->dim),
                                NAME(of)(job->dx, b, job->length * job->dim),
                                NAME(of)(job->dbias, b, job->length * job->length));
    }
    NAME(stop)(&u), NAME(stop)(&query), NAME(stop)(&tangent);
    return failed;
}

/* One matrix (out, in) of torch to or from its place (or with `back` the other way). */
static void NAME(convert_matrix)(long in, long out, real *place, real *matrix, int back) {
    long rows = PADDED(in) + 1;
    for (long j = 0; j < out; j++)
        for (long i = 0; i < in; i++) {
            real *at = place + (j / PANEL * rows + i) * PANEL + j % PANEL;
            if (back) matrix[j * in + i] = *at;
            else *at = matrix[j * in + i];
        }
}

/* A row of weights from the parameters in the order of `named_parameters`, or with `back` the other way. */
static void NAME(convert)(const Job *job, real *row, real *const *given, int back) {
    Layout o = NAME(layout)(job);
    long D = job->dim, F = job->feedforward;
#define VECTOR(from, to, n) memcpy(back ? (void *)(to) : (void *)(from), back ? (void *)(from) : (void *)(to), (n) * sizeof(real))
    for (long t = 0; t < job->positions; t++) VECTOR(row + t * o.D, given[0] + t * D, D);
    VECTOR(row + o.norm, given[1], D), VECTOR(row + o.norm + o.D, given[2], D);
    given += 3;
    for (long layer = 0; layer < job->layers; layer++, given += 12) {
        real *w = row + o.block + layer * o.block_size;
        struct { long at, in, out; } linear[] = {{0, D, 3 * D}, {o.out, D, D}, {o.wide, D, F}, {o.narrow, F, D}};
        long norm[] = {-1, o.norm1, -1, o.norm2};
        real *const *next = given;
        for (long j = 0; j < 4; j++, next += 2) {
            long in = linear[j].in, out = linear[j].out;
            real *place = w + linear[j].at;
            NAME(convert_matrix)(in, out, place, next[0], back);
            VECTOR(place + PADDED(out) * (PADDED(in) + 1), next[1], out);
            if (norm[j] < 0) continue;
            next += 2;
            VECTOR(w + norm[j], next[0], D);
            VECTOR(w + norm[j] + o.D, next[1], D);
        }
    }
#undef VECTOR
}

#undef V
#undef AT
#undef GET
#undef LANES
#undef PANEL
#undef PADDED
