"""The C source of `NativeDecoder`: tokens in, logits out, in one call. `compiler_tiny_story.py` compiles it.

All sums of products of weights are sums of integers, exact in whatever order they are taken; what is left in floating
point is computed for each token by the same instructions whatever stands beside it. So a row gets the same bits alone
and in a batch, on one thread and on many.
"""

BLOCK = 32  # outputs whose weights lie together, and a thread's piece of work
STEP = 8  # inputs at a time, at most
SOURCE = (
    f"enum {{ BLOCK = {BLOCK}, STEP = {STEP} }};"
    + r"""
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#ifdef __SSE2__
#include <immintrin.h>
#endif

enum { AHEAD = 12288 };  /* bytes: so far ahead weights are fetched into the caches */

typedef struct { const int8_t *weight; const float *scale, *bias; int32_t in, out, limit; } Linear;
/* weight: (out / BLOCK, in / 2, BLOCK, 2), so that a vector holds two weights of each of some outputs */
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

#ifdef __AVX512BW__
enum { LANES = 16, SUMS = 16 };  /* of a vector, and vectors of sums taken side by side: half of the registers */
#elif defined(__AVX2__)
enum { LANES = 8, SUMS = 8 };
#else
enum { LANES = 4, SUMS = 8 };
#endif
enum { SIDE = 2, MOST = SUMS / SIDE };  /* a tile: vectors, tokens at most */
typedef int32_t Vector __attribute__((vector_size(4 * LANES)));  /* sums of some outputs, or two int16 in each lane */
typedef float Outputs __attribute__((vector_size(4 * LANES), aligned(4), may_alias));

/* Two weights of each output, and sums with the products of two such pairs. */
#ifdef __AVX512BW__
static inline Vector weights_at(const int8_t *w) {
    return (Vector)_mm512_cvtepi8_epi16(_mm256_loadu_si256((const __m256i *)w));
}
static inline Vector products(Vector a, Vector b) { return (Vector)_mm512_madd_epi16((__m512i)a, (__m512i)b); }
#elif defined(__AVX2__)
static inline Vector weights_at(const int8_t *w) {
    return (Vector)_mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i *)w));
}
static inline Vector products(Vector a, Vector b) { return (Vector)_mm256_madd_epi16((__m256i)a, (__m256i)b); }
#elif defined(__SSE2__)
static inline Vector weights_at(const int8_t *w) {
    __m128i eight = _mm_loadl_epi64((const __m128i *)w);
    return (Vector)_mm_srai_epi16(_mm_unpacklo_epi8(eight, eight), 8);
}
static inline Vector products(Vector a, Vector b) { return (Vector)_mm_madd_epi16((__m128i)a, (__m128i)b); }
#else
typedef int16_t Pairs __attribute__((vector_size(4 * LANES)));
static inline Vector weights_at(const int8_t *w) {
    return (Vector)(Pairs){w[0], w[1], w[2], w[3], w[4], w[5], w[6], w[7]};
}
static inline Vector products(Vector a, Vector b) {
    return (a << 16 >> 16) * (b << 16 >> 16) + (a >> 16) * (b >> 16);
}
#endif
static inline Vector with_products(Vector sums, Vector a, Vector b) {
#if defined(__AVX512BW__) && defined(__AVX512VNNI__)
    asm("vpdpwssd %2, %1, %0" : "+v"(sums) : "v"(a), "v"(b));  /* with the intrinsic, GCC moves every sum about */
    return sums;
#elif defined(__AVX2__) && !defined(__AVX512BW__) && defined(__AVXVNNI__)
    asm("%{vex%} vpdpwssd %2, %1, %0" : "+x"(sums) : "x"(a), "x"(b));
    return sums;
#else
    return sums + products(a, b);
#endif
}

/* SIDE vectors of outputs of some tokens. Few tokens would have few sums, each waiting for itself: then each sum is
   taken in as many parts as there are registers for. */
static inline __attribute__((always_inline)) void tile(
        const Linear *m, Input input, int output, int token, int tokens, float *y, int add) {
    int parts = MOST / tokens >= 4 ? STEP / 2 : MOST / tokens >= 2 ? 2 : 1;
    const int8_t *w = m->weight + (size_t)(output / BLOCK) * BLOCK * m->in + 2 * (output % BLOCK);
    const int16_t *x = input.x + (size_t)token * m->in;
    Vector sums[SUMS] = {0};
    for (int k = 0; k < m->in; k += 2 * parts)
        for (int part = 0; part < parts; part++)
            for (int side = 0; side < SIDE; side++) {
                const int8_t *now = w + (size_t)(k + 2 * part) * BLOCK + 2 * side * LANES;
                __builtin_prefetch(now + AHEAD);
                Vector weights = weights_at(now);
                for (int t = 0; t < tokens; t++) {
                    int32_t pair;
                    memcpy(&pair, x + (size_t)t * m->in + k + 2 * part, sizeof(pair));
                    Vector *place = sums + (part * SIDE + side) * tokens + t;
                    *place = with_products(*place, weights, (Vector){0} + pair);
                }
            }
    for (int side = 0; side < SIDE; side++, output += LANES)
        for (int t = 0; t < tokens && output < m->out; t++) {
            Vector all = sums[side * tokens + t];
            for (int part = 1; part < parts; part++) all += sums[(part * SIDE + side) * tokens + t];
            Outputs values = __builtin_convertvector(all, Outputs);
            values *= *(const Outputs *)(m->scale + output) * input.scale[token + t];
            if (m->bias) values += *(const Outputs *)(m->bias + output);
            float *place = y + (size_t)(token + t) * m->out + output;
            if (output + LANES <= m->out) {
                if (add) values += *(const Outputs *)place;
                *(Outputs *)place = values;
            } else
                for (int i = 0; output + i < m->out; i++) place[i] = add ? place[i] + values[i] : values[i];
        }
}

/* y = x W^T + b, or y += ..., for all tokens: y (tokens, out). Called by all threads; they share the outputs. */
static void linear(const Linear *m, Input input, int tokens, float *y, int add) {
    #pragma omp for schedule(static)
    for (int block = 0; block < (m->out + BLOCK - 1) / BLOCK; block++)
        for (int output = block * BLOCK; output < (block + 1) * BLOCK; output += SIDE * LANES)
            for (int token = 0; token < tokens; token += MOST)
                switch (tokens - token) {
                    case 1: tile(m, input, output, token, 1, y, add); break;
                    case 2: tile(m, input, output, token, 2, y, add); break;
                    case 3: tile(m, input, output, token, 3, y, add); break;
#if defined(__AVX512BW__)
                    case 4: tile(m, input, output, token, 4, y, add); break;
                    case 5: tile(m, input, output, token, 5, y, add); break;
                    case 6: tile(m, input, output, token, 6, y, add); break;
                    case 7: tile(m, input, output, token, 7, y, add); break;
#endif
                    default: tile(m, input, output, token, MOST, y, add);
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

/* How well each of the keys (count, n) fits the query: several at once, for no sum of one waits for another's. */
static void compare(const float *query, const float *keys, int count, int n, float *scores) {
    int c = 0;
#ifdef __AVX2__
    for (; c + 8 <= count && n % 8 == 0; c += 8) {
        const float *eight = keys + (size_t)c * n;
        Lanes lanes[8] = {0};
        for (int i = 0; i < n; i += 8)
            for (int k = 0; k < 8; k++) lanes[k] += *(const Lanes *)(query + i) * *(const Lanes *)(eight + k * n + i);
        for (int k = 0; k < 8; k += 4) {  /* four totals at once, their lanes added in the order of `total` */
            __m128 four[4];
            for (int j = 0; j < 4; j++)
                four[j] = _mm_add_ps(_mm256_castps256_ps128((__m256)lanes[k + j]),
                                     _mm256_extractf128_ps((__m256)lanes[k + j], 1));
            _mm_storeu_ps(scores + c + k, _mm_hadd_ps(_mm_hadd_ps(four[0], four[1]), _mm_hadd_ps(four[2], four[3])));
        }
    }
#endif
    for (; c < count; c++) scores[c] = dot(query, keys + (size_t)c * n, n);
}

/* out += the sum of the values (count, n), weighed: many channels at once, whose sums stay in registers. */
static void mix(const float *weights, const float *values, int count, int n, float *out) {
    enum { PARTS = LANES < 16 ? 8 : 4 };
    int i = 0;
    for (; i + PARTS * LANES <= n; i += PARTS * LANES) {
        Outputs sums[PARTS];
        for (int k = 0; k < PARTS; k++) sums[k] = *(const Outputs *)(out + i + LANES * k);
        for (int c = 0; c < count; c++)
            for (int k = 0; k < PARTS; k++)
                sums[k] += weights[c] * *(const Outputs *)(values + (size_t)c * n + i + LANES * k);
        for (int k = 0; k < PARTS; k++) *(Outputs *)(out + i + LANES * k) = sums[k];
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

/* For each tensor a sum over its bytes that changes when a weight changes or two change places: first the sum, then the
   sum of its values (Fletcher 1982, An arithmetic checksum for serial transmissions). The first is rotated at every
   step: all signs turned would else leave 32 bits as they were. */
void checksums(const uint8_t *const *tensors, const int64_t *bytes, int count, int threads, uint64_t *sums) {
    enum { SIDES = LANES < 16 ? 4 : 2, PIECE = 1 << 16 };  /* vectors summed side by side; a thread's piece of work */
    typedef uint32_t Words __attribute__((vector_size(4 * LANES), aligned(1), may_alias));
    const uint64_t odd = 0x9E3779B97F4A7C15;
    memset(sums, 0, count * sizeof(*sums));
    #pragma omp parallel num_threads(threads)
    for (int tensor = 0; tensor < count; tensor++) {
        uint64_t all = 0;
        #pragma omp for schedule(static) nowait
        for (int64_t start = 0; start < bytes[tensor]; start += PIECE) {
            const uint8_t *now = tensors[tensor] + start;
            const uint8_t *end = now + (bytes[tensor] - start < PIECE ? bytes[tensor] - start : PIECE);
            Words first[SIDES] = {0}, second[SIDES] = {0};
            for (; end - now >= (int64_t)sizeof(first); now += sizeof(first)) {
                for (int i = 0; i < (int)sizeof(first); i += 64) __builtin_prefetch(now + AHEAD + i);
                for (int side = 0; side < SIDES; side++) {
                    Words words = ((const Words *)now)[side];
                    first[side] = (first[side] << 13 | first[side] >> 19) + words;
                    second[side] += first[side];
                }
            }
            uint64_t mixed = start;
            for (int i = 0; i < SIDES * LANES; i++)
                mixed = ((mixed + first[i / LANES][i % LANES]) * odd + second[i / LANES][i % LANES]) * odd;
            for (; now < end; now++) mixed = (mixed + *now) * odd;
            mixed = (mixed ^ mixed >> 31) * odd;
            all += mixed ^ mixed >> 29;
        }
        #pragma omp atomic
        sums[tensor] += all;
    }
}

/* Floats of memory that each token takes while it is read. */
int memory_of_token(const Model *m) {
    int widest = m->layers->out.in > m->layers->outer.in ? m->layers->out.in : m->layers->outer.in;
    widest = widest > m->head.in ? widest : m->head.in;
    int heads = 2 * m->heads + 2 * m->kv_heads, inner = (m->gated ? 2 : 1) * m->feed_forward;
    return m->hidden + heads * m->head_dim + inner + 1 + widest;
}

/* Append `time` tokens to each row.
   cache: (cache rows, layers, 2, kv_heads, capacity, head_dim), keys and values;
   cache_rows: (rows,) which of the cache's is which row's;
   base: such a cache of another decoder: row r's first shared[r] tokens are those of its row base_rows[r];
   ids: (rows, time); lengths: (rows,) tokens so far, shared ones too;
   memory: (rows, time, memory_of_token); logits: (rows, time, vocab), or (rows, 1, vocab) of each row's last token. */
void forward(const Model *m, float *cache, int capacity, const int32_t *cache_rows, const float *base,
             int base_capacity, const int32_t *base_rows, const int32_t *shared, const int32_t *ids,
             const int32_t *lengths, int rows, int time, int last_only, int threads, float *memory, float *logits) {
    int tokens = rows * time, width = m->hidden, attention = m->heads * m->head_dim, ff = m->feed_forward;
    int heads = m->heads + 2 * m->kv_heads;
    size_t heads_cached = m->num_layers * 2 * m->kv_heads;
    float *hidden = memory, *qkv = hidden + (size_t)width * tokens, *mixed = qkv + (size_t)heads * m->head_dim * tokens;
    float *inner = mixed + (size_t)attention * tokens, *scale = inner + (size_t)(m->gated ? 2 : 1) * ff * tokens;
    Input input = { (int16_t *)(scale + tokens), scale };

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
            #pragma omp for schedule(static)
            for (int token = 0; token < tokens; token++) {
                float *x = hidden + (size_t)token * width;
                if (m->pre_norm) normalise(x, layer->norm1, m->eps, width, normed);
                quantise(m->pre_norm ? normed : x, width, &layer->qkv, token, input);
            }
            linear(&layer->qkv, input, tokens, qkv, 0);
            #pragma omp for schedule(static)
            for (int i = 0; i < rows * m->kv_heads; i++) {
                int row = i % rows, kv_head = i / rows;  /* what forks share is read once for a head */
                size_t size = (size_t)capacity * m->head_dim, base_size = (size_t)base_capacity * m->head_dim;
                size_t before = (layer - m->layers) * 2 * m->kv_heads + kv_head;  /* heads of the row before this one */
                float *keys = cache + (cache_rows[row] * heads_cached + before) * size;
                const float *base_keys = base + (base_rows[row] * heads_cached + before) * base_size;
                size_t first = (size_t)row * time;
                attend(m, layer, base_keys, base_keys + m->kv_heads * base_size, shared[row], keys,
                       keys + m->kv_heads * size, lengths[row], time, kv_head, qkv + first * heads * m->head_dim,
                       mixed + first * attention);
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
                float *gate = inner + (size_t)token * (m->gated ? 2 : 1) * ff, *x = gate + (m->gated ? ff : 0);
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
}
"""
)
