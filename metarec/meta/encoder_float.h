/* What one width of float vectors needs: `BYTES` wide, NAME(x) its names, PLACES the numbers of its lanes. */

typedef float NAME(V) __attribute__((vector_size(BYTES), aligned(4), may_alias));
typedef int32_t NAME(I) __attribute__((vector_size(BYTES)));
typedef uint32_t NAME(U) __attribute__((vector_size(BYTES)));

/* 0 where the hash of a key and of places from j on is below the bar, else the scale. */
static ALWAYS NAME(V) NAME(drawn)(uint32_t j, uint32_t key, uint32_t bar, float scale) {
    NAME(U) h = ((NAME(U)){PLACES} + j) * 0x9E3779B9u ^ key;
    MIX(h);
    return (NAME(V))((NAME(I))(h >= bar) & (NAME(I))((NAME(V)){0} + scale));
}

static ALWAYS float NAME(root)(float x) { return sqrtf(x); }

/* e^x for x <= 0, to two units in the last place; below -87 it is the smallest normal number or less. */
static ALWAYS NAME(V) NAME(exp)(NAME(V) x) {
    NAME(I) low = x > -87.0f;
    x = (NAME(V))((NAME(I))x & low);
    NAME(V) shifted = x * 1.44269504f + 12582912.0f; /* rounds to the nearest integer in the low bits */
    NAME(V) whole = shifted - 12582912.0f;
    x = x - whole * 0.693359375f - whole * -2.12194440e-4f;
    NAME(V) y = x * 1.9875691500e-4f + 1.3981999507e-3f;
    y = y * x + 8.3334519073e-3f;
    y = y * x + 4.1665795894e-2f;
    y = y * x + 1.6666665459e-1f;
    y = y * x + 5.0000001201e-1f;
    y = y * x * x + x + 1.0f;
    NAME(I) power = ((NAME(I))shifted << 23) + (NAME(I))y;
    return (NAME(V))(power & low);
}

/* Phi and phi of the normal distribution; Abramowitz and Stegun 7.1.26, to 1e-7. */
static ALWAYS void NAME(normal)(NAME(V) x, NAME(V) *cdf, NAME(V) *pdf) {
    NAME(I) sign = (NAME(I))x & INT32_MIN;
    NAME(V) size = (NAME(V))((NAME(I))x ^ sign), bell = NAME(exp)(-0.5f * x * x);
    NAME(V) t = 1.0f / (size * (0.3275911f * 0.70710678f) + 1.0f);
    NAME(V) y = t * 1.061405429f - 1.453152027f;
    y = y * t + 1.421413741f;
    y = y * t - 0.284496736f;
    y = y * t + 0.254829592f;
    NAME(V) tail = 0.5f * y * t * bell;
    NAME(I) right = x > 0.0f;
    *cdf = (NAME(V))(((NAME(I))(1.0f - tail) & right) | ((NAME(I))tail & ~right));
    *pdf = bell * 0.39894228f;
}

#undef BYTES
#undef PLACES
#undef NAME
