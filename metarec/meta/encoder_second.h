/* Second order: gradients through the inner steps, in one precision; encoder_kernel.h includes this file.

   Back from the query's gradient by the last weights, each step takes a Hessian-vector product off it. That product is
   the derivative of the step's gradient along the vector, so it comes of a forward and a backward pass that carry
   tangents beside their values (Pearlmutter, Neural Computation 1994): `u` has the values of a user, `d` the tangents at
   the same places, with the vector for its weights. */

/* c[M][N] += a b. */
static void NAME(product_add)(long M, long N, long K, const real *a, long rs, long ks, const real *b, long ldb, real *c,
                              long ldc) {
    for (long j = 0; j < N; j += PANEL) NAME(panel)(M, K, a, rs, ks, b + j, ldb, c + j, ldc, c + j, ldc);
}

/* The tangent of y = x w + bias. */
static void NAME(linear_tangent)(long M, long in, long out, const real *w, const real *dw, const real *x,
                                 const real *dx, real *dy) {
    NAME(linear)(M, in, out, dw, x, dy);
    for (long j = 0; j < out; j += PANEL)
        NAME(panel)(M, in, dx, in, 1, w + j * (in + 1), PANEL, dy + j, out, dy + j, out);
}

/* Gradient and tangent of y = x w + bias: gx += g w^T and its tangent, sink += the tangent of x^T g. */
static void NAME(linear_back_tangent)(long M, long in, long out, const real *w, const real *dw, NAME(Sink) sink,
                                      const real *x, const real *dx, const real *g, const real *dg, real *gx, real *dgx,
                                      real *scratch) {
    NAME(Sink) none = {NULL, NULL, 0, 0}, matrix = sink;
    matrix.matrix_only = 1;
    NAME(linear_back)(M, in, out, w, none, x, g, gx, scratch);
    NAME(linear_back)(M, in, out, dw, matrix, dx, g, dgx, scratch);
    NAME(linear_back)(M, in, out, w, sink, x, dg, dgx, scratch);
}

/* The tangent of a layer norm: dz, of its input, becomes that of the normalised rows z; relative, of log inverse. */
static void NAME(norm_tangent)(long M, long D, const real *w, const real *dw, const real *z, const real *inverse,
                               real *dz, real *relative, real *dy) {
    long wide = PADDED(D);
    for (long t = 0; t < M; t++, z += wide, dz += wide, dy += wide) {
        V sum = {0}, along = {0};
        for (long j = 0; j < wide; j += LANES) sum += GET(dz + j);
        real mean = NAME(sum)(sum) / D;
        for (long j = 0; j < D; j++) dz[j] -= mean;
        for (long j = 0; j < wide; j += LANES) along += GET(dz + j) * GET(z + j);
        real part = NAME(sum)(along) / D;
        for (long j = 0; j < wide; j += LANES) {
            AT(dz + j) = inverse[t] * (GET(dz + j) - part * GET(z + j));
            AT(dy + j) = GET(dz + j) * GET(w + j) + GET(z + j) * GET(dw + j) + GET(dw + wide + j);
        }
        relative[t] = -inverse[t] * part;
    }
}

