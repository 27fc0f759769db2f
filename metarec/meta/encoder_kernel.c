/* The SASRec encoder of many users, forward and backward, where every user has weights of its own.

   One user at a time, so that its weights and activations stay in a core's cache. In the inner loop the backward pass
   takes the SGD step itself, while the weight it has just used is at hand: no gradient of a weight is ever written.
   Loaded by library.py, which says what each field of Job is. */

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define ALWAYS inline __attribute__((always_inline))
#define UNROLL _Pragma("GCC unroll 16")
#define MAX_WIDE 1024 /* of a layer norm */
#define BLOCK 12 /* rows of a weight matrix; a multiple of 4 */

#if defined(__x86_64__)
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma"))), apply_to = function)
#else
#pragma GCC target("avx2,fma")
#endif
#endif

#define FIELDS 17
typedef struct Job {
    int64_t users, length, asked, dim, heads, layers, feedforward, positions, threads;
    int64_t stride, what, failed, steps, objective, compared, second;
    uint64_t seed;
    double rate;
    const double *drop, *eps;
    const void *weights;
    void *moved;
    const void *x;
    const uint8_t *keep;
    const void *bias;
    const int64_t *at;
    void *saved, *state;
    const void *dstate;
    void *dx, *dbias;
    const void *vectors, *weight;
    void *dvectors, *losses;
    const struct Job *query;
    int64_t count[FIELDS]; /* numbers that lie at each address, in the order of `names` in library.py */
} Job;

/* What lies at the addresses of a job. */
enum { DROP, EPS, WEIGHTS, MOVED, X, KEEP, BIAS, AT_, SAVED, STATE, DSTATE, DX, DBIAS, VECTORS, WEIGHT, DVECTORS, LOSSES };

enum { FORWARD, BACKWARD, STEP, DESCEND, LEARN, VALUES };
enum { BPR, SAMPLED_SOFTMAX };

/* Offsets in a user's row of weights, in a block of it, in its saved activations, in a block of them; padded widths. */
typedef struct {
    long D, F, T, N, depth;
    long norm, block, out, norm1, wide, narrow, norm2, block_size, row;
    long s_unit, s_block, s_three, s_weights, s_heads, s_unit1, s_mid, s_gelu, s_slope, s_unit2, s_inverse, s_size;
    long saved;
} Layout;

/* The finaliser of MurmurHash3. */
#define MIX(h) (h ^= h >> 16, h *= 0x85EBCA6Bu, h ^= h >> 13, h *= 0xC2B2AE35u, h ^= h >> 16)
static ALWAYS uint32_t mixed(uint32_t h) { return MIX(h); }

typedef float H_f32 __attribute__((vector_size(16), aligned(4), may_alias));
typedef double V_f64 __attribute__((vector_size(32), aligned(8), may_alias));
typedef int64_t I_f64 __attribute__((vector_size(32)));

#define BYTES 32
#define PLACES 0, 1, 2, 3, 4, 5, 6, 7
#define NAME(x) x##_f32
#include "encoder_float.h"

static ALWAYS V_f64 drawn_f64(uint32_t j, uint32_t key, uint32_t bar, double scale) {
    V_f64 out;
    for (int k = 0; k < 4; k++) out[k] = mixed((j + k) * 0x9E3779B9u ^ key) >= bar ? scale : 0;
    return out;
}

#if defined(__clang__)
#define SHUFFLE_f32(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#define SHUFFLE_f64(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define SHUFFLE_f32(a, b, ...) __builtin_shuffle(a, b, (I_f32){__VA_ARGS__})
#define SHUFFLE_f64(a, b, ...) __builtin_shuffle(a, b, (I_f64){__VA_ARGS__})
#endif

