"""The C source of `NativeDecoder`: tokens in, logits out, in one call. `native_tiny_story.py` compiles it.

All sums of products of weights are sums of integers, exact in whatever order they are taken; what is left in floating
point is computed for each token by the same instructions whatever stands beside it. So a row gets the same bits alone
and in a batch, on one thread and on many.
"""

SOURCE = r"""
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#ifdef __AVX2__
#include <immintrin.h>
#endif

#ifdef __AVX512VL__
enum { SUMS = 16 };  /* that a tile takes at once, at most: half of the registers */
#else
enum { SUMS = 8 };
#endif
enum { BLOCK = 16 };  /* outputs of a thread's piece of work */

typedef struct { const int8_t *weight; const float *scale, *bias; int32_t in, out, limit; } Linear;  /* (out, in) */
typedef struct { const float *gain, *bias; } Norm;  /* without bias: RMS norm, its gain times sqrt(width) */
typedef struct { Linear qkv, out, inner, outer; Norm norm1, norm2; const float *qk_gain; } Layer;
typedef struct {
    const Layer *layers;
    const float *embedding, *cos, *sin, *sinusoids;  /* (vocab, hidden), (positions, head_dim), (positions, hidden) */
    Norm norm;
    Linear head;
    float eps;
    int32_t num_layers, hidden, heads, kv_heads, head_dim, feed_forward, gated, pre_norm;
} Model;
typedef struct { int16_t *x; float *scale; } Input;  /* a matrix's input: (tokens, in), and what one step is worth */

/* Floating-point sums are taken in eight lanes, in the order written here: the compiler may not choose another. */
typedef float Lanes __attribute__((vector_size(32), aligned(4), may_alias));

/* e^x within 2e-7 of itself, for |x| up to 87: as e^x = 2^n e^r, with a polynomial for e^r (Cephes, expf). */
static inline float exponential(float x) {
    x = x < -87.0f ? -87.0f : x > 87.0f ? 87.0f : x;
    float n = rintf(x * 1.44269504f);
    float r = x - n * 0.693359375f + n * 2.12194440e-4f;
    float p = 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    union { float f; int32_t i; } power = { .i = ((int32_t)n + 127) << 23 };
    return p * power.f;
}

static inline float total(Lanes x) { return (x[0] + x[4] + (x[1] + x[5])) + (x[2] + x[6] + (x[3] + x[7])); }

static inline float sum(const float *x, int n) {
    Lanes lanes = {0};
    int i = 0;
    for (; i + 8 <= n; i += 8) lanes += *(const Lanes *)(x + i);
    float rest = 0;
    for (; i < n; i++) rest += x[i];
    return total(lanes) + rest;
}

static inline float dot(const float *a, const float *b, int n) {
    Lanes lanes = {0};
    int i = 0;
    for (; i + 8 <= n; i += 8) lanes += *(const Lanes *)(a + i) * *(const Lanes *)(b + i);
    float rest = 0;
    for (; i < n; i++) rest += a[i] * b[i];
    return total(lanes) + rest;
}

static void normalise(const float *x, Norm norm, float eps, int n, float *y) {
    float mean = norm.bias ? sum(x, n) / n : 0;
    for (int i = 0; i < n; i++) y[i] = x[i] - mean;
    float squares = dot(y, y, n), length = sqrtf(squares);
    float inverse = norm.bias ? 1 / sqrtf(squares / n + eps) : 1 / (length > 1e-12f ? length : 1e-12f);
    for (int i = 0; i < n; i++) y[i] = y[i] * inverse * norm.gain[i] + (norm.bias ? norm.bias[i] : 0);
}

/* To whole numbers, the largest of a token being `limit`: about 14 bits. */
static void quantise(const float *x, int n, const Linear *to, int token, Input input) {
    float largest = 1e-30f;
    for (int i = 0; i < n; i++) largest = fabsf(x[i]) > largest ? fabsf(x[i]) : largest;
    float inverse = to->limit / largest;
    int16_t *y = input.x + (size_t)token * to->in;
    for (int i = 0; i < n; i++) {
        float value = x[i] * inverse;
        y[i] = (int16_t)(int32_t)(value + (value < 0 ? -0.5f : 0.5f));
    }
    for (int i = n; i < to->in; i++) y[i] = 0;
    input.scale[token] = largest / to->limit;
}

#ifdef __AVX2__
/* Eight sums, each with two more products. */
static inline __m256i with_products(__m256i sums, __m256i a, __m256i b) {
#if defined(__AVX512VNNI__) && defined(__AVX512VL__)
    return _mm256_dpwssd_epi32(sums, a, b);
#else
    return _mm256_add_epi32(sums, _mm256_madd_epi16(a, b));
#endif
}
#endif

static inline __attribute__((always_inline)) void tile(
        const Linear *m, Input input, int output, int token, int outputs, int tokens, float *y, int add) {
    int32_t sums[SUMS];
    const int8_t *w = m->weight + (size_t)output * m->in;
    const int16_t *x = input.x + (size_t)token * m->in;
#ifdef __AVX2__
    __m256i parts[SUMS];
    for (int i = 0; i < SUMS; i++) parts[i] = _mm256_setzero_si256();
    for (int k = 0; k < m->in; k += 16) {
        __m256i weights[SUMS];
        for (int o = 0; o < outputs; o++)
            weights[o] = _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i *)(w + (size_t)o * m->in + k)));
        for (int t = 0; t < tokens; t++) {
            __m256i values = _mm256_loadu_si256((const __m256i *)(x + (size_t)t * m->in + k));
            for (int o = 0; o < outputs; o++)
                parts[o * tokens + t] = with_products(parts[o * tokens + t], weights[o], values);
        }
    }
    for (int i = 0; i < outputs * tokens; i += 4) {  /* four sums over lanes at once */
        __m256i four = _mm256_hadd_epi32(_mm256_hadd_epi32(parts[i], parts[i + 1]),
                                         _mm256_hadd_epi32(parts[i + 2], parts[i + 3]));
        _mm_storeu_si128((__m128i *)(sums + i),
                         _mm_add_epi32(_mm256_castsi256_si128(four), _mm256_extracti128_si256(four, 1)));
    }
#else
    for (int o = 0; o < outputs; o++)
        for (int t = 0; t < tokens; t++) {
            int32_t sum = 0;
            for (int k = 0; k < m->in; k++) sum += (int32_t)w[(size_t)o * m->in + k] * x[(size_t)t * m->in + k];
            sums[o * tokens + t] = sum;
        }
#endif
    for (int o = 0; o < outputs; o++)
        for (int t = 0; t < tokens; t++) {
            float value = sums[o * tokens + t] * (m->scale[output + o] * input.scale[token + t]);
            if (m->bias) value += m->bias[output + o];
            float *place = y + (size_t)(token + t) * m->out + output + o;
            *place = add ? *place + value : value;
        }
}

#define TILES(outputs, tokens) \
    for (; output + outputs <= end; output += outputs) tile(m, input, output, token, outputs, tokens, y, add);

/* y = x W^T + b, or y += ..., for all tokens: y (tokens, out). Called by all threads; they share the outputs. */
static void linear(const Linear *m, Input input, int tokens, float *y, int add) {
    #pragma omp for schedule(static)
    for (int block = 0; block < (m->out + BLOCK - 1) / BLOCK; block++) {
        int end = (block + 1) * BLOCK < m->out ? (block + 1) * BLOCK : m->out;
        for (int token = 0, some; token < tokens; token += some) {
            int output = block * BLOCK;
            some = tokens - token >= 4 ? 4 : tokens - token >= 2 ? 2 : 1;
            if (some == 4) { if (SUMS == 16) TILES(4, 4) TILES(2, 4) TILES(1, 4) }
            if (some == 2) { TILES(4, 2) TILES(1, 2) }
            if (some == 1) { TILES(4, 1) TILES(1, 1) }
        }
    }
}

/* Norm (over a head, if the model has one) and rotation of one head's query or key, in place. */
static void place_head(const Model *m, const float *gain, int position, float *x) {
    int n = m->head_dim, half = n / 2;
    if (gain) normalise(x, (Norm){gain, NULL}, 0, n, x);
    if (!m->cos) return;
    const float *cos = m->cos + (size_t)position * n, *sin = m->sin + (size_t)position * n;
    for (int i = 0; i < half; i++) {
        float a = x[i], b = x[i + half];
        x[i] = a * cos[i] + b * sin[i];  /* the sign of the rotation is in the table */
        x[i + half] = b * cos[i + half] + a * sin[i + half];
    }
}

/* How well each of the keys (count, n) fits the query: four at once, for no sum of one waits for another's. */
static void compare(const float *query, const float *keys, int count, int n, float *scores) {
    int c = 0;
    for (; c + 4 <= count; c += 4) {
        const float *four = keys + (size_t)c * n;
        Lanes lanes[4] = {0};
        int i = 0;
        for (; i + 8 <= n; i += 8)
            for (int k = 0; k < 4; k++) lanes[k] += *(const Lanes *)(query + i) * *(const Lanes *)(four + k * n + i);
        for (int k = 0; k < 4; k++) {
            float rest = 0;
            for (int j = i; j < n; j++) rest += query[j] * four[k * n + j];
            scores[c + k] = total(lanes[k]) + rest;
        }
    }
    for (; c < count; c++) scores[c] = dot(query, keys + (size_t)c * n, n);
}

/* out += the sum of the values (count, n), weighed: 32 channels at once, which stay in registers. */
static void mix(const float *weights, const float *values, int count, int n, float *out) {
    int i = 0;
    for (; i + 32 <= n; i += 32) {
        Lanes sums[4];
        for (int k = 0; k < 4; k++) sums[k] = *(const Lanes *)(out + i + 8 * k);
        for (int c = 0; c < count; c++)
            for (int k = 0; k < 4; k++) sums[k] += weights[c] * *(const Lanes *)(values + (size_t)c * n + i + 8 * k);
        for (int k = 0; k < 4; k++) *(Lanes *)(out + i + 8 * k) = sums[k];
    }
    for (int c = 0; c < count; c++)
        for (int j = i; j < n; j++) out[j] += weights[c] * values[(size_t)c * n + j];
}

/* The new tokens of one row, seen by one key/value head and the query heads that share it. The row's first `shared`
   tokens lie in another row's cache, (.., head_dim) each, the others in its own. */
static void attend(const Model *m, const Layer *layer, const float *shared_keys, const float *shared_values, int shared,
                   float *keys, float *values, int length, int time, int kv_head, const float *qkv, float *mixed) {
    int n = m->head_dim, group = m->heads / m->kv_heads, width = (m->heads + 2 * m->kv_heads) * n;
    float weights[length + time];
    for (int t = 0; t < time; t++) {
        size_t own = (size_t)(length - shared + t) * n;
        const float *key = qkv + (size_t)t * width + (m->heads + kv_head) * n, *value = key + m->kv_heads * n;
        memcpy(keys + own, key, n * sizeof(float));
        place_head(m, layer->qk_gain ? layer->qk_gain + (m->heads + kv_head) * n : NULL, length + t, keys + own);
        memcpy(values + own, value, n * sizeof(float));
    }
    for (int t = 0; t < time; t++)
        for (int head = kv_head * group; head < (kv_head + 1) * group; head++) {
            int context = length + t + 1;
            float query[n], *out = mixed + ((size_t)t * m->heads + head) * n, largest = -1e30f;
            memcpy(query, qkv + (size_t)t * width + head * n, n * sizeof(float));
            place_head(m, layer->qk_gain ? layer->qk_gain + head * n : NULL, length + t, query);
            compare(query, shared_keys, shared, n, weights);
            compare(query, keys, context - shared, n, weights + shared);
            for (int c = 0; c < context; c++) largest = weights[c] > largest ? weights[c] : largest;
            for (int c = 0; c < context; c++) weights[c] = exponential(weights[c] - largest);
            float inverse = 1 / sum(weights, context);
            memset(out, 0, n * sizeof(float));
            mix(weights, shared_values, shared, n, out);
            mix(weights + shared, values, context - shared, n, out);
            for (int i = 0; i < n; i++) out[i] *= inverse;
        }
}

/* Append `time` tokens to each row.
   caches: keys and values of the first layer, of the second, ..., each (cache rows, kv_heads, capacity, head_dim);
   cache_rows: (rows,) which of them is which row's;
   bases: such caches of another decoder: row r's first shared[r] tokens are those of their row base_rows[r];
   ids: (rows, time); lengths: (rows,) tokens so far, shared ones too;
   logits: (rows, time, vocab), or (rows, 1, vocab) of each row's last token.
   Returns 0, or 1 if there is no memory. */
int forward(const Model *m, float *const *caches, int capacity, const int32_t *cache_rows, const float *const *bases,
            int base_capacity, const int32_t *base_rows, const int32_t *shared, const int32_t *ids,
            const int32_t *lengths, int rows, int time, int last_only, int threads, float *logits) {
    int tokens = rows * time, width = m->hidden, attention = m->heads * m->head_dim, ff = m->feed_forward;
    int widest = m->layers->out.in > m->layers->outer.in ? m->layers->out.in : m->layers->outer.in;
    widest = widest > m->head.in ? widest : m->head.in;
    int heads = m->heads + 2 * m->kv_heads;
    size_t sizes[] = { width, heads * m->head_dim, attention, (m->gated ? 2 : 1) * ff, 1, widest };
    float *parts[6];
    size_t floats = 0;
    for (int i = 0; i < 6; i++) floats += sizes[i];
    float *memory = malloc(floats * tokens * sizeof(float));
    if (!memory) return 1;
    parts[0] = memory;
    for (int i = 1; i < 6; i++) parts[i] = parts[i - 1] + sizes[i - 1] * tokens;
    float *hidden = parts[0], *qkv = parts[1], *mixed = parts[2], *inner = parts[3];
    Input input = { (int16_t *)parts[5], parts[4] };

    #pragma omp parallel num_threads(threads)
    {
        float normed[width];
        #pragma omp for schedule(static)
        for (int token = 0; token < tokens; token++) {
            float *x = hidden + (size_t)token * width;
            memcpy(x, m->embedding + (size_t)ids[token] * width, width * sizeof(float));
            const float *sinusoid = m->sinusoids + (size_t)(lengths[token / time] + token % time) * width;
            for (int i = 0; m->sinusoids && i < width; i++) x[i] += sinusoid[i];
        }
        for (const Layer *layer = m->layers; layer < m->layers + m->num_layers; layer++) {
            int at = 2 * (layer - m->layers);
            #pragma omp for schedule(static)
            for (int token = 0; token < tokens; token++) {
                float *x = hidden + (size_t)token * width;
                if (m->pre_norm) normalise(x, layer->norm1, m->eps, width, normed);
                quantise(m->pre_norm ? normed : x, width, &layer->qkv, token, input);
            }
            linear(&layer->qkv, input, tokens, qkv, 0);
            #pragma omp for schedule(static)
            for (int i = 0; i < rows * m->kv_heads; i++) {
                int row = i / m->kv_heads, kv_head = i % m->kv_heads;
                size_t own = (size_t)(cache_rows[row] * m->kv_heads + kv_head) * capacity * m->head_dim;
                size_t base = (size_t)(base_rows[row] * m->kv_heads + kv_head) * base_capacity * m->head_dim;
                attend(m, layer, bases[at] + base, bases[at + 1] + base, shared[row], caches[at] + own,
                       caches[at + 1] + own, lengths[row], time, kv_head, qkv + row * time * sizes[1],
                       mixed + (size_t)row * time * attention);
            }
            #pragma omp for schedule(static)
            for (int token = 0; token < tokens; token++)
                quantise(mixed + (size_t)token * attention, attention, &layer->out, token, input);
            linear(&layer->out, input, tokens, hidden, 1);
            #pragma omp for schedule(static)
            for (int token = 0; token < tokens; token++) {
                float *x = hidden + (size_t)token * width;
                normalise(x, m->pre_norm ? layer->norm2 : layer->norm1, m->eps, width, m->pre_norm ? normed : x);
                quantise(m->pre_norm ? normed : x, width, &layer->inner, token, input);
            }
            linear(&layer->inner, input, tokens, inner, 0);
            #pragma omp for schedule(static)
            for (int token = 0; token < tokens; token++) {
                float *gate = inner + (size_t)token * sizes[3], *x = gate + (m->gated ? ff : 0);
                if (m->gated)  /* SwiGLU: silu(gate) * x */
                    for (int i = 0; i < ff; i++) gate[i] = gate[i] / (1 + exponential(-gate[i])) * x[i];
                else
                    for (int i = 0; i < ff; i++) gate[i] = gate[i] > 0 ? gate[i] : 0;
                quantise(gate, ff, &layer->outer, token, input);
            }
            linear(&layer->outer, input, tokens, hidden, 1);
            if (!m->pre_norm) {
                #pragma omp for schedule(static)
                for (int token = 0; token < tokens; token++) {
                    float *x = hidden + (size_t)token * width;
                    normalise(x, layer->norm2, m->eps, width, x);
                }
            }
        }
        int first = last_only ? time - 1 : 0, step = last_only ? time : 1, count = last_only ? rows : tokens;
        #pragma omp for schedule(static)
        for (int i = 0; i < count; i++) {
            float *x = hidden + (size_t)(first + i * step) * width;
            if (m->norm.gain) normalise(x, m->norm, m->eps, width, normed);
            quantise(m->norm.gain ? normed : x, width, &m->head, i, input);
        }
        linear(&m->head, input, count, logits, 0);
    }
    free(memory);
    return 0;
}
"""