/* g becomes the gradient of what was normalised, as in norm_back, and dg its tangent. */
static void NAME(norm_back_tangent)(long M, long D, const real *w, const real *dw, NAME(Sink) sink, const real *z,
                                    const real *inverse, const real *dz, const real *relative, real *g, real *dg) {
    long wide = PADDED(D);
    V scale[MAX_WIDE / LANES], shift[MAX_WIDE / LANES];
    memset(scale, 0, wide * sizeof(real)), memset(shift, 0, wide * sizeof(real));
    for (long t = 0; t < M; t++, z += wide, dz += wide, g += wide, dg += wide) {
        V a = {0}, b = {0}, da = {0}, db = {0};
        for (long j = 0; j < wide; j += LANES) {
            V grad = GET(g + j), tangent = GET(dg + j), unit = GET(z + j);
            scale[j / LANES] += tangent * unit + grad * GET(dz + j), shift[j / LANES] += tangent;
            tangent = tangent * GET(w + j) + grad * GET(dw + j), grad *= GET(w + j);
            a += grad, b += grad * unit;
            da += tangent, db += tangent * unit + grad * GET(dz + j);
            AT(g + j) = grad, AT(dg + j) = tangent;
        }
        real first = NAME(sum)(a) / D, second = NAME(sum)(b) / D;
        real dfirst = NAME(sum)(da) / D, dsecond = NAME(sum)(db) / D;
        for (long j = 0; j < wide; j += LANES) {
            V grad = inverse[t] * (GET(g + j) - first - second * GET(z + j));
            V tangent = GET(dg + j) - dfirst - dsecond * GET(z + j) - second * GET(dz + j);
            AT(dg + j) = relative[t] * grad + inverse[t] * tangent;
            AT(g + j) = grad;
        }
        for (long j = D; j < wide; j++) g[j] = dg[j] = 0;
    }
    for (long j = 0; j < wide; j += LANES) {
        AT(sink.to + j) = GET(sink.from + j) + sink.rate * scale[j / LANES];
        AT(sink.to + wide + j) = GET(sink.from + wide + j) + sink.rate * shift[j / LANES];
    }
}

/* The tangent of attend. */
static void NAME(attend_tangent)(const NAME(User) * u, const NAME(User) * d, long layer, long m, const long *rows,
                                 const real *kept, real *dkept, real *out) {
    const Job *job = u->job;
    long D = job->dim, size = D / job->heads, T = u->o.T, N = u->N, depth = u->o.depth, n = u->n;
    real scale = 1 / NAME(root)((real)size);
    for (long t = 0; t < m; t++)
        for (long j = D; j < u->o.D; j++) out[t * u->o.D + j] = 0;
    for (long h = 0; h < job->heads; h++) {
        const real *three = kept + u->o.s_three + h * size, *dthree = dkept + u->o.s_three + h * size;
        const real *weights = kept + u->o.s_weights + h * job->length * N;
        real *tangents = dkept + u->o.s_weights + h * job->length * N;
        uint32_t key = NAME(key)(u, 3 * layer + 1) + h;
        NAME(gather)(m, rows, size, depth, three, T, u->q);
        NAME(gather)(m, rows, size, depth, dthree, T, d->q);
        NAME(transpose)(n, size, N, three + D, T, u->flip);
        NAME(transpose)(n, size, N, dthree + D, T, d->flip);
        NAME(product)(m, N, size, d->q, depth, 1, u->flip, N, tangents, N);
        NAME(product_add)(m, N, size, u->q, depth, 1, d->flip, N, tangents, N);
        for (long t = 0; t < m; t++) {
            const real *weight = weights + t * N;
            real *row = tangents + t * N, open = !NAME(blind)(u, rows ? rows[t] : t) * scale;
            V sum = {0};
            for (long s = 0; s < N; s += LANES) sum += GET(weight + s) * GET(row + s);
            real mean = NAME(sum)(sum);
            for (long s = 0; s < N; s += LANES) AT(row + s) = open * GET(weight + s) * (GET(row + s) - mean);
        }
        memcpy(u->near, weights, m * N * sizeof(real)), memcpy(d->near, tangents, m * N * sizeof(real));
        NAME(dropout)(m * N, job->drop[1 + layer], key, u->near);
        NAME(dropout)(m * N, job->drop[1 + layer], key, d->near);
        NAME(gather)(n, NULL, size, depth, three + 2 * D, T, u->v);
        NAME(gather)(n, NULL, size, depth, dthree + 2 * D, T, d->v);
        NAME(product)(m, depth, n, d->near, N, 1, u->v, depth, d->back, depth);
        NAME(product_add)(m, depth, n, u->near, N, 1, d->v, depth, d->back, depth);
        for (long t = 0; t < m; t++) memcpy(out + t * u->o.D + h * size, d->back + t * depth, size * sizeof(real));
    }
}