/* out[0..3] += the sums of four vectors. */
static ALWAYS void add_sums_f32(V_f32 a, V_f32 b, V_f32 c, V_f32 d, float *out) {
    V_f32 ab = SHUFFLE_f32(a, b, 0, 8, 1, 9, 4, 12, 5, 13) + SHUFFLE_f32(a, b, 2, 10, 3, 11, 6, 14, 7, 15);
    V_f32 cd = SHUFFLE_f32(c, d, 0, 8, 1, 9, 4, 12, 5, 13) + SHUFFLE_f32(c, d, 2, 10, 3, 11, 6, 14, 7, 15);
    union { V_f32 all; H_f32 half[2]; } s;
    s.all = SHUFFLE_f32(ab, cd, 0, 1, 8, 9, 4, 5, 12, 13) + SHUFFLE_f32(ab, cd, 2, 3, 10, 11, 6, 7, 14, 15);
    *(H_f32 *)out += s.half[0] + s.half[1];
}

static ALWAYS void add_sums_f64(V_f64 a, V_f64 b, V_f64 c, V_f64 d, double *out) {
    V_f64 ab = SHUFFLE_f64(a, b, 0, 4, 2, 6) + SHUFFLE_f64(a, b, 1, 5, 3, 7);
    V_f64 cd = SHUFFLE_f64(c, d, 0, 4, 2, 6) + SHUFFLE_f64(c, d, 1, 5, 3, 7);
    *(V_f64 *)out += SHUFFLE_f64(ab, cd, 0, 1, 4, 5) + SHUFFLE_f64(ab, cd, 2, 3, 6, 7);
}

static ALWAYS double root_f64(double x) { return sqrt(x); }

static ALWAYS V_f64 exp_f64(V_f64 x) {
    for (int j = 0; j < 4; j++) x[j] = exp(x[j]);
    return x;
}

static ALWAYS void normal_f64(V_f64 x, V_f64 *cdf, V_f64 *pdf) {
    for (int j = 0; j < 4; j++) {
        (*cdf)[j] = 0.5 * erfc(-x[j] * 0.70710678118654752440);
        (*pdf)[j] = exp(-0.5 * x[j] * x[j]) * 0.39894228040143267794;
    }
}

/* Scores of the target and of what it is compared with become `share` times the gradient of the loss by them. */
#define LOSS_BACK(name, real, exponential, logarithm)                                            \
    static real name(int64_t objective, long many, real share, real *score) {                    \
        real top = score[0], total = 0, target = 0, loss = 0;                                    \
        if (objective == BPR) {                                                                  \
            for (long c = 1; c < many; c++) {                                                    \
                real chance = 1 / (1 + exponential(score[c] - score[0]));                        \
                loss -= logarithm((real)1e-10 + chance) / (many - 1);                            \
                score[c] = share / (many - 1) * chance * (1 - chance) / ((real)1e-10 + chance);  \
                target -= score[c];                                                              \
            }                                                                                    \
            score[0] = target;                                                                   \
            return share * loss;                                                                 \
        }                                                                                        \
        for (long c = 1; c < many; c++) top = score[c] > top ? score[c] : top;                   \
        loss = top - score[0];                                                                   \
        for (long c = 0; c < many; c++) total += score[c] = exponential(score[c] - top);         \
        for (long c = 0; c < many; c++) score[c] *= share / total;                               \
        score[0] -= share;                                                                       \
        return share * (loss + logarithm(total));                                                \
    }
LOSS_BACK(score_back_f32, float, expf, logf)
LOSS_BACK(score_back_f64, double, exp, log)