/* Of c = a b the product and its tangent, to u->back and d->back, and from there to rows of two arrays. */
static void NAME(both)(const NAME(User) * u, const NAME(User) * d, long M, long K, long rs, long ks, const real *b,
                       const real *db, const long *rows, real *to, real *dto) {
    long T = u->o.T, depth = u->o.depth, size = u->job->dim / u->job->heads;
    NAME(product)(M, depth, K, u->near, rs, ks, b, depth, u->back, depth);
    NAME(product)(M, depth, K, d->near, rs, ks, b, depth, d->back, depth);
    NAME(product_add)(M, depth, K, u->near, rs, ks, db, depth, d->back, depth);
    for (long t = 0; t < M; t++) {
        long at = (rows ? rows[t] : t) * T;
        memcpy(to + at, u->back + t * depth, size * sizeof(real));
        memcpy(dto + at, d->back + t * depth, size * sizeof(real));
    }
}

/* Gradient and tangent of attend: gthree of queries, keys and values, and its tangent. */
static void NAME(attend_back_tangent)(const NAME(User) * u, const NAME(User) * d, long layer, long m, const long *rows,
                                      const real *kept, const real *dkept, const real *g, const real *dg, real *gthree,
                                      real *dgthree, real *dbias) {
    const Job *job = u->job;
    long D = job->dim, size = D / job->heads, T = u->o.T, N = u->N, depth = u->o.depth, n = u->n;
    double p = job->drop[1 + layer];
    real scale = 1 / NAME(root)((real)size);
    memset(gthree, 0, n * T * sizeof(real)), memset(dgthree, 0, n * T * sizeof(real));
    for (long h = 0; h < job->heads; h++) {
        const real *three = kept + u->o.s_three + h * size, *dthree = dkept + u->o.s_three + h * size;
        const real *weights = kept + u->o.s_weights + h * job->length * N;
        const real *tangents = dkept + u->o.s_weights + h * job->length * N;
        real *to = gthree + h * size, *dto = dgthree + h * size;
        uint32_t key = NAME(key)(u, 3 * layer + 1) + h;
        NAME(gather)(m, NULL, size, depth, g + h * size, u->o.D, u->q);
        NAME(gather)(m, NULL, size, depth, dg + h * size, u->o.D, d->q);
        memcpy(u->near, weights, m * N * sizeof(real)), memcpy(d->near, tangents, m * N * sizeof(real));
        NAME(dropout)(m * N, p, key, u->near), NAME(dropout)(m * N, p, key, d->near);
        NAME(both)(u, d, n, m, 1, N, u->q, d->q, NULL, to + 2 * D, dto + 2 * D); /* of the values */
        NAME(transpose)(n, size, N, three + 2 * D, T, u->flip);
        NAME(transpose)(n, size, N, dthree + 2 * D, T, d->flip);
        NAME(product)(m, N, size, u->q, depth, 1, u->flip, N, u->near, N); /* of the weights */
        NAME(product)(m, N, size, d->q, depth, 1, u->flip, N, d->near, N);
        NAME(product_add)(m, N, size, u->q, depth, 1, d->flip, N, d->near, N);
        NAME(dropout)(m * N, p, key, u->near), NAME(dropout)(m * N, p, key, d->near);
        for (long t = 0; t < m; t++) { /* of the logits */
            long token = rows ? rows[t] : t;
            real *row = u->near + t * N, *drow = d->near + t * N, open = !NAME(blind)(u, token);
            const real *weight = weights + t * N, *dweight = tangents + t * N;
            V sum = {0}, dsum = {0};
            for (long s = 0; s < N; s += LANES) {
                sum += GET(row + s) * GET(weight + s);
                dsum += GET(drow + s) * GET(weight + s) + GET(row + s) * GET(dweight + s);
            }
            real mean = NAME(sum)(sum), dmean = NAME(sum)(dsum);
            for (long s = 0; s < N; s += LANES) {
                V off = GET(row + s) - mean;
                AT(drow + s) = open * (GET(dweight + s) * off + GET(weight + s) * (GET(drow + s) - dmean));
                AT(row + s) = open * GET(weight + s) * off;
            }
            if (dbias)
                for (long s = 0; s < n; s++) dbias[token * job->length + s] += job->rate * drow[s];
            for (long s = 0; s < N; s += LANES)
                AT(row + s) = scale * GET(row + s), AT(drow + s) = scale * GET(drow + s);
        }
        NAME(gather)(n, NULL, size, depth, three + D, T, u->k);
        NAME(gather)(n, NULL, size, depth, dthree + D, T, d->k);
        NAME(both)(u, d, m, n, N, 1, u->k, d->k, rows, to, dto); /* of the queries */
        NAME(gather)(m, rows, size, depth, three, T, u->q);
        NAME(gather)(m, rows, size, depth, dthree, T, d->q);
        NAME(both)(u, d, n, m, 1, N, u->q, d->q, NULL, to + D, dto + D); /* of the keys */
    }
}

/* The tangent of forward_user, which has left the second derivatives of gelu in place of the tangents of the first. */
static void NAME(forward_tangent)(const NAME(User) * u, NAME(User) * d) {
    const Job *job = u->job;
    const Layout *o = &u->o;
    long D = o->D, n = u->n, width = job->dim;
    real *next = d->saved + o->s_block;
    memcpy(d->saved + o->s_unit, d->w, n * D * sizeof(real));
    NAME(norm_tangent)(n, width, u->w + o->norm, d->w + o->norm, u->saved + o->s_unit, u->saved, d->saved + o->s_unit,
                       d->saved, next);
    NAME(dropout)(n * D, job->drop[0], NAME(key)(u, 0), next);
    for (long layer = 0; layer < job->layers; layer++) {
        const real *kept = u->saved + o->s_block + layer * o->s_size, *inverse = kept + o->s_inverse;
        real *dkept = next, *relative = dkept + o->s_inverse;
        const real *w = u->w + o->block + layer * o->block_size, *dw = d->w + o->block + layer * o->block_size;
        const long *rows;
        long m = NAME(height)(u, layer, &rows);
#define PAIR(place) kept + o->place, dkept + o->place
#define WEIGHTS_OF(place) w + o->place, dw + o->place
        NAME(linear_tangent)(n, D, o->T, w, dw, kept, dkept, dkept + o->s_three);
        NAME(attend_tangent)(u, d, layer, m, rows, kept, dkept, dkept + o->s_heads);
        NAME(linear_tangent)(m, D, D, WEIGHTS_OF(out), PAIR(s_heads), dkept + o->s_unit1);
        NAME(residual)(u, layer, 1, m, rows, dkept, dkept + o->s_unit1);
        NAME(norm_tangent)(m, width, WEIGHTS_OF(norm1), kept + o->s_unit1, inverse, dkept + o->s_unit1, relative,
                           dkept + o->s_mid);
        NAME(linear_tangent)(m, D, o->F, WEIGHTS_OF(wide), PAIR(s_mid), dkept + o->s_gelu);
        for (long j = 0; j < m * o->F; j += LANES) {
            AT(dkept + o->s_slope + j) *= GET(dkept + o->s_gelu + j);
            AT(dkept + o->s_gelu + j) *= GET(kept + o->s_slope + j);
        }
        NAME(linear_tangent)(m, o->F, D, WEIGHTS_OF(narrow), PAIR(s_gelu), dkept + o->s_unit2);
        NAME(residual)(u, layer, 2, m, NULL, dkept + o->s_mid, dkept + o->s_unit2);
        next = layer + 1 < job->layers ? dkept + o->s_size : d->one;
        NAME(norm_tangent)(m, width, WEIGHTS_OF(norm2), kept + o->s_unit2, inverse + job->length, dkept + o->s_unit2,
                           relative + job->length, next);
    }
    for (long s = 0; s < job->asked; s++) {
        long row = u->m == n ? u->at[s] : u->rows[u->m + u->at[s]];
        memcpy(d->state + s * width, next + row * D, width * sizeof(real));
    }
}