/* The tangents of scores become those of `share` times the gradient of the loss by them. */
#define LOSS_TANGENT(name, real, exponential)                                                    \
    static void name(int64_t objective, long many, real share, const real *score, real *tangent) { \
        real top = score[0], total = 0, mean = 0, target = 0;                                    \
        if (objective == BPR) {                                                                  \
            for (long c = 1; c < many; c++) {                                                    \
                real chance = 1 / (1 + exponential(score[c] - score[0])), least = (real)1e-10;   \
                real both = chance * (1 - chance), sum = least + chance;                         \
                real slope = both * (both - (1 - 2 * chance) * sum) / (sum * sum);               \
                tangent[c] = share / (many - 1) * slope * (tangent[c] - tangent[0]);             \
                target -= tangent[c];                                                            \
            }                                                                                    \
            tangent[0] = target;                                                                 \
            return;                                                                              \
        }                                                                                        \
        for (long c = 1; c < many; c++) top = score[c] > top ? score[c] : top;                   \
        for (long c = 0; c < many; c++) {                                                        \
            real part = exponential(score[c] - top);                                             \
            total += part, mean += part * tangent[c];                                            \
        }                                                                                        \
        mean /= total;                                                                           \
        for (long c = 0; c < many; c++)                                                          \
            tangent[c] = share * exponential(score[c] - top) / total * (tangent[c] - mean);      \
    }
LOSS_TANGENT(score_tangent_f32, float, expf)
LOSS_TANGENT(score_tangent_f64, double, exp)

/* Rows of weights that each thread has of a user's inner steps: of each step and a gradient in second order, else one. */
static ALWAYS int64_t rows_of(const Job *job) { return job->second ? job->steps + 1 : 1; }

#define BYTES 32
#define real float
#define NAME(x) x##_f32
#include "encoder_kernel.h"
#undef real
#undef NAME
#define real double
#define NAME(x) x##_f64
#include "encoder_kernel.h"
#undef BYTES

/* Vectors of twice the width, for processors that have them and encoders that fill them. */
#if defined(__x86_64__)
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,avx512f,avx512bw,avx512dq,avx512vl"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma,avx512f,avx512bw,avx512dq,avx512vl,prefer-vector-width=512")
#endif
#define BYTES 64
#define PLACES 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15
#define NAME(x) x##_wide
#include "encoder_float.h"

static ALWAYS void add_sums_wide(V_wide a, V_wide b, V_wide c, V_wide d, float *out) {
    union { V_wide all; V_f32 half[2]; } x = {a}, y = {b}, z = {c}, u = {d};
    add_sums_f32(x.half[0] + x.half[1], y.half[0] + y.half[1], z.half[0] + z.half[1], u.half[0] + u.half[1], out);
}

#define score_back_wide score_back_f32
#define score_tangent_wide score_tangent_f32
#define BYTES 64
#define real float
#define NAME(x) x##_wide
#include "encoder_kernel.h"
#undef real
#undef NAME
#undef BYTES
#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#endif

/* Which of them computes a job: F32, F64 or WIDE. */
enum { F32, F64, WIDE };