/* The gradient and its tangent by the states, and that by the vectors, which is added `rate` times. */
static void NAME(loss_tangent)(const NAME(User) * u, const NAME(User) * d) {
    const Job *job = u->job;
    long D = job->dim, S = job->asked, many = job->compared;
    const real *vector = (const real *)job->vectors + u->user * S * many * D;
    const real *weight = (const real *)job->weight + u->user * S, *state = u->state, *dstate = d->state;
    real *to = (real *)job->dvectors + u->user * S * many * D, total = 0;
    memset(u->dstate, 0, S * D * sizeof(real)), memset(d->dstate, 0, S * D * sizeof(real));
    for (long s = 0; s < S; s++) total += weight[s];
    for (long s = 0; s < S; s++, state += D, dstate += D, vector += many * D, to += many * D) {
        if (weight[s] == 0) continue;
        for (long c = 0; c < many; c++) {
            u->score[c] = d->score[c] = 0;
            for (long j = 0; j < D; j++)
                u->score[c] += state[j] * vector[c * D + j], d->score[c] += dstate[j] * vector[c * D + j];
        }
        real share = weight[s] / (total > 1 ? total : 1);
        NAME(score_tangent)(job->objective, many, share, u->score, d->score);
        NAME(score_back)(job->objective, many, share, u->score);
        for (long c = 0; c < many; c++)
            for (long j = 0; j < D; j++) {
                u->dstate[s * D + j] += u->score[c] * vector[c * D + j];
                d->dstate[s * D + j] += d->score[c] * vector[c * D + j];
                to[c * D + j] += job->rate * (d->score[c] * state[j] + u->score[c] * dstate[j]);
            }
    }
}

/* One block back, as back_block, with tangents. */
static void NAME(back_block_tangent)(NAME(User) * u, NAME(User) * d, long layer, real *g, real *dg, real *in, real *din,
                                     real *dbias) {
    const Job *job = u->job;
    const Layout *o = &u->o;
    long D = o->D, n = u->n, width = job->dim, start = o->block + layer * o->block_size;
    const real *kept = u->saved + o->s_block + layer * o->s_size, *inverse = kept + o->s_inverse;
    const real *dkept = d->saved + o->s_block + layer * o->s_size, *relative = dkept + o->s_inverse;
    const real *w = u->w + start, *dw = d->w + start;
    const long *rows;
    long m = NAME(height)(u, layer, &rows), L = job->length;
    double p = job->drop[1 + layer];
    real *branch = g, *dbranch = dg;
#define SINK(by) NAME(moved)(d->sink, start + (by))
#define BRANCH(site)                                                                                   \
    if (p > 0) {                                                                                       \
        branch = u->three, dbranch = d->three;                                                         \
        memcpy(branch, g, m * D * sizeof(real)), memcpy(dbranch, dg, m * D * sizeof(real));            \
        NAME(dropout)(m * D, p, NAME(key)(u, 3 * layer + site), branch);                               \
        NAME(dropout)(m * D, p, NAME(key)(u, 3 * layer + site), dbranch);                              \
    }
    NAME(norm_back_tangent)(m, width, WEIGHTS_OF(norm2), SINK(o->norm2), kept + o->s_unit2, inverse + L,
                            dkept + o->s_unit2, relative + L, g, dg);
    BRANCH(3)
    memset(u->hidden, 0, m * o->F * sizeof(real)), memset(d->hidden, 0, m * o->F * sizeof(real));
    NAME(linear_back_tangent)(m, o->F, D, WEIGHTS_OF(narrow), SINK(o->narrow), PAIR(s_gelu), branch, dbranch, u->hidden,
                              d->hidden, u->scratch);
    for (long j = 0; j < m * o->F; j += LANES) {
        V slope = GET(kept + o->s_slope + j), grad = GET(u->hidden + j);
        AT(d->hidden + j) = GET(d->hidden + j) * slope + grad * GET(dkept + o->s_slope + j);
        AT(u->hidden + j) = grad * slope;
    }
    NAME(linear_back_tangent)(m, D, o->F, WEIGHTS_OF(wide), SINK(o->wide), PAIR(s_mid), u->hidden, d->hidden, g, dg,
                              u->scratch);
    NAME(norm_back_tangent)(m, width, WEIGHTS_OF(norm1), SINK(o->norm1), kept + o->s_unit1, inverse,
                            dkept + o->s_unit1, relative, g, dg);
    BRANCH(2)
    memset(u->hidden, 0, m * D * sizeof(real)), memset(d->hidden, 0, m * D * sizeof(real));
    NAME(linear_back_tangent)(m, D, D, WEIGHTS_OF(out), SINK(o->out), PAIR(s_heads), branch, dbranch, u->hidden,
                              d->hidden, u->scratch);
    NAME(attend_back_tangent)(u, d, layer, m, rows, kept, dkept, u->hidden, d->hidden, u->three, d->three, dbias);
    memset(in, 0, n * D * sizeof(real)), memset(din, 0, n * D * sizeof(real));
    for (long t = 0; t < m; t++) {
        long at = (rows ? rows[t] : t) * D;
        memcpy(in + at, g + t * D, D * sizeof(real)), memcpy(din + at, dg + t * D, D * sizeof(real));
    }
    NAME(linear_back_tangent)(n, D, o->T, w, dw, SINK(0), kept, dkept, u->three, d->three, in, din, u->scratch);
#undef BRANCH
#undef SINK
#undef WEIGHTS_OF
#undef PAIR
}

/* The tangent of backward_user: it goes to d's sink, which may be d's weights, and `rate` times to dx and dbias. */
static void NAME(backward_tangent)(NAME(User) * u, NAME(User) * d, real *dx, real *dbias) {
    const Job *job = u->job;
    const Layout *o = &u->o;
    long D = o->D, width = job->dim, n = u->n;
    const long *rows;
    long m = NAME(height)(u, job->layers - 1, &rows);
    real *g = u->one, *dg = d->one, *other = u->two, *dother = d->two;
    memset(g, 0, m * D * sizeof(real)), memset(dg, 0, m * D * sizeof(real));
    for (long s = 0; s < job->asked; s++) {
        long at = (rows ? rows[m + u->at[s]] : u->at[s]) * D;
        for (long j = 0; j < width; j++)
            g[at + j] += u->dstate[s * width + j], dg[at + j] += d->dstate[s * width + j];
    }
    for (long layer = job->layers - 1; layer >= 0; layer--) {
        NAME(back_block_tangent)(u, d, layer, g, dg, other, dother, dbias);
        real *swap = g, *dswap = dg;
        g = other, other = swap, dg = dother, dother = dswap;
    }
    NAME(dropout)(n * D, job->drop[0], NAME(key)(u, 0), g), NAME(dropout)(n * D, job->drop[0], NAME(key)(u, 0), dg);
    NAME(norm_back_tangent)(n, width, u->w + o->norm, d->w + o->norm, NAME(moved)(d->sink, o->norm),
                            u->saved + o->s_unit, u->saved, d->saved + o->s_unit, d->saved, g, dg);
    for (long j = 0; j < n * D; j += LANES) AT(d->sink.to + j) = GET(d->sink.from + j) + d->sink.rate * GET(dg + j);
    if (dx)
        for (long t = 0; t < n; t++)
            for (long j = 0; j < width; j++) dx[t * width + j] += job->rate * dg[t * D + j];
}

/* A user's inner steps, its query loss, and the gradient of that by the shared weights and by all that either was
   computed from. `vector` holds the gradient by the weights of the step in hand. */
static void NAME(learn_second)(NAME(User) * u, NAME(User) * d, NAME(User) * query) {
    const Job *job = u->job;
    const Layout *o = &u->o;
    const real *shared = u->w;
    real *stepped = u->sink.to, *vector = stepped + job->steps * o->row, *added = query->sink.to;
    NAME(descend)(u);
    memset(vector, 0, o->row * sizeof(real));
    query->w = u->w, query->sink.from = query->sink.to = vector;
    NAME(learn)(query);
    d->user = u->user, d->n = u->n, d->m = u->m, d->N = u->N, d->saved = u->saved + o->saved, d->w = vector;
    d->sink = (NAME(Sink)){vector, vector, job->rate, 0};
    u->curve = d->saved;
    for (u->step = job->steps - 1; u->step >= 0; u->step--) {
        u->w = u->step ? stepped + (u->step - 1) * o->row : shared;
        NAME(forward_user)(u, u->state);
        NAME(forward_tangent)(u, d);
        NAME(loss_tangent)(u, d);
        NAME(backward_tangent)(u, d, NAME(of)(job->dx, u->user, job->length * job->dim),
                               NAME(of)(job->dbias, u->user, job->length * job->length));
    }
    u->curve = NULL;
    for (long j = 0; j < o->row; j += LANES) AT(added + j) += GET(vector + j);
}