static int64_t kind_of(const Job *job, int64_t wide) {
#if defined(__x86_64__)
    int fills = job->dim % 32 == 0 && job->feedforward % 32 == 0;
    if (!wide && fills && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl"))
        return WIDE;
#endif
    return wide ? F64 : F32;
}

static Layout layout_of(const Job *job, int64_t wide) {
    int64_t kind = kind_of(job, wide);
#if defined(__x86_64__)
    if (kind == WIDE) return layout_wide(job);
#endif
    return kind == F64 ? layout_f64(job) : layout_f32(job);
}

/* Runs a function on the threads of the OpenMP that torch has loaded: a pool of our own would compete with them. */
extern void GOMP_parallel(void (*function)(void *), void *given, unsigned threads, unsigned flags) __attribute__((weak));

typedef struct {
    Job *job;
    int64_t wide, next; /* the next thread's users, which whoever comes takes */
} Parts;

static void work(void *given) {
    Parts *parts = given;
    for (int64_t j; (j = __atomic_fetch_add(&parts->next, 1, __ATOMIC_RELAXED)) < parts->job->threads;) {
        int64_t kind = kind_of(parts->job, parts->wide);
        int (*share)(const Job *, long) = kind == F64 ? share_f64 : share_f32;
#if defined(__x86_64__)
        if (kind == WIDE) share = share_wide;
#endif
        int failed = share(parts->job, j);
        if (failed) parts->job->failed = failed;
    }
}

/* ---- what is looked at before anything is read or written ---- */

/* Errors: 1 no memory, 2 a position, SIZES and on a size, ADDRESSES and on a field whose numbers are too few. */
enum { SIZES = 100, ADDRESSES = 200, QUERY = 1000 };

/* a b c, or the largest number where that is too large. */
static int64_t times(int64_t a, int64_t b, int64_t c) {
    int64_t out;
    if (__builtin_mul_overflow(a, b, &out) || __builtin_mul_overflow(out, c, &out)) return INT64_MAX;
    return out;
}

/* Sizes of an encoder and of a pass: within bounds in which no product of them overflows. */
static int check_sizes(const Job *job) {
    const int64_t size[] = {job->users, job->length, job->asked, job->dim, job->heads, job->layers, job->feedforward,
                            job->positions, job->threads};
    const int64_t least[] = {0, 0, 0, 1, 1, 1, 1, 1, 0};
    const int64_t most[] = {1L << 31, 1L << 16, 1L << 31, MAX_WIDE, MAX_WIDE, 1L << 10, 1L << 20, 1L << 31, 1L << 16};
    for (int j = 0; j < 9; j++)
        if (size[j] < least[j] || size[j] > most[j]) return SIZES + j;
    return job->dim % job->heads ? SIZES + 4 : 0;
}

/* Whether a field has at least so many numbers; it may be absent if it is not `wanted`. */
static int lacks(const Job *job, int field, const void *place, int64_t least, int wanted) {
    if (!place) return wanted && least > 0 ? ADDRESSES + field : 0;
    return job->count[field] < least ? ADDRESSES + field : 0;
}

#define NEED(field, place, least, wanted) \
    if ((failed = lacks(job, field, job->place, least, wanted))) return failed

static int check(const Job *job, int64_t wide, int inner) {
    int failed = check_sizes(job);
    if (failed) return failed;
    if (job->length > job->positions || job->length < 1) return SIZES + 1;
    if (job->threads < 1) return SIZES + 8;
    if (job->what < FORWARD || job->what > VALUES || (job->what == LEARN) != inner) return SIZES + 10;
    Layout o = layout_of(job, wide);
    int64_t B = job->users, L = job->length, S = job->asked, D = job->dim, T = job->threads, rows = B;
    int product = job->what == DESCEND || job->what == LEARN, descends = job->what == STEP || job->what == DESCEND;
    int forward = job->what == FORWARD || job->what == VALUES;
    if (job->stride != 0 && job->stride < o.row) return SIZES + 9;
    if (product && (job->steps < 0 || job->steps > INT32_MAX)) return SIZES + 12;
    if (product && (job->objective < BPR || job->objective > SAMPLED_SOFTMAX)) return SIZES + 13;
    if (product && (job->compared < 1 || job->compared > 1L << 31)) return SIZES + 14;
    NEED(DROP, drop, 1 + job->layers, 1);
    NEED(EPS, eps, 1 + 2 * job->layers, 1);
    if (job->stride && B) rows = times(B - 1, job->stride, 1) + o.row;
    NEED(WEIGHTS, weights, job->stride ? rows : o.row, !inner);
    if (job->second && (job->second != 1 || !product || inner || !job->query)) return SIZES + 15;
    NEED(MOVED, moved, times(descends && !job->query ? B : times(T, rows_of(job), 1), o.row, 1), descends);
    NEED(X, x, times(B, L, D), forward || product);
    NEED(KEEP, keep, times(B, L, 1), 1);
    NEED(BIAS, bias, times(B, L, L), 0);
    NEED(AT_, at, times(B, S, 1), 1);
    NEED(SAVED, saved, times(job->what < DESCEND ? B : T, o.saved, 1 + job->second), 1);
    NEED(STATE, state, times(B, S, D), forward);
    NEED(DSTATE, dstate, times(B, S, D), job->what == BACKWARD || job->what == STEP);
    NEED(DX, dx, times(B, L, D), 0);
    NEED(DBIAS, dbias, times(B, L, L), 0);
    int64_t vectors = times(times(B, S, 1), job->compared, D);
    NEED(VECTORS, vectors, vectors, product);
    NEED(WEIGHT, weight, times(B, S, 1), product);
    NEED(DVECTORS, dvectors, vectors, inner || job->second);
    NEED(LOSSES, losses, B, inner);
    return 0;
}

/* A query's job is of the same users and the same encoder as the one that leads to it. */
static int check_query(const Job *job, int64_t wide) {
    const Job *query = job->query;
    if (!query) return 0;
    if (job->what != DESCEND) return SIZES + 10;
    if (query->users != job->users) return QUERY + SIZES;
    if (query->dim != job->dim) return QUERY + SIZES + 3;
    if (query->heads != job->heads) return QUERY + SIZES + 4;
    if (query->layers != job->layers) return QUERY + SIZES + 5;
    if (query->feedforward != job->feedforward) return QUERY + SIZES + 6;
    if (query->positions != job->positions) return QUERY + SIZES + 7;
    if (query->threads != job->threads) return QUERY + SIZES + 8;
    int failed = query->query ? SIZES + 10 : check(query, wide, 1);
    return failed ? QUERY + failed : 0;
}

/* The whole job; 0 if all went well, else what was wrong, before anything was done if it can be told before. */
int encoder_run(Job *job, int64_t wide) {
    int failed = check(job, wide, 0);
    if (!failed) failed = check_query(job, wide);
    if (failed) return failed;
    Parts parts = {job, wide, 0};
    if (GOMP_parallel && job->threads > 1) GOMP_parallel(work, &parts, (unsigned)job->threads, 0);
    else work(&parts);
    return (int)job->failed;
}

/* Whether there are threads but the caller's. */
int encoder_threads(void) { return GOMP_parallel != NULL; }

/* Numbers in a user's row of weights, and in what is kept of its forward pass; 0 if the sizes are possible. */
int encoder_sizes(const Job *job, int64_t wide, int64_t *sizes) {
    int failed = check_sizes(job);
    if (failed) return failed;
    Layout o = layout_of(job, wide);
    sizes[0] = o.row, sizes[1] = o.saved;
    return 0;
}

/* A row from parameters, or with `back` parameters from a row; 0, or the number of the parameter, from 1 on, that has
   another count than the encoder's, or -1 if the row or the number of parameters has. */
int encoder_convert(const Job *job, int64_t wide, void *row, int64_t count, void *const *parameters,
                    const int64_t *counts, int64_t given, int64_t back) {
    if (check_sizes(job) || given != 3 + 12 * job->layers) return -1;
    Layout o = layout_of(job, wide);
    if (!row || count < o.row) return -1;
    int64_t D = job->dim, F = job->feedforward, start[] = {job->positions * D, D, D};
    int64_t block[] = {3 * D * D, 3 * D, D * D, D, D, D, F * D, F, D * F, D, D, D};
    for (int64_t j = 0; j < given; j++)
        if (!parameters[j] || counts[j] != (j < 3 ? start[j] : block[(j - 3) % 12])) return (int)(j + 1);
    int64_t kind = kind_of(job, wide);
#if defined(__x86_64__)
    if (kind == WIDE) convert_wide(job, row, (float *const *)parameters, (int)back);
#endif
    if (kind == F64) convert_f64(job, row, (double *const *)parameters, (int)back);
    if (kind == F32) convert_f32(job, row, (float *const *)parameters, (int)back);
    return 0;
}

/* Whether this machine can run what is above. */
int encoder_runs(void) {
#if defined(__x86_64__)
    __builtin_cpu_init();
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
#else
    return 1;
#endif
}

#if defined(__x86_64__) && defined(__clang__)
#pragma clang attribute pop
#endif
